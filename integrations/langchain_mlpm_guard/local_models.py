"""ChatGuarded: a local causal language model that is judged in its own prefill, as a LangChain chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.errors import PromptBlockedError, ResponseBlockedError
from langchain_mlpm_guard.judging import Stage, identity
from langchain_mlpm_guard.messages import Turns, other_texts
from langchain_mlpm_guard.refusals import HAS_REFUSAL_BLOCK, metadata, refusal_chunk, refusal_message, without_blocked
from langchain_mlpm_guard.retrying import BlocksOnce, warn_of_fallbacks
from langchain_mlpm_guard.tool_calls import (
    Answer,
    CallWatch,
    control_tokens,
    has_response_template,
    read_answer,
    turns_with_calls,
)
from mlpm_guard.answers import Generation
from mlpm_guard.errors import ConfigurationError, PromptBlocked, ResponseBlocked
from mlpm_guard.policy import worse
from mlpm_guard.verdict import Verdict

_PASSED_ON = frozenset(
    {"do_sample", "length_penalty", "max_new_tokens", "min_new_tokens", "num_beams", "repetition_penalty", "top_k", "top_p"}
)
_NOT_FOR_THE_MODEL = frozenset(
    {"ls_structured_output_format", "model", "stream", "stream_usage", "structured_output_format", "tool_choice", "tools"}
)
_ANY = ("any", "required", True)


class ChatGuarded(BlocksOnce, BaseChatModel):
    """A chat model over `GuardedGenerator`: prompts are judged in the pass that answers them, answers as they are written.

    Only what was judged is ever seen by callbacks and streams. A blocked prompt or answer gives the generator's refusal with
    `finish_reason="content_filter"`, or raises where the generator was made with `on_block="raise"`. `response_metadata` holds
    the verdicts under "mlpm_guard".

    Tools that are bound are shown by the tokenizer's chat template, and are judged with the prompt. Calls are read from what
    the model writes: in the formats of Hermes and Qwen, Llama 3 and Mistral, or by the tokenizer's own response template. What
    cannot be read becomes an invalid tool call. Arguments are judged again once they are decoded, and calls leave, also in
    streams, only when they are whole.

    Args:
        generator: a `GuardedGenerator`.
        model: a name for the model, told in metadata.
        max_tokens: most tokens of an answer.
        temperature: of sampling; 0 chooses greedily, None leaves it to the model's generation config.
        stop: texts at which an answer ends; they are not part of it.
        generation_kwargs: more arguments of the model's `generate`.

    Raises:
        ConfigurationError: the generator is none.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    generator: SkipValidation[Any] = Field(exclude=True, repr=False)
    model_name: str = Field(default="local", alias="model")
    max_tokens: int = Field(default=256, ge=1)
    temperature: float | None = Field(default=None, ge=0.0)
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    generation_kwargs: Mapping[str, Any] = Field(default_factory=dict)

    guards_answers: bool = Field(default=True, init=False, exclude=True)

    def __init__(self, **options: Any) -> None:
        with checked(self):
            super().__init__(**options)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not (callable(getattr(self.generator, "agenerate", None)) and callable(getattr(self.generator, "astream", None))):
            raise ConfigurationError(f"generator is {type(self.generator).__name__}: pass a mlpm_guard.GuardedGenerator")
        return self

    # -- answering ----------------------------------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        asked = self._asked(messages, stop, kwargs)
        with _errors():
            generation = self.generator.generate(asked.turns, **asked.arguments)
        answer = self._read(generation, asked)
        return self._result(generation, asked, answer, self.generator.moderate(asked.turns, answer.beside))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        asked = self._asked(messages, stop, kwargs)
        with _errors():
            generation = await self.generator.agenerate(asked.turns, **asked.arguments)
        answer = self._read(generation, asked)
        return self._result(generation, asked, answer, await self._amoderate(asked, answer))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._asked(messages, stop, kwargs)
        shown = _Shown(asked, self.generator._tokenizer)
        with _errors(), closing(self.generator.stream(asked.turns, **asked.arguments)) as stream:
            for text in stream:
                if visible := text if stream.refused else shown.take(text):
                    yield _chunk(visible)
                if shown.done:
                    break
        answer = _Told("") if stream.refused else shown.rest(self._prefix(asked))
        verdict = self.generator.moderate(asked.turns, answer.beside)
        yield from self._ending(stream, shown, asked, answer, verdict)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = self._asked(messages, stop, kwargs)
        shown = _Shown(asked, self.generator._tokenizer)
        with _errors():
            async with aclosing(self.generator.astream(asked.turns, **asked.arguments)) as stream:
                async for text in stream:
                    if visible := text if stream.refused else shown.take(text):
                        yield _chunk(visible)
                    if shown.done:
                        break
        answer = _Told("") if stream.refused else shown.rest(self._prefix(asked))
        verdict = await self._amoderate(asked, answer)
        for chunk in self._ending(stream, shown, asked, answer, verdict):
            yield chunk

    # -- what LangChain asks ------------------------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools.

        Args:
            tools: anything that LangChain takes for a tool.
            tool_choice: "auto" or None leaves it to the model; "none" does not show the tools; "any", "required" or True has
                the answer begin with a call of one of them, and a name with a call of that one. What the model writes as its
                arguments is up to the model.
            **kwargs: as in a call.

        Raises:
            ConfigurationError: the tokenizer's chat template shows no tools, or does not tell how a call begins; or the choice
                names no tool.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        if schemas and not self.generator.takes_tools:
            raise ConfigurationError(
                "tools cannot be bound: this tokenizer's chat template shows none, it renders the same with and without them"
            )
        if _chosen(schemas, tool_choice) and not self.generator.can_begin_calls:
            raise ConfigurationError(
                f"tool_choice={tool_choice!r}: this chat template does not tell how a call begins; use auto"
            )
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=schemas, **choice, **kwargs)

    def with_fallbacks(self, fallbacks: Sequence[Runnable[Any, Any]], **kwargs: Any) -> Any:
        """As for any runnable; warns of fallbacks that no guard stands in front of, where blocks raise."""
        if self.generator.raises and not all(getattr(each, "guards_answers", False) for each in fallbacks):
            warn_of_fallbacks('GuardedGenerator(..., on_block="replace")')
        return super().with_fallbacks(fallbacks, **kwargs)

    @property
    def _llm_type(self) -> str:
        return "mlpm-guarded"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on; the key of LLM caches."""
        return {
            "model_name": self.model_name,
            "weights": self.generator.guard.encoder.identity.model_dump(mode="json"),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
            "generation_kwargs": dict(self.generation_kwargs),
            "guard": dict(identity(self.generator.guard)),
            "moderator": dict(identity(self.generator.moderator)),
            "refusal": self.generator.refusal,
            "raises": self.generator.raises,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "mlpm_guard"
        return params

    # -- how ----------------------------------------------------------------------------------------------------------------

    def _asked(self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]) -> _Asked:
        ends = stop or self.stop or []
        tools = list(given.get("tools") or ())
        choice = given.get("tool_choice")
        must_call = _chosen(tools, choice)
        arguments = self._arguments(ends, given)
        if choice == "none":
            tools = []
        if tools:
            arguments.update(tools=tools, must_call=must_call)
        return _Asked(turns_with_calls(without_blocked(messages)), tools, ends, arguments)

    def _arguments(self, stop: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := set(given) - _PASSED_ON - _NOT_FOR_THE_MODEL - {"max_tokens", "temperature"}:
            raise ConfigurationError(f"{', '.join(sorted(unknown))}: not an argument of ChatGuarded; see generation_kwargs")
        found: dict[str, Any] = {"max_new_tokens": given.get("max_tokens") or self.max_tokens, **self.generation_kwargs}
        temperature = given.get("temperature", self.temperature)
        if temperature is not None:
            found.update({"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False})
        if stop:
            found.update(stop_strings=list(stop), tokenizer=self.generator._tokenizer)
        return {**found, **{name: value for name, value in given.items() if name in _PASSED_ON}}

    def _input_ids(self, asked: _Asked) -> Any:
        tools = {"tools": asked.tools} if asked.tools else {}
        return self.generator.inputs(asked.turns, **tools)["input_ids"]

    def _count(self, asked: _Asked) -> int:
        return int(self._input_ids(asked).shape[1])

    def _tokens(self, text: str) -> int:
        return len(self.generator._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prefix(self, asked: _Asked) -> str:
        """The prompt, where the tokenizer's response template may ask for it."""
        tokenizer = self.generator._tokenizer
        return str(tokenizer.decode(self._input_ids(asked)[0])) if asked.tools and has_response_template(tokenizer) else ""

    def _read(self, generation: Generation, asked: _Asked) -> _Told:
        """What a generation says; nothing where it was blocked."""
        if generation.blocked:
            return _Told("")
        shown = _Shown(asked, self.generator._tokenizer)
        text = shown.take(generation.text)
        rest = shown.rest(self._prefix(asked))
        whole = text + rest.text
        return replace(rest, text=whole.strip() if rest.calls or rest.invalid else whole)

    async def _amoderate(self, asked: _Asked, answer: _Told) -> Verdict | None:
        return await asyncio.to_thread(self.generator.moderate, asked.turns, answer.beside) if answer.beside else None

    def _result(self, generation: Generation, asked: _Asked, answer: _Told, beside: Verdict | None) -> ChatResult:
        read = self._count(asked)
        response = _worst(generation.response_verdict, beside)
        if generation.blocked or _blocked(beside):
            if beside is not None and self.generator.raises:
                raise ResponseBlockedError(beside)
            stage, verdict = _which(generation.verdict, response)
            refused = refusal_message(self.generator.refusal, verdict, stage, usage=_usage(read, 0))
            refused.response_metadata["model_name"] = self.model_name
            return ChatResult(generations=[ChatGeneration(message=refused)])
        message = AIMessage(
            content=answer.text,
            tool_calls=answer.calls,
            invalid_tool_calls=answer.invalid,
            additional_kwargs=answer.additional,
            usage_metadata=_usage(read, len(generation.token_ids)),
            response_metadata={
                "model_name": self.model_name,
                "finish_reason": answer.reason(generation.finish_reason),
                **metadata(generation.verdict, response),
            },
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _ending(
        self, stream: Any, shown: _Shown, asked: _Asked, answer: _Told, beside: Verdict | None
    ) -> Iterator[ChatGenerationChunk]:
        read, response = self._count(asked), _worst(stream.response_verdict, beside)
        if stream.finish_reason == "content_filter" or _blocked(beside):
            if beside is not None and self.generator.raises:
                raise ResponseBlockedError(beside)
            stage, decided = _which(stream.verdict, response)
            message = refusal_chunk(self.generator.refusal, decided, stage, usage=_usage(read, 0))
            if not _blocked(beside):
                # The refusal itself was the stream's last text.
                message.content = message.content[1:] if HAS_REFUSAL_BLOCK else ""
            message.response_metadata["model_name"] = self.model_name
            yield ChatGenerationChunk(message=message)
            return
        if answer.text:
            yield _chunk(answer.text)
        if answer.calls or answer.invalid or answer.additional:
            told = AIMessageChunk(content="", tool_call_chunks=answer.chunks, additional_kwargs=answer.additional)
            yield ChatGenerationChunk(message=told)
        message = AIMessageChunk(
            content="",
            usage_metadata=_usage(read, self._tokens(shown.text)),
            response_metadata={
                "model_name": self.model_name,
                "finish_reason": answer.reason(stream.finish_reason),
                **metadata(stream.verdict, response),
            },
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=message)


@dataclass(frozen=True)
class _Asked:
    """One call: its conversation, the tools that the model is shown, stop texts, and arguments of the generator."""

    turns: Turns
    tools: Sequence[Mapping[str, Any]]
    stop: Sequence[str]
    arguments: Mapping[str, Any]


@dataclass
class _Told(Answer):
    """An answer, as far as it has not been shown yet.

    Attributes:
        done: whether a stop text ended it.
        tools: names of the tools that the model was shown.
    """

    done: bool = False
    tools: frozenset[str] = frozenset()

    @property
    def beside(self) -> str:
        """What can be read in it beside its text, decoded: the text itself was judged before it came here."""
        told = AIMessage(content="", tool_calls=self.calls, invalid_tool_calls=self.invalid, additional_kwargs=self.additional)
        strange = [call["name"] for call in self.calls if call["name"] not in self.tools]
        return "\n".join([*strange, *other_texts(told)])

    @property
    def additional(self) -> dict[str, Any]:
        """What goes into `additional_kwargs`."""
        return {"reasoning_content": self.reasoning} if self.reasoning else {}

    def reason(self, ended: str | None) -> str | None:
        """Why the answer ended."""
        return "tool_calls" if self.calls else "stop" if self.done else ended


class _Shown:
    """What may be seen of an answer while it comes: up to a stop text, and up to the first call."""

    def __init__(self, asked: _Asked, tokenizer: Any) -> None:
        self._cut = _Cut(asked.stop)
        self._tools = asked.tools
        self._tokenizer = tokenizer
        self._watch: CallWatch | None = None
        if asked.tools:
            self._watch = CallWatch(control_tokens(tokenizer), held=has_response_template(tokenizer))

    @property
    def done(self) -> bool:
        """Whether a stop text ended it."""
        return self._cut.done

    @property
    def text(self) -> str:
        """All of it so far, as the model wrote it."""
        return self._cut.shown

    def take(self, text: str) -> str:
        """What may be shown."""
        text = self._cut.take(text)
        return text if self._watch is None else self._watch.take(text)

    def rest(self, prefix: str) -> _Told:
        """What is left when the answer has ended."""
        text = self._cut.rest()
        if self._watch is None:
            return _Told(text, done=self.done)
        shown = self._watch.take(text)
        found = read_answer(self._watch.rest(), self._tools, self._tokenizer, prefix)
        names = frozenset(str(tool["function"]["name"]) for tool in self._tools)
        return _Told(shown + found.text, found.calls, found.invalid, found.reasoning, self.done, names)


class _Cut:
    """Ends a text in front of the first stop text, wherever its pieces break it."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [each for each in stop if each]
        self._held = ""
        self._keep = max((len(each) for each in self._stop), default=1) - 1
        self.shown = ""
        self.done = False

    def take(self, text: str) -> str:
        """What of the text so far may be shown."""
        if self.done:
            return ""
        self._held += text
        found = [at for each in self._stop if (at := self._held.find(each)) >= 0]
        if found:
            self.done = True
            return self._show(min(found))
        return self._show(max(0, len(self._held) - self._keep))

    def rest(self) -> str:
        """What is left when the answer ends."""
        return "" if self.done else self._show(len(self._held))

    def _show(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        self.shown += text
        return text


class _errors:  # noqa: N801
    """Blocks of the generator as LangChain's errors."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PromptBlocked):
            raise PromptBlockedError(error.verdict) from None
        if isinstance(error, ResponseBlocked):
            raise ResponseBlockedError(error.verdict) from None


def _chunk(text: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def _chosen(tools: Sequence[Mapping[str, Any]], choice: object) -> list[str]:
    """Names of the tools with a call of which an answer has to begin.

    Raises:
        ConfigurationError: the choice is none, or names a tool that is not there.
    """
    if choice is None or choice is False or choice in ("auto", "none"):
        return []
    names = [str(tool["function"]["name"]) for tool in tools]
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, Mapping) else None
    if isinstance(choice, str) and choice in names:
        return [choice]
    if choice in _ANY and names:
        return names
    raise ConfigurationError(
        f'tool_choice: "auto", "none", "any", "required", or the name of a tool that is bound; there are {len(names)} tools'
    )


def _worst(first: Verdict | None, second: Verdict | None) -> Verdict | None:
    return second if first is None else first if second is None else worse(first, second)


def _blocked(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.blocked


def _which(prompt: Verdict, response: Verdict | None) -> tuple[Stage, Verdict]:
    return ("prompt", prompt) if response is None else ("response", response)


def _usage(read: int, written: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
