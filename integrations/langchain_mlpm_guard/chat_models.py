"""ModeratedChatModel: any chat model with a gate before it and moderation behind it. Guards decide."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableParallel, RunnableSequence
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, PrivateAttr, SkipValidation, model_validator

from langchain_mlpm_guard.answers import AsyncReleased, Moderator, Released, as_chunk
from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.errors import PromptBlockedError, ResponseBlockedError
from langchain_mlpm_guard.judging import EVENT, Judge, OnReview, identity, is_guard, stops
from langchain_mlpm_guard.messages import conversation, prompt_turns
from langchain_mlpm_guard.refusals import metadata, refusal_chunk, refusal_message, with_verdicts, without_blocked
from langchain_mlpm_guard.retrying import BlocksOnce, warn_of_fallbacks
from langchain_mlpm_guard.silence import HeldCache, Holding, Silence
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.verdict import Verdict

_NO_TOKENS: Any = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


class ModeratedChatModel(BlocksOnce, BaseChatModel):
    """A chat model whose prompts pass a gate, and whose answers are moderated before anything of them is seen.

    The inner model runs out of sight: no callback, tracer, stream or cache hears of an answer before it was judged, whatever
    LangChain or LangGraph does around it. Streams are released sentence by sentence; tool calls, reasoning and metadata come
    with the last chunk. A blocked prompt or answer gives the refusal as an `AIMessage` with `finish_reason="content_filter"`
    and no tool calls; nothing is raised, so retries and fallbacks around it have nothing to act on. `response_metadata` holds
    the verdicts under "mlpm_guard".

    Where a conversation is kept, a prompt that was blocked in an earlier turn is shown to the inner model as an empty place;
    the refusal behind it tells so.

    A failing inner model still raises: give a fallback its own `ModeratedChatModel`, or use `guard_chain` around both.

    Args:
        model: a chat model, or a binding of one.
        guard: judges prompts: a `Guard` with `target="prompt"`; None lets all prompts pass.
        moderator: judges answers: a `Guard` with `target="response"`; None lets all answers pass.
        refusal: what is said instead of what was blocked.
        on_block: "replace" gives the refusal, "raise" raises `PromptBlockedError` or `ResponseBlockedError`.
        on_review: what to do with a prompt whose action is "review": "pass" or "block".
        stream_options: of the `StreamModerator` that streams go through (`hold_back`, `every`, `context`, `unit`).

    Raises:
        ConfigurationError: neither guard nor moderator is given, one has the wrong target, or an option has a bad value.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: SkipValidation[Any] = Field(exclude=True, repr=False)
    guard: SkipValidation[Any] = Field(default=None, exclude=True)
    moderator: SkipValidation[Any] = Field(default=None, exclude=True)
    refusal: str = DEFAULT_REFUSAL
    on_block: Literal["replace", "raise"] = "replace"
    on_review: OnReview = "pass"
    stream_options: Mapping[str, Any] = Field(default_factory=dict)

    _bound: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    _moderator: Moderator | None = PrivateAttr(default=None)

    def __init__(self, **options: Any) -> None:
        with checked(self):
            super().__init__(**options)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.guard is None and self.moderator is None:
            raise ConfigurationError("pass guard=, which judges prompts, or moderator=, which judges answers, or both")
        if self.guard is not None:
            is_guard(self.guard, "prompt", "guard")
        if self.moderator is not None:
            is_guard(self.moderator, "response", "moderator")
            self._moderator = Moderator(self.moderator, self.stream_options)
        if not self.refusal:
            raise ConfigurationError("refusal: a text that is not empty")
        self.model, self._bound = _unbound(self.model)
        # An answer is cached by this model, under a key that names its guards, and never by the one within.
        if self.cache is None:
            self.cache = self.model.cache
        if isinstance(self.cache, BaseCache) and not isinstance(self.cache, HeldCache):
            self.cache = HeldCache(self.cache)
        if getattr(self, "profile", None) is None and hasattr(self.model, "profile"):
            self.profile = self.model.profile
        return self

    # -- answering ----------------------------------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        messages = without_blocked(messages)
        prompt = self._gated(self._judge_prompt(messages))
        if isinstance(prompt, ChatResult):
            return prompt
        silence = Silence()
        arguments = {**self._bound, **kwargs}
        self._take_turn()
        result = silence.run(lambda: self.model._generate(messages, stop=stop, **arguments))
        verdicts: list[Verdict | None] = [None] * len(result.generations)
        if self._moderator is not None:
            asked = conversation(messages)
            answers = [generation.message for generation in result.generations]
            verdicts = self._moderator.check([asked] * len(answers), answers)
        return self._moderated(result, verdicts, prompt)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        messages = without_blocked(messages)
        prompt = self._gated(await self._ajudge_prompt(messages))
        if isinstance(prompt, ChatResult):
            return prompt
        silence = Silence()
        arguments = {**self._bound, **kwargs}
        await self._atake_turn()
        result = await silence.arun(lambda: self.model._agenerate(messages, stop=stop, **arguments))
        verdicts: list[Verdict | None] = [None] * len(result.generations)
        if self._moderator is not None:
            asked = conversation(messages)
            answers = [generation.message for generation in result.generations]
            verdicts = await self._moderator.acheck([asked] * len(answers), answers)
        return self._moderated(result, verdicts, prompt)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        messages = without_blocked(messages)
        prompt = self._gated(self._judge_prompt(messages))
        if isinstance(prompt, ChatResult):
            yield _as_chunk(prompt)
            return
        arguments = {**self._bound, **kwargs}
        self._take_turn()

        def chunks() -> Iterator[AIMessage]:
            if not _streams(self.model, arguments, "_stream"):
                yield _answer(self.model._generate(messages, stop=stop, **arguments))
                return
            for chunk in self.model._stream(messages, stop=stop, **arguments):
                yield _told(chunk)

        source = Silence().iterate(chunks)
        if self._moderator is None:
            yield ChatGenerationChunk(message=AIMessageChunk(content="", response_metadata=metadata(prompt, None)))
            for chunk in source:
                yield ChatGenerationChunk(message=_message_chunk(chunk))
            return
        released = self._moderator.stream(conversation(messages), source)
        for chunk in released:
            yield ChatGenerationChunk(message=chunk)
        yield self._ending(released, prompt)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        messages = without_blocked(messages)
        prompt = self._gated(await self._ajudge_prompt(messages))
        if isinstance(prompt, ChatResult):
            yield _as_chunk(prompt)
            return
        arguments = {**self._bound, **kwargs}
        await self._atake_turn()

        async def chunks() -> AsyncIterator[AIMessage]:
            if not _streams(self.model, arguments, "_astream", "_stream"):
                yield _answer(await self.model._agenerate(messages, stop=stop, **arguments))
                return
            async for chunk in self.model._astream(messages, stop=stop, **arguments):
                yield _told(chunk)

        source = Silence().aiterate(chunks)
        if self._moderator is None:
            yield ChatGenerationChunk(message=AIMessageChunk(content="", response_metadata=metadata(prompt, None)))
            async for chunk in source:
                yield ChatGenerationChunk(message=_message_chunk(chunk))
            return
        released = self._moderator.astream(conversation(messages), source)
        async for chunk in released:
            yield ChatGenerationChunk(message=chunk)
        yield self._ending(released, prompt)

    def _generate_with_cache(self, *args: Any, **kwargs: Any) -> ChatResult:
        with Holding() as held:
            result = super()._generate_with_cache(*args, **kwargs)
        if not _unjudged(result):
            held.release()
        return result

    async def _agenerate_with_cache(self, *args: Any, **kwargs: Any) -> ChatResult:
        with Holding() as held:
            result = await super()._agenerate_with_cache(*args, **kwargs)
        if not _unjudged(result):
            await held.arelease()
        return result

    # -- tools and structured output ----------------------------------------------------------------------------------------

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools as the inner model does."""
        return self._rebound(self.model.bind_tools(tools, **kwargs))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Structured output as the inner model gives it; what it holds is moderated before it is parsed."""
        inner = self.model.with_structured_output(schema, include_raw=include_raw, **kwargs)
        guarded, found = self._put_in(inner)
        if not found:
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        return guarded  # type: ignore[no-any-return]

    def with_fallbacks(self, fallbacks: Sequence[Runnable[Any, Any]], **kwargs: Any) -> RunnableWithFallbacks[Any, Any]:
        """As for any runnable; warns of fallbacks that no guard stands in front of."""
        if not all(_is_guarded(each) for each in fallbacks):
            warn_of_fallbacks("guard_chain(model.with_fallbacks([other]), ...), or a ModeratedChatModel as fallback")
        return super().with_fallbacks(fallbacks, **kwargs)

    # -- what LangChain asks ------------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return f"moderated-{self.model._llm_type}"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on; the key of LLM caches, so that no guard is served what a laxer one let through."""
        return {
            "model": {"_type": self.model._llm_type, "class": type(self.model).__qualname__, **self.model._identifying_params},
            "bound": dict(self._bound),
            "guard": dict(identity(self.guard)),
            "moderator": dict(identity(self.moderator)),
            "refusal": self.refusal,
            "on_block": self.on_block,
            "on_review": self.on_review,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.model._get_ls_params(stop=stop, **{**self._bound, **kwargs})  # type: ignore[no-any-return]

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens as the inner model counts them."""
        return self.model.get_token_ids(text)  # type: ignore[no-any-return]

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Tokens as the inner model counts them."""
        return self.model.get_num_tokens_from_messages(messages, tools)  # type: ignore[no-any-return]

    # -- how ----------------------------------------------------------------------------------------------------------------

    def _judge_prompt(self, messages: list[BaseMessage]) -> Verdict | None:
        return None if self.guard is None else Judge(self.guard).worst([prompt_turns(messages)])[0]

    async def _ajudge_prompt(self, messages: list[BaseMessage]) -> Verdict | None:
        return None if self.guard is None else (await Judge(self.guard).aworst([prompt_turns(messages)]))[0]

    def _gated(self, verdict: Verdict | None) -> Verdict | ChatResult | None:
        """The verdict on a prompt that passes, or the answer to one that does not."""
        if verdict is None or not stops(verdict, self.on_review):
            return verdict
        if self.on_block == "raise":
            raise PromptBlockedError(verdict)
        return ChatResult(
            generations=[ChatGeneration(message=refusal_message(self.refusal, verdict, "prompt", usage=_NO_TOKENS))]
        )

    def _moderated(self, result: ChatResult, verdicts: Sequence[Verdict | None], prompt: Verdict | None) -> ChatResult:
        generations: list[ChatGeneration] = []
        for generation, verdict in zip(result.generations, verdicts, strict=True):
            message = generation.message
            assert isinstance(message, AIMessage)
            if verdict is not None and stops(verdict):
                if self.on_block == "raise":
                    raise ResponseBlockedError(verdict)
                refusal = refusal_message(self.refusal, verdict, "response", usage=message.usage_metadata, id=message.id)
                generations.append(ChatGeneration(message=refusal))
                continue
            shown = with_verdicts(message, prompt, verdict)
            generations.append(ChatGeneration(message=shown, generation_info=generation.generation_info))
        blocked = any(verdict is not None and stops(verdict) for verdict in verdicts)
        return ChatResult(generations=generations, llm_output=None if blocked else result.llm_output)

    def _ending(self, released: Released | AsyncReleased, prompt: Verdict | None) -> ChatGenerationChunk:
        verdict = released.verdict
        if not released.blocked or verdict is None:
            return ChatGenerationChunk(
                message=AIMessageChunk(
                    content="",
                    id=released.id,
                    response_metadata=metadata(prompt, verdict, released.within),
                    chunk_position="last",
                )
            )
        if self.on_block == "raise":
            raise ResponseBlockedError(verdict)
        message = refusal_chunk(self.refusal, verdict, "response", usage=released.usage, id=released.id)
        return ChatGenerationChunk(message=message)

    def _take_turn(self) -> None:
        if self.model.rate_limiter is not None and self.rate_limiter is None:
            self.model.rate_limiter.acquire(blocking=True)

    async def _atake_turn(self) -> None:
        if self.model.rate_limiter is not None and self.rate_limiter is None:
            await self.model.rate_limiter.aacquire(blocking=True)

    def _rebound(self, binding: Runnable[Any, Any], config: RunnableConfig | None = None) -> Runnable[Any, AIMessage]:
        """What the inner model bound to itself, bound to this one."""
        arguments: dict[str, Any] = {}
        while isinstance(binding, RunnableBinding):
            arguments = {**binding.kwargs, **arguments}
            config = {**(binding.config or {}), **(config or {})}
            binding = binding.bound
        mine = self if binding is self.model else self.model_copy(update={"model": binding})
        bound: Any = mine.bind(**arguments)
        return bound.with_config(config) if config else bound  # type: ignore[no-any-return]

    def _put_in(self, runnable: Any) -> tuple[Any, bool]:
        """The same runnable with this model in the place of the inner one, and whether that was found."""
        if isinstance(runnable, BaseChatModel):
            return self._rebound(runnable), True
        if isinstance(runnable, RunnableBinding):
            if isinstance(_innermost(runnable), BaseChatModel):
                return self._rebound(runnable), True
            inner, found = self._put_in(runnable.bound)
            return runnable.model_copy(update={"bound": inner}), found
        if isinstance(runnable, RunnableSequence):
            steps, known = zip(*(self._put_in(step) for step in runnable.steps), strict=True)
            return RunnableSequence(*steps, name=runnable.name), any(known)
        if isinstance(runnable, RunnableParallel):
            pairs = {name: self._put_in(step) for name, step in runnable.steps__.items()}
            return RunnableParallel({name: step for name, (step, _) in pairs.items()}), any(ok for _, ok in pairs.values())
        return runnable, False


def _innermost(runnable: Any) -> Any:
    while isinstance(runnable, RunnableBinding):
        runnable = runnable.bound
    return runnable


def _unbound(model: Any) -> tuple[BaseChatModel, Mapping[str, Any]]:
    """A chat model, and the arguments that were bound to it."""
    arguments: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        arguments = {**model.kwargs, **arguments}
        model = model.bound
    if not isinstance(model, BaseChatModel):
        raise ConfigurationError(f"model is {type(model).__name__}: pass a chat model; guard_chain takes any other runnable")
    arguments.pop("ls_structured_output_format", None)
    return model, arguments


def _unjudged(result: ChatResult) -> bool:
    """Whether a guard failed on the way to a result: the next call may fare better, so that no cache keeps it."""
    for generation in result.generations:
        told = generation.message.response_metadata.get(EVENT) or {}
        if any((told.get(side) or {}).get("error") for side in ("prompt", "response")):
            return True
    return False


def _is_guarded(runnable: Any) -> bool:
    return isinstance(_innermost(runnable), ModeratedChatModel) or getattr(_innermost(runnable), "guards_answers", False)


def _streams(model: BaseChatModel, arguments: Mapping[str, Any], *methods: str) -> bool:
    """Whether the inner model streams, as `BaseChatModel` decides it."""
    if model.disable_streaming is True or (model.disable_streaming == "tool_calling" and arguments.get("tools")):
        return False
    return any(getattr(type(model), name) is not getattr(BaseChatModel, name) for name in methods)


def _told(chunk: ChatGenerationChunk) -> AIMessage:
    """The message of a chunk with what the model tells beside it."""
    message = chunk.message
    assert isinstance(message, AIMessage)
    if not chunk.generation_info:
        return message
    return message.model_copy(update={"response_metadata": {**message.response_metadata, **chunk.generation_info}})


def _answer(result: ChatResult) -> AIMessage:
    generation = result.generations[0]
    message = generation.message
    assert isinstance(message, AIMessage)
    told = {**(result.llm_output or {}), **message.response_metadata, **(generation.generation_info or {})}
    return message.model_copy(update={"response_metadata": told})


def _message_chunk(message: AIMessage) -> AIMessageChunk:
    return as_chunk(message, message.content)


def _as_chunk(result: ChatResult) -> ChatGenerationChunk:
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=message.content,
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            chunk_position="last",
        )
    )
