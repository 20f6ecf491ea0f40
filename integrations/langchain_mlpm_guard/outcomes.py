"""What comes out of a guarded chain: its output, an error that is judged like one, or what stands in for what was blocked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import BaseModel

from langchain_mlpm_guard.judging import EVENT, Stage
from langchain_mlpm_guard.refusals import blocked_stage, metadata, with_verdicts
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.verdict import Verdict

_ERRORS = 8


@dataclass(frozen=True)
class Failure:
    """A chain that failed. What its error says may quote an answer, as parsers do; it is judged like one."""

    error: Exception

    def text(self) -> str:
        """All that the error and those behind it say."""
        found: list[str] = []
        error: BaseException | None = self.error
        while error is not None and len(found) < _ERRORS * 3:
            found += [str(error), *(str(getattr(error, name, None) or "") for name in ("llm_output", "observation"))]
            error = error.__cause__ or error.__context__
        return "\n".join(dict.fromkeys(text for text in found if text.strip()))


class MessageRefusal(BaseModel):
    """A refusal that comes as a message."""

    text: str


def caught(call: Callable[[], Any]) -> Any:
    """What a call returns, or its failure."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  (raised again once its text was judged)
        return Failure(error)


async def acaught(call: Awaitable[Any]) -> Any:
    """`caught` for event loops."""
    try:
        return await call
    except Exception as error:  # noqa: BLE001  (raised again once its text was judged)
        return Failure(error)


def readable(output: Any) -> Any:
    """What is judged of an output or failure."""
    return output.text() if isinstance(output, Failure) else output


def told(output: Any, prompt: Verdict | None, response: Verdict | None) -> Any:
    """An output that tells its verdicts, where it can."""
    return with_verdicts(output, prompt, response) if isinstance(output, AIMessage) else output


class Telling:
    """Chunks of an answer that nobody moderates, with the verdict on its prompt at their end."""

    def __init__(self, prompt: Verdict | None) -> None:
        self._prompt = prompt
        self._last: AIMessageChunk | None = None
        self._within: Stage | None = None

    def passed(self, chunk: Any) -> Any:
        """A chunk as it goes on."""
        if not isinstance(chunk, AIMessageChunk):
            return told(chunk, self._prompt, None)
        self._last = chunk
        self._within = self._within or blocked_stage(chunk)
        # Chunks are added up, and two verdicts would run into one another.
        kept = {key: value for key, value in chunk.response_metadata.items() if key != EVENT}
        return chunk if EVENT not in chunk.response_metadata else chunk.model_copy(update={"response_metadata": kept})

    def ending(self) -> Iterator[AIMessageChunk]:
        """The chunk that tells the verdict, where the answer came in chunks of a message."""
        if self._last is not None:
            found = metadata(self._prompt, None, self._within)
            yield AIMessageChunk(content="", id=self._last.id, response_metadata=found, chunk_position="last")


def stand_in(chain: Runnable[Any, Any], refusal: Any) -> Any:
    """What is given instead of a blocked output.

    Raises:
        ConfigurationError: the chain's output type does not tell, and no refusal was given.
    """
    try:
        kind: Any = chain.OutputType
    except TypeError:
        kind = Any
    gives_messages = kind is AnyMessage or (isinstance(kind, type) and issubclass(kind, BaseMessage))
    if refusal is None:
        if gives_messages:
            return MessageRefusal(text=DEFAULT_REFUSAL)
        if kind is str:
            return DEFAULT_REFUSAL
        if kind == list[Document] or kind == list[str]:
            return []
        raise ConfigurationError(
            f"the chain's output type is {getattr(kind, '__name__', kind)!s}: pass refusal=, a value of that type or a "
            "function from the verdict to one"
        )
    return MessageRefusal(text=refusal) if gives_messages and isinstance(refusal, str) else refusal


def models_in(runnable: Any, seen: set[int] | None = None) -> Iterator[BaseChatModel | BaseLLM]:
    """The models in a chain, as far as one can see into it."""
    seen = set() if seen is None else seen
    if id(runnable) in seen:
        return
    seen.add(id(runnable))
    if isinstance(runnable, (BaseChatModel, BaseLLM)):
        yield runnable
    elif isinstance(runnable, RunnableLambda):
        for each in runnable.deps:
            yield from models_in(each, seen)
    elif isinstance(runnable, Runnable) and isinstance(runnable, BaseModel):
        for name in type(runnable).model_fields:
            yield from models_in(getattr(runnable, name, None), seen)
    elif isinstance(runnable, Mapping):
        for each in runnable.values():
            yield from models_in(each, seen)
    elif isinstance(runnable, (list, tuple)):
        for each in runnable:
            yield from models_in(each, seen)
