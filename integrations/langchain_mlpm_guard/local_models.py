"""ChatGuarded: a local causal language model that is judged in its own prefill, as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.errors import PromptBlockedError, ResponseBlockedError
from langchain_mlpm_guard.gate import warn_of_fallbacks
from langchain_mlpm_guard.judging import Stage, identity
from langchain_mlpm_guard.messages import Turns, conversation
from langchain_mlpm_guard.refusals import HAS_REFUSAL_BLOCK, metadata, refusal_chunk, refusal_message
from mlpm_guard.answers import Generation
from mlpm_guard.errors import ConfigurationError, PromptBlocked, ResponseBlocked
from mlpm_guard.verdict import Verdict

_PASSED_ON = frozenset(
    {"do_sample", "length_penalty", "max_new_tokens", "min_new_tokens", "num_beams", "repetition_penalty", "top_k", "top_p"}
)
_NOT_FOR_THE_MODEL = frozenset({"ls_structured_output_format", "model", "stream", "stream_usage", "structured_output_format"})


class ChatGuarded(BaseChatModel):
    """A chat model over `GuardedGenerator`: prompts are judged in the pass that answers them, answers as they are written.

    Only what was judged is ever seen by callbacks and streams. A blocked prompt or answer gives the generator's refusal with
    `finish_reason="content_filter"`, or raises where the generator was made with `on_block="raise"`. `response_metadata` holds
    the verdicts under "mlpm_guard". Tools cannot be bound: the generator's prompt has no place for them.

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
        asked, ends = conversation(messages), stop or self.stop or []
        arguments = self._arguments(ends, kwargs)
        with _errors():
            generation = self.generator.generate(asked, **arguments)
        return self._result(generation, self._count(asked), ends)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        asked, ends = conversation(messages), stop or self.stop or []
        arguments = self._arguments(ends, kwargs)
        with _errors():
            generation = await self.generator.agenerate(asked, **arguments)
        return self._result(generation, self._count(asked), ends)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked, ends = conversation(messages), stop or self.stop or []
        cut = _Cut(ends)
        with _errors(), closing(self.generator.stream(asked, **self._arguments(ends, kwargs))) as stream:
            for text in stream:
                if shown := text if _blocked(stream.verdict) else cut.take(text):
                    yield ChatGenerationChunk(message=AIMessageChunk(content=shown))
                if cut.done:
                    break
            if rest := cut.rest():
                yield ChatGenerationChunk(message=AIMessageChunk(content=rest))
        yield self._last(stream, cut, asked)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked, ends = conversation(messages), stop or self.stop or []
        cut = _Cut(ends)
        with _errors():
            async with aclosing(self.generator.astream(asked, **self._arguments(ends, kwargs))) as stream:
                async for text in stream:
                    if shown := text if _blocked(stream.verdict) else cut.take(text):
                        yield ChatGenerationChunk(message=AIMessageChunk(content=shown))
                    if cut.done:
                        break
                if rest := cut.rest():
                    yield ChatGenerationChunk(message=AIMessageChunk(content=rest))
        yield self._last(stream, cut, asked)

    # -- what LangChain asks ------------------------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Not possible.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("ChatGuarded binds no tools: GuardedGenerator's prompt has no place for them")

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

    def _count(self, asked: Turns) -> int:
        return int(self.generator.inputs(asked)["input_ids"].shape[1])

    def _tokens(self, text: str) -> int:
        return len(self.generator._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _result(self, generation: Generation, read: int, stop: Sequence[str]) -> ChatResult:
        if generation.blocked:
            stage, verdict = _which(generation.verdict, generation.response_verdict)
            refused = refusal_message(generation.text, verdict, stage, usage=_usage(read, 0))
            refused.response_metadata["model_name"] = self.model_name
            return ChatResult(generations=[ChatGeneration(message=refused)])
        cut = _Cut(stop)
        text = cut.take(generation.text) + cut.rest()
        message = AIMessage(
            content=text,
            usage_metadata=_usage(read, len(generation.token_ids)),
            response_metadata={
                "model_name": self.model_name,
                "finish_reason": "stop" if cut.done else generation.finish_reason,
                **metadata(generation.verdict, generation.response_verdict),
            },
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last(self, stream: Any, cut: _Cut, asked: Turns) -> ChatGenerationChunk:
        read, verdict, answer = self._count(asked), stream.verdict, stream.response_verdict
        if stream.finish_reason == "content_filter":
            stage, decided = _which(verdict, answer)
            # The refusal itself was the stream's last text.
            message = refusal_chunk(self.generator.refusal, decided, stage, usage=_usage(read, 0))
            message.content = message.content[1:] if HAS_REFUSAL_BLOCK else ""
            message.response_metadata["model_name"] = self.model_name
            return ChatGenerationChunk(message=message)
        reason = "stop" if cut.done else stream.finish_reason
        message = AIMessageChunk(
            content="",
            usage_metadata=_usage(read, self._tokens(cut.shown)),
            response_metadata={"model_name": self.model_name, "finish_reason": reason, **metadata(verdict, answer)},
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


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


def _blocked(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.blocked


def _which(prompt: Verdict, response: Verdict | None) -> tuple[Stage, Verdict]:
    return ("prompt", prompt) if response is None else ("response", response)


def _usage(read: int, written: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
