"""GuardedLocalLLM: a model in this process behind `GuardedGenerator`, which judges a prompt in the pass that answers it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.llm import LLM

from llama_index_mlpm_guard import observed
from llama_index_mlpm_guard.errors import PromptBlockedError
from llama_index_mlpm_guard.events import emit
from llama_index_mlpm_guard.messages import as_conversation, without_refused
from llama_index_mlpm_guard.pickling import refuse_to_lose
from llama_index_mlpm_guard.replies import shown
from llama_index_mlpm_guard.responses import verdicts
from mlpm_guard import ConfigurationError, PromptBlocked, Verdict

if TYPE_CHECKING:
    from mlpm_guard import Generation, GuardedGenerator
    from mlpm_guard.conversation import ConversationLike

R = TypeVar("R", ChatResponse, CompletionResponse)


class GuardedLocalLLM(LLM):
    """LlamaIndex's face of a `GuardedGenerator`: no second model, and no second forward pass to judge a prompt.

    The generator decides what is blocked, what is said instead (`refusal`, `on_block`) and whether answers are moderated. Async
    methods do not block the event loop; closing a stream stops the model. Earlier turns that were refused are taken out before
    the model sees a conversation again. Verdicts are in `additional_kwargs` of the last response, and emitted as
    `GuardDecisionEvent`.

    Args:
        generator: a `GuardedGenerator`.
        max_new_tokens: longest answer in tokens.
        context_window: tokens that the model reads at once, which LlamaIndex fits its prompts to.
        generate_kwargs: further arguments of the model's `generate`.

    Raises:
        ConfigurationError: `generator` is none.
    """

    generator: Any = Field(exclude=True, repr=False)
    max_new_tokens: int = Field(default=256, ge=1)
    context_window: int = Field(default=DEFAULT_CONTEXT_WINDOW, ge=1)
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)

    def __init__(
        self,
        generator: GuardedGenerator,
        *,
        max_new_tokens: int = 256,
        context_window: int = DEFAULT_CONTEXT_WINDOW,
        generate_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        from mlpm_guard import GuardedGenerator

        if not isinstance(generator, GuardedGenerator):
            raise ConfigurationError(f"generator is {type(generator).__name__}: pass a mlpm_guard.GuardedGenerator")
        fields: dict[str, Any] = {
            "generator": generator,
            "max_new_tokens": max_new_tokens,
            "context_window": context_window,
            "generate_kwargs": dict(generate_kwargs or {}),
        }
        super().__init__(**fields, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """Name under which the model is serialised."""
        return "GuardedLocalLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """A chat model of this context and answer length."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_new_tokens,
            is_chat_model=True,
            model_name=self.class_name(),
        )

    def __getstate__(self) -> dict[str, Any]:
        refuse_to_lose(self, "generator")
        return super().__getstate__()

    # -- chat ---------------------------------------------------------------------------------------------------------------

    @observed.chat
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Judge and answer in one pass."""
        result = self._generate(self._asked(messages), kwargs)
        return shown(ChatResponse, result.text, None, verdicts(result.verdict, result.response_verdict))

    @observed.chat
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop."""
        result = await self._agenerate(self._asked(messages), kwargs)
        return shown(ChatResponse, result.text, None, verdicts(result.verdict, result.response_verdict))

    @observed.chat
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as a stream."""
        return self._stream(ChatResponse, self._asked(messages), kwargs)

    @observed.chat
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking the event loop."""
        return self._astream(ChatResponse, self._asked(messages), kwargs)

    # -- completion ---------------------------------------------------------------------------------------------------------

    @observed.completion
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """Judge and answer in one pass; the prompt is one turn of the user."""
        result = self._generate(prompt, kwargs)
        return shown(CompletionResponse, result.text, None, verdicts(result.verdict, result.response_verdict))

    @observed.completion
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """`complete` without blocking the event loop."""
        result = await self._agenerate(prompt, kwargs)
        return shown(CompletionResponse, result.text, None, verdicts(result.verdict, result.response_verdict))

    @observed.completion
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ARG002
        """`complete` as a stream."""
        return self._stream(CompletionResponse, prompt, kwargs)

    @observed.completion
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:  # noqa: ARG002
        """`stream_complete` without blocking the event loop."""
        return self._astream(CompletionResponse, prompt, kwargs)

    # -- one answer ---------------------------------------------------------------------------------------------------------

    def _asked(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        return as_conversation(without_refused(messages, self.generator.refusal))

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens, **self.generate_kwargs, **kwargs}

    def _generate(self, conversation: ConversationLike, kwargs: Mapping[str, Any]) -> Generation:
        with _prompt_errors():
            return self._reported(self.generator.generate(conversation, **self._options(kwargs)))

    async def _agenerate(self, conversation: ConversationLike, kwargs: Mapping[str, Any]) -> Generation:
        with _prompt_errors():
            return self._reported(await self.generator.agenerate(conversation, **self._options(kwargs)))

    def _reported(self, result: Generation | list[Generation]) -> Generation:
        if isinstance(result, list):
            raise ConfigurationError("num_return_sequences: LlamaIndex asks for one answer")
        self._report(result.verdict, result.response_verdict)
        return result

    def _report(self, verdict: Verdict | None, response_verdict: Verdict | None) -> None:
        if verdict is not None:
            emit("prompt", self.class_name(), verdict)
        if response_verdict is not None:
            emit("response", self.class_name(), response_verdict)

    def _stream(self, kind: type[R], conversation: ConversationLike, kwargs: Mapping[str, Any]) -> Generator[R, None, None]:
        released = ""
        with _prompt_errors(), self.generator.stream(conversation, **self._options(kwargs)) as stream:
            try:
                for text in stream:
                    released += text
                    yield shown(kind, released, text)
            finally:
                self._report(stream.verdict, stream.response_verdict)
        yield shown(kind, released, "", verdicts(stream.verdict, stream.response_verdict))

    async def _astream(
        self, kind: type[R], conversation: ConversationLike, kwargs: Mapping[str, Any]
    ) -> AsyncGenerator[R, None]:
        released = ""
        with _prompt_errors():
            async with self.generator.astream(conversation, **self._options(kwargs)) as stream:
                try:
                    async for text in stream:
                        released += text
                        yield shown(kind, released, text)
                finally:
                    self._report(stream.verdict, stream.response_verdict)
        yield shown(kind, released, "", verdicts(stream.verdict, stream.response_verdict))


@contextmanager
def _prompt_errors() -> Iterator[None]:
    """What a generator raises, as this package names it."""
    try:
        yield
    except PromptBlocked as blocked:
        raise PromptBlockedError(blocked.verdict) from None
