"""GuardMiddleware: an agent's prompts, answers, tool calls and tool results, judged by guards. Needs `langchain`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from langchain_core.callbacks.manager import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import ensure_config

from langchain_mlpm_guard.agent_state import GuardState, Judged, as_state, digest, new_messages
from langchain_mlpm_guard.answers import Moderator
from langchain_mlpm_guard.chat_models import ModeratedChatModel
from langchain_mlpm_guard.errors import PromptBlockedError, ResponseBlockedError
from langchain_mlpm_guard.judging import EVENT, Judge, Stage, event, is_guard, stops
from langchain_mlpm_guard.messages import Turns, conversation, message_text, other_texts, strings
from langchain_mlpm_guard.refusals import emptied, refusal_message
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.verdict import Action, Verdict

if find_spec("langchain") is None:
    raise ImportError('GuardMiddleware needs langchain, which is not installed:\npip install "mlpm-guard[langchain]"')

from langchain.agents.middleware.types import (
    AgentMiddleware,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    ToolCallRequest,
    TracePolicy,
    hook_config,
    omit_payload,
)
from langchain.agents.structured_output import StructuredOutputError
from langgraph.types import Command, interrupt

OnReview = Literal["pass", "block", "interrupt"]
_APPROVALS = ("approve", "approved", True)


class GuardMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Guards an agent: `create_agent(model, tools, middleware=[GuardMiddleware(guard=g, moderator=m)])`.

    New user messages are judged once per run, before anything else happens; errors raised there pass by fallback and retry
    middleware. The model answers through a `ModeratedChatModel`, so that no stream, callback or checkpoint holds a blocked
    answer, and whatever model another middleware puts in its place is moderated too. Tool arguments are judged before a tool
    runs, and tool results before the model reads them.

    What is blocked leaves the saved state: user messages are removed, answers and results replaced. Earlier checkpoints of a
    thread keep what came in, unless the agent is run with `durability="exit"`. State holds the last verdict under
    "guard_verdict", without text. Fails closed as the guards do.

    Args:
        guard: judges prompts, tool arguments and tool results: a `Guard` with `target="prompt"`.
        moderator: judges answers: a `Guard` with `target="response"`; None lets all answers pass.
        exit_behavior: on a blocked prompt or answer: "end" says the violation message and ends the run; "error" raises
            `PromptBlockedError` or `ResponseBlockedError`; "replace" puts the violation message in its place and goes on. A
            blocked tool call or result is withheld with an error message to the model, or raises with "error".
        violation_message: what the user reads.
        check_input: judge user messages.
        check_output: judge answers.
        check_tool_calls: judge the arguments of tool calls.
        check_tool_results: judge what tools return (indirect prompt injection).
        on_review: what to do with a borderline prompt: "pass", "block", or "interrupt" for a human, which needs a checkpointer;
            resuming with "approve" lets it pass, with anything else blocks it.
        review_threshold: probability from which a prompt that is not blocked is borderline; None leaves it to the guard.
        stream_options: of the `StreamModerator` that answers go through (`hold_back`, `every`, `context`, `unit`).

    Raises:
        ConfigurationError: a guard has the wrong target, or an option has a bad value.
    """

    state_schema = GuardState
    trace_policy = TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)

    def __new__(cls, *_: Any, exit_behavior: str = "end", **__: Any) -> GuardMiddleware:
        """The class that raises has one hook more, and LangChain makes a node of every hook that a class has."""
        return super().__new__(_Raising if cls is GuardMiddleware and exit_behavior == "error" else cls)

    def __init__(
        self,
        guard: Any,
        *,
        moderator: Any = None,
        exit_behavior: Literal["end", "error", "replace"] = "end",
        violation_message: str = DEFAULT_REFUSAL,
        check_input: bool = True,
        check_output: bool = True,
        check_tool_calls: bool = True,
        check_tool_results: bool = True,
        on_review: OnReview = "pass",
        review_threshold: float | None = None,
        stream_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        is_guard(guard, "prompt", "guard")
        if moderator is not None:
            is_guard(moderator, "response", "moderator")
        for name, value, choices in (
            ("exit_behavior", exit_behavior, ("end", "error", "replace")),
            ("on_review", on_review, ("pass", "block", "interrupt")),
        ):
            if value not in choices:
                raise ConfigurationError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        if not isinstance(violation_message, str) or not violation_message:
            raise ConfigurationError("violation_message: a text that is not empty")
        if review_threshold is not None and not 0.0 <= review_threshold <= 1.0:
            raise ConfigurationError(f"review_threshold={review_threshold!r}: a probability from 0 to 1, or None")
        self.guard = guard
        self.moderator = moderator if check_output else None
        self.exit_behavior = exit_behavior
        self.violation_message = violation_message
        self.check_input = check_input
        self.check_tool_calls = check_tool_calls
        self.check_tool_results = check_tool_results
        self.on_review = on_review
        self.review_threshold = review_threshold
        self._options = dict(stream_options or {})
        self._moderator = None if self.moderator is None else Moderator(self.moderator, self._options)

    @property
    def name(self) -> str:
        """The middleware's name in graphs and streams."""
        return GuardMiddleware.__name__

    # -- prompts ------------------------------------------------------------------------------------------------------------

    @hook_config(can_jump_to=["end"])
    def before_agent(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Judge the run's new messages."""
        if not (new := self._new(state)):
            return {"guard_verdict": None, "_guard_error": None}
        verdicts = Judge(self.guard).check([each.turns for each in new])
        _tell(verdicts, "prompt", [self._stops(each) for each in verdicts])
        return self._decided(state, new, verdicts)

    @hook_config(can_jump_to=["end"])
    async def abefore_agent(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """`before_agent` without blocking the event loop."""
        if not (new := self._new(state)):
            return {"guard_verdict": None, "_guard_error": None}
        verdicts = await Judge(self.guard).acheck([each.turns for each in new])
        await _atell(verdicts, "prompt", [self._stops(each) for each in verdicts])
        return self._decided(state, new, verdicts)

    def _new(self, state: GuardState) -> list[Judged]:
        return new_messages(state) if self.check_input else []

    def _decided(self, state: GuardState, new: Sequence[Judged], verdicts: Sequence[Verdict]) -> dict[str, Any]:
        pairs = list(zip(new, verdicts, strict=True))
        if (borderline := [verdict for _, verdict in pairs if self._borderline(verdict)]) and not _approved(borderline):
            refused = {id(verdict) for verdict in borderline}
        else:
            refused = set()
        blocked = [(each, verdict) for each, verdict in pairs if self._stops(verdict) or id(verdict) in refused]
        worst = max(blocked or pairs, key=lambda pair: (pair[1].blocked, pair[1].error is not None, pair[1].score or 0.0))[1]
        kept = {id(each.message) for each, _ in blocked}
        update: dict[str, Any] = {
            "_guard_error": None,
            "guard_verdict": as_state("prompt", worst, blocked=bool(blocked)),
            "_guard_seen": [digest(m) for m in state["messages"] if isinstance(m, HumanMessage) and id(m) not in kept],
        }
        if not blocked:
            return update
        if self.exit_behavior == "replace":
            update["messages"] = [emptied(each.message) for each, _ in blocked]
            update["_guard_seen"] += [digest(message) for message in update["messages"] if isinstance(message, HumanMessage)]
            return update
        removed = [RemoveMessage(id=str(each.message.id)) for each, _ in blocked]
        if self.exit_behavior == "error":
            return {**update, "messages": removed, "jump_to": "end", "_guard_error": worst.model_dump(mode="json")}
        answer = refusal_message(self.violation_message, worst, "prompt")
        return {**update, "messages": [*removed, answer], "jump_to": "end"}

    def _stops(self, verdict: Verdict) -> bool:
        return stops(verdict, "block" if self.on_review == "block" else "pass") or (
            self.on_review == "block" and self._in_doubt(verdict)
        )

    def _in_doubt(self, verdict: Verdict) -> bool:
        if verdict.blocked:
            return False
        floor = self.review_threshold
        return verdict.action == Action.REVIEW or (floor is not None and verdict.score is not None and verdict.score >= floor)

    def _borderline(self, verdict: Verdict) -> bool:
        return self.on_review == "interrupt" and self._in_doubt(verdict)

    # -- answers ------------------------------------------------------------------------------------------------------------

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """Let the model answer under moderation."""
        if self._moderator is None:
            return handler(request)
        try:
            response = handler(self._moderated(request))
        except StructuredOutputError as error:
            response = _refused(error)
        unjudged = _unjudged(response)
        if unjudged:
            asked = [conversation(request.messages)] * len(unjudged)
            verdicts = self._moderator.check(asked, unjudged)
            response = self._replaced(response, unjudged, verdicts)
        found = _told(response)
        if found is not None:
            _tell([found[0]], "response", [found[1]])
        return self._answered(response, found)

    async def awrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]) -> Any:
        """`wrap_model_call` without blocking the event loop."""
        if self._moderator is None:
            return await handler(request)
        try:
            response = await handler(self._moderated(request))
        except StructuredOutputError as error:
            response = _refused(error)
        unjudged = _unjudged(response)
        if unjudged:
            asked = [conversation(request.messages)] * len(unjudged)
            verdicts = await self._moderator.acheck(asked, unjudged)
            response = self._replaced(response, unjudged, verdicts)
        found = _told(response)
        if found is not None:
            await _atell([found[0]], "response", [found[1]])
        return self._answered(response, found)

    def _moderated(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        return _GuardedRequest.of(request, self._moderated_model)

    def _moderated_model(self, model: Any) -> Any:
        if isinstance(model, ModeratedChatModel) and model.moderator is self.moderator:
            return model
        return ModeratedChatModel(
            model=model,
            moderator=self.moderator,
            refusal=self.violation_message,
            on_block="raise" if self.exit_behavior == "error" else "replace",
            stream_options=self._options,
        )

    def _replaced(self, response: Any, messages: Sequence[AIMessage], verdicts: Sequence[Verdict | None]) -> Any:
        """A response with refusals in the place of answers that came around the moderated model and were blocked."""
        blocked = {id(each): verdict for each, verdict in zip(messages, verdicts, strict=True) if verdict and stops(verdict)}
        if not blocked:
            return response
        if self.exit_behavior == "error":
            raise ResponseBlockedError(next(iter(blocked.values())))
        return ModelResponse(
            result=[
                refusal_message(self.violation_message, blocked[id(each)], "response", id=each.id)
                if id(each) in blocked
                else each
                for each in response.result
                if id(each) in blocked or not isinstance(each, ToolMessage)
            ]
        )

    def _answered(self, response: Any, found: tuple[Verdict, bool] | None) -> Any:
        if found is None:
            return response
        state = as_state("response", found[0], blocked=found[1])
        return ExtendedModelResponse(model_response=response, command=Command(update={"guard_verdict": state}))

    # -- tools --------------------------------------------------------------------------------------------------------------

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """Judge a tool's arguments, run it, and judge its result."""
        (verdict,) = Judge(self.guard).worst([self._arguments(request)])
        if verdict is not None:
            _tell([verdict], "tool_call", [self._stops(verdict)])
            if self._stops(verdict):
                return self._withheld(request, verdict, "tool_call")
        result = handler(request)
        (verdict,) = Judge(self.guard).worst([self._result(result)])
        if verdict is not None:
            _tell([verdict], "tool_result", [self._stops(verdict)])
            if self._stops(verdict):
                return self._withheld(request, verdict, "tool_result")
        return result

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]) -> Any:
        """`wrap_tool_call` without blocking the event loop."""
        (verdict,) = await Judge(self.guard).aworst([self._arguments(request)])
        if verdict is not None:
            await _atell([verdict], "tool_call", [self._stops(verdict)])
            if self._stops(verdict):
                return self._withheld(request, verdict, "tool_call")
        result = await handler(request)
        (verdict,) = await Judge(self.guard).aworst([self._result(result)])
        if verdict is not None:
            await _atell([verdict], "tool_result", [self._stops(verdict)])
            if self._stops(verdict):
                return self._withheld(request, verdict, "tool_result")
        return result

    def _arguments(self, request: ToolCallRequest) -> list[Turns]:
        return _to_judge("user", strings(request.tool_call["args"])) if self.check_tool_calls else []

    def _result(self, result: Any) -> list[Turns]:
        if not self.check_tool_results:
            return []
        if isinstance(result, BaseMessage):
            return _to_judge("tool", [message_text(result), *other_texts(result)])
        return _to_judge("tool", strings(result.update if isinstance(result, Command) else result))

    def _withheld(self, request: ToolCallRequest, verdict: Verdict, stage: Stage) -> Command[Any]:
        if self.exit_behavior == "error":
            raise PromptBlockedError(verdict)
        call = request.tool_call
        what = "call was not run" if stage == "tool_call" else "result was withheld"
        told = ToolMessage(
            content=f"The tool {what}: it was blocked by the guard.",
            tool_call_id=str(call["id"]),
            name=call["name"],
            status="error",
        )
        messages: list[AnyMessage] = [told]
        if stage == "tool_call":
            messages = [*_without_arguments(request.state, call["id"]), told]
        return Command(update={"messages": messages, "guard_verdict": as_state(stage, verdict, blocked=True)})


class _Raising(GuardMiddleware):
    """Raises behind the step that has removed the blocked messages, so that the thread is rid of them."""

    def after_agent(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:  # noqa: ARG002
        """Raise what `before_agent` found."""
        found = state.get("_guard_error")
        if found is not None:
            raise PromptBlockedError(Verdict.model_validate(found))
        return None

    async def aafter_agent(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:
        """Raise what `before_agent` found."""
        return self.after_agent(state, runtime)


@dataclass(init=False)
class _GuardedRequest(ModelRequest[Any]):
    """A request whose model stays moderated, whatever a middleware further in puts in its place."""

    moderate: Callable[[Any], Any] | None = None

    def __init__(self, *, moderate: Callable[[Any], Any], **fields: Any) -> None:
        super().__init__(**fields)
        object.__setattr__(self, "moderate", moderate)

    @classmethod
    def of(cls, request: ModelRequest[Any], moderate: Callable[[Any], Any]) -> _GuardedRequest:
        """The same request with a moderated model."""
        fields = {name: getattr(request, name) for name in ModelRequest.__dataclass_fields__}
        return cls(moderate=moderate, **{**fields, "model": moderate(request.model)})

    def override(self, **overrides: Any) -> ModelRequest[Any]:
        """See `ModelRequest`."""
        if "model" in overrides and self.moderate is not None:
            overrides["model"] = self.moderate(overrides["model"])
        return super().override(**overrides)


def _approved(borderline: Sequence[Verdict]) -> bool:
    """Ask a human; whoever does not approve, refuses."""
    worst = max(borderline, key=lambda verdict: verdict.score or 0.0)
    answer = interrupt({"reason": "review", **event(worst, "prompt", blocked=False)})
    if isinstance(answer, Mapping):
        answer = answer.get("type") or answer.get("decision")
    return answer in _APPROVALS


def _without_arguments(state: Any, call: str | None) -> list[AnyMessage]:
    """The message that asked for a tool call, without the arguments of its calls."""
    messages = state.get("messages", []) if isinstance(state, Mapping) else []
    for message in reversed(messages):
        if isinstance(message, AIMessage) and any(each["id"] == call for each in message.tool_calls):
            calls = [{**each, "args": {}} for each in message.tool_calls]
            text, usage = message_text(message), message.usage_metadata
            return [AIMessage(content=text, id=message.id, name=message.name, tool_calls=calls, usage_metadata=usage)]
    return []


def _to_judge(role: str, texts: Sequence[str]) -> list[Turns]:
    text = "\n".join(dict.fromkeys(each for each in texts if each.strip()))
    return [[{"role": role, "content": text}]] if text else []


def _unjudged(response: Any) -> list[AIMessage]:
    """Answers that came around the moderated model: another middleware made them, or called a model of its own."""
    return [each for each in response.result if isinstance(each, AIMessage) and EVENT not in each.response_metadata]


def _told(response: Any) -> tuple[Verdict, bool] | None:
    """The verdict that a response's last answer tells, and whether it was blocked."""
    for message in reversed(response.result):
        found = message.response_metadata.get(EVENT) if isinstance(message, AIMessage) else None
        if found and "response" in found:
            return Verdict.model_validate(found["response"]), found["blocked"] is not None
    return None


def _refused(error: StructuredOutputError) -> ModelResponse[Any]:
    """The response behind an error that only says that a refusal is not the structured output which was asked for."""
    message = getattr(error, "ai_message", None)
    if isinstance(message, AIMessage) and (message.response_metadata.get(EVENT) or {}).get("blocked"):
        return ModelResponse(result=[message])
    raise error


def _tell(verdicts: Sequence[Verdict], stage: Stage, blocked: Sequence[bool]) -> None:
    if ensure_config().get("callbacks"):
        for verdict, stopped in zip(verdicts, blocked, strict=True):
            dispatch_custom_event(EVENT, event(verdict, stage, blocked=stopped))


async def _atell(verdicts: Sequence[Verdict], stage: Stage, blocked: Sequence[bool]) -> None:
    if ensure_config().get("callbacks"):
        for verdict, stopped in zip(verdicts, blocked, strict=True):
            await adispatch_custom_event(EVENT, event(verdict, stage, blocked=stopped))
