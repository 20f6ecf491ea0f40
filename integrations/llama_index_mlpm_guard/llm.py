"""GuardedLLM: any model behind a guard and a moderator, for everything in LlamaIndex that takes a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
from llama_index.core.bridge.pydantic import Field, PrivateAttr, SerializeAsAny
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection

from llama_index_mlpm_guard import observed, replies
from llama_index_mlpm_guard.errors import PromptBlockedError
from llama_index_mlpm_guard.events import emit
from llama_index_mlpm_guard.gates import OnBlock, choice, prompt_guard
from llama_index_mlpm_guard.messages import as_conversation, last_user_turn, strings, thoughts, without_refused
from llama_index_mlpm_guard.moderation import AnswerModeration
from llama_index_mlpm_guard.pickling import refuse_to_lose
from llama_index_mlpm_guard.responses import PROMPT_VERDICT, RESPONSE_VERDICT
from llama_index_mlpm_guard.withholding import aquietly, quietly, withheld
from mlpm_guard import ConfigurationError, Guard, Verdict
from mlpm_guard.conversation import ConversationLike
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.segments import Every
from mlpm_guard.verdict import OnReview

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

R = TypeVar("R", ChatResponse, CompletionResponse)

_FROM_INNER = ("system_prompt", "messages_to_prompt", "completion_to_prompt", "output_parser", "pydantic_program_mode")


class GuardedLLM(FunctionCallingLLM):
    """Wraps a model: what it is asked is judged before it is called, what it answers before anybody reads it.

    For query engines, chat engines and agents, which keep their tools. In a stream both the deltas and the accumulated messages
    show released text only, so memories and agent events hold what the user saw. Thoughts and the arguments of tool calls are
    judged as text, and come with the last response of a stream. Verdicts are in `additional_kwargs` of the responses
    (`"prompt_verdict"`, `"response_verdict"`), never in messages, and emitted as `GuardDecisionEvent`.

    Judged is the last turn of the user, or the tool result behind it, alone and in its context. Earlier turns that were refused
    are taken out before the model and the guard see a conversation again. Acts on `Verdict.action` alone; fails closed as the
    guards' `on_error` says. LlamaIndex's observers learn of an answer what was released, once: the wrapped model's own
    reports are withheld.

    Args:
        llm: any model; its templates, metadata and tools remain in use.
        guard: a guard with `target="prompt"`; None to moderate answers only.
        moderator: a guard with `target="response"`, or anything with its `check`; None to judge prompts only.
        on_block: "replace" answers with the refusal; "raise" raises `PromptBlockedError` or `mlpm_guard.ResponseBlocked`.
        refusal: what "replace" says.
        hold_back: characters of a stream that stay back after they were judged, or "all"; see `StreamModerator`. "all" suits
            agents that read actions from text (`ReActAgent`): a blocked answer is then the refusal and nothing else.
        every: what of a stream is judged at once: a "sentence", or a number of tokens.
        on_review: what an action of "review" does, on a prompt or on an answer: "pass", or "block".

    Raises:
        ConfigurationError: an option has a bad value, neither guard nor moderator is given, the guard judges answers or the
            moderator prompts.
    """

    llm: SerializeAsAny[LLM]
    guard: Any = Field(default=None, exclude=True, repr=False)
    moderator: Any = Field(default=None, exclude=True, repr=False)
    on_block: str = "replace"
    refusal: str = DEFAULT_REFUSAL
    hold_back: int | str = 0
    every: int | str = "sentence"
    on_review: OnReview = "pass"

    _moderation: AnswerModeration | None = PrivateAttr(default=None)

    def __init__(
        self,
        llm: LLM,
        *,
        guard: Guard | None = None,
        moderator: Any = None,
        on_block: OnBlock = "replace",
        refusal: str = DEFAULT_REFUSAL,
        hold_back: int | Literal["all"] = 0,
        every: Every = "sentence",
        on_review: OnReview = "pass",
        **kwargs: Any,
    ) -> None:
        if not isinstance(llm, LLM):
            raise ConfigurationError(f"llm is {type(llm).__name__}: pass a LlamaIndex LLM")
        if guard is None and moderator is None:
            raise ConfigurationError("guard and moderator are both None: pass at least one")
        choice("on_block", on_block, ("replace", "raise"))
        choice("on_review", on_review, ("pass", "block"))
        if not isinstance(refusal, str) or not refusal.strip():
            raise ConfigurationError("refusal: a text that is not empty")
        moderation = (
            None
            if moderator is None
            else AnswerModeration(moderator, self.class_name(), on_block, refusal, hold_back, every, on_review)
        )
        for name in _FROM_INNER:
            kwargs.setdefault(name, getattr(llm, name))
        kwargs.setdefault("callback_manager", llm.callback_manager)
        super().__init__(
            llm=llm,
            guard=None if guard is None else prompt_guard(guard),
            moderator=moderator,
            on_block=on_block,
            refusal=refusal,
            hold_back=hold_back,
            every=every,
            on_review=on_review,
            **kwargs,
        )
        self._moderation = moderation

    @classmethod
    def class_name(cls) -> str:
        """Name under which the model is serialised."""
        return "GuardedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """That of the wrapped model."""
        return self.llm.metadata

    def __getstate__(self) -> dict[str, Any]:
        refuse_to_lose(self, "llm", "guard", "moderator")
        return super().__getstate__()

    # -- chat ---------------------------------------------------------------------------------------------------------------

    @observed.chat
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Judge, answer, judge."""
        messages = without_refused(messages, self.refusal)
        verdict = self._judged(as_conversation(messages))
        if verdict is not None and verdict.blocked:
            return self._refused(ChatResponse, verdict)
        with withheld():
            response = self.llm.chat(messages, **kwargs)
        judged = None
        if self._moderation is not None:
            judged = self._moderation.judge(last_user_turn(messages), self._everything(response))
        return self._settled(ChatResponse, response, verdict, judged)

    @observed.chat
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop."""
        messages = without_refused(messages, self.refusal)
        verdict = await self._ajudged(as_conversation(messages))
        if verdict is not None and verdict.blocked:
            return self._refused(ChatResponse, verdict)
        with withheld():
            response = await self.llm.achat(messages, **kwargs)
        judged = None
        if self._moderation is not None:
            judged = await self._moderation.ajudge(last_user_turn(messages), self._everything(response))
        return self._settled(ChatResponse, response, verdict, judged)

    @observed.chat
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as a stream. The prompt is judged before this returns."""
        messages = without_refused(messages, self.refusal)
        verdict = self._judged(as_conversation(messages))
        if verdict is not None and verdict.blocked:
            return _one(self._refused(ChatResponse, verdict))
        with withheld():
            source = self.llm.stream_chat(messages, **kwargs)
        if self._moderation is None:
            return quietly(source)
        return replies.stream(ChatResponse, self._moderation, last_user_turn(messages), source, self._arguments)

    @observed.chat
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` without blocking the event loop."""
        messages = without_refused(messages, self.refusal)
        verdict = await self._ajudged(as_conversation(messages))
        if verdict is not None and verdict.blocked:
            return _aone(self._refused(ChatResponse, verdict))
        with withheld():
            source = await self.llm.astream_chat(messages, **kwargs)
        if self._moderation is None:
            return aquietly(source)
        return replies.astream(ChatResponse, self._moderation, last_user_turn(messages), source, self._arguments)

    # -- completion ---------------------------------------------------------------------------------------------------------

    @observed.completion
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Judge, complete, judge."""
        verdict = self._judged(prompt)
        if verdict is not None and verdict.blocked:
            return self._refused(CompletionResponse, verdict)
        with withheld():
            response = self.llm.complete(prompt, formatted=formatted, **kwargs)
        judged = None if self._moderation is None else self._moderation.judge(_asked(prompt), response.text)
        return self._settled(CompletionResponse, response, verdict, judged)

    @observed.completion
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` without blocking the event loop."""
        verdict = await self._ajudged(prompt)
        if verdict is not None and verdict.blocked:
            return self._refused(CompletionResponse, verdict)
        with withheld():
            response = await self.llm.acomplete(prompt, formatted=formatted, **kwargs)
        judged = None if self._moderation is None else await self._moderation.ajudge(_asked(prompt), response.text)
        return self._settled(CompletionResponse, response, verdict, judged)

    @observed.completion
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as a stream. The prompt is judged before this returns."""
        verdict = self._judged(prompt)
        if verdict is not None and verdict.blocked:
            return _one(self._refused(CompletionResponse, verdict))
        with withheld():
            source = self.llm.stream_complete(prompt, formatted=formatted, **kwargs)
        if self._moderation is None:
            return quietly(source)
        return replies.stream(CompletionResponse, self._moderation, _asked(prompt), source, _nothing)

    @observed.completion
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` without blocking the event loop."""
        verdict = await self._ajudged(prompt)
        if verdict is not None and verdict.blocked:
            return _aone(self._refused(CompletionResponse, verdict))
        with withheld():
            source = await self.llm.astream_complete(prompt, formatted=formatted, **kwargs)
        if self._moderation is None:
            return aquietly(source)
        return replies.astream(CompletionResponse, self._moderation, _asked(prompt), source, _nothing)

    # -- tools --------------------------------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        return self._function_calling()._prepare_chat_with_tools_compat(
            tools,
            user_msg=user_msg,
            chat_history=chat_history,
            verbose=verbose,
            allow_parallel_tool_calls=allow_parallel_tool_calls,
            tool_required=tool_required,
            **kwargs,
        )

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        return self._function_calling()._validate_chat_with_tools_response(
            response, tools, allow_parallel_tool_calls=allow_parallel_tool_calls, **kwargs
        )

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Tool calls as the wrapped model reads them."""
        return self._function_calling().get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )

    def _function_calling(self) -> FunctionCallingLLM:
        if isinstance(self.llm, FunctionCallingLLM):
            return self.llm
        raise ConfigurationError(f"{self.llm.class_name()} does not call functions: give tools to a ReActAgent")

    # -- judging ------------------------------------------------------------------------------------------------------------

    def _judged(self, conversation: ConversationLike) -> Verdict | None:
        return None if self.guard is None else self._asked_with(self.guard.check(conversation))

    async def _ajudged(self, conversation: ConversationLike) -> Verdict | None:
        return None if self.guard is None else self._asked_with(await self.guard.acheck(conversation))

    def _asked_with(self, verdict: Verdict) -> Verdict:
        return emit("prompt", self.class_name(), verdict.resolved(self.on_review))

    def _refused(self, kind: type[R], verdict: Verdict) -> R:
        if self.on_block == "raise":
            raise PromptBlockedError(verdict)
        return replies.shown(kind, self.refusal, self.refusal, {PROMPT_VERDICT: verdict})

    def _settled(self, kind: type[R], reply: R, verdict: Verdict | None, judged: Verdict | None) -> R:
        verdicts = {PROMPT_VERDICT: verdict, RESPONSE_VERDICT: judged}
        if judged is not None and judged.blocked:
            return replies.shown(kind, self.refusal, self.refusal, verdicts)
        return replies.annotated(reply, verdicts)

    def _everything(self, response: ChatResponse) -> str:
        return "\n".join([response.message.content or "", *thoughts(response), *self._arguments(response)])

    def _arguments(self, response: ChatResponse) -> list[str]:
        if not isinstance(self.llm, FunctionCallingLLM) or not self.llm.metadata.is_function_calling_model:
            return []
        calls = self.llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        return [text for call in calls or [] for text in strings(call.tool_kwargs)]


def _asked(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def _nothing(_response: CompletionResponse) -> list[str]:
    return []


def _one(reply: R) -> Generator[R, None, None]:
    yield reply


async def _aone(reply: R) -> AsyncGenerator[R, None]:
    yield reply
