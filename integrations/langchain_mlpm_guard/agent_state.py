"""What a guarded agent keeps in its state, and which of its messages are new. Needs `langchain`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware.types import AgentState, OmitFromInput, PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from typing_extensions import TypedDict

from langchain_mlpm_guard.judging import Stage, record
from langchain_mlpm_guard.messages import Turns, conversation, message_text, other_texts
from mlpm_guard.verdict import Verdict


class GuardVerdict(TypedDict):
    """The last verdict of a run, as plain data; `Verdict.model_validate(state["guard_verdict"]["verdict"])` gives it back.

    Attributes:
        stage: "prompt", "response", "tool_call" or "tool_result".
        blocked: whether something was stopped.
        verdict: the verdict's fields, evidence per layer left out.
    """

    stage: Stage
    blocked: bool
    verdict: dict[str, Any]


def _latest(_before: GuardVerdict | None, new: GuardVerdict | None) -> GuardVerdict | None:
    """Tools that run side by side may each write a verdict."""
    return new


class GuardState(AgentState[Any]):
    """An agent's state with what its guard has found."""

    guard_verdict: NotRequired[Annotated[GuardVerdict | None, OmitFromInput, _latest]]
    _guard_seen: NotRequired[Annotated[list[str], PrivateStateAttr]]
    _guard_error: NotRequired[Annotated[dict[str, Any] | None, PrivateStateAttr]]


@dataclass(frozen=True)
class Judged:
    """A message to judge, with everything before it."""

    message: AnyMessage
    turns: Turns = field(repr=False)


def as_state(stage: Stage, verdict: Verdict, *, blocked: bool) -> GuardVerdict:
    """A verdict as state."""
    return {"stage": stage, "blocked": blocked, "verdict": record(verdict)}


def new_messages(state: GuardState) -> list[Judged]:
    """Messages to judge in this run: everything behind the last answer, and older user messages that were never judged.

    A client that sends a history of its own, or changes a message under its old id, cannot put one past the guard.
    """
    messages = state["messages"]
    seen = set(state.get("_guard_seen") or ())
    last = max((index for index, message in enumerate(messages) if isinstance(message, AIMessage)), default=-1)
    turns = conversation(messages)
    return [
        Judged(message, turns[: index + 1])
        for index, message in enumerate(messages)
        if (isinstance(message, HumanMessage) and (index > last or digest(message) not in seen))
        or (isinstance(message, ToolMessage) and index > last and (message_text(message).strip() or other_texts(message)))
    ]


def digest(message: AnyMessage) -> str:
    """What tells a message that was judged from one that was not; kept beside the message itself, and gone with it."""
    text = repr((message.id, message.content)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()
