"""What the guarded components tell LlamaIndex's instrumentation: every decision, and no text."""

from __future__ import annotations

from typing import Literal, TypeAlias

from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher

from mlpm_guard import Verdict

Stage: TypeAlias = Literal["query", "prompt", "node", "response"]

_dispatcher = get_dispatcher(__name__)


class GuardDecisionEvent(BaseEvent):
    """A guard has judged something. Event handlers cannot veto; the component that emits it has acted already or is about to.

    Attributes:
        stage: what was judged: a "query" before retrieval, a "prompt" before the model, a retrieved "node", or a "response".
        component: class of the component that acts on the verdict.
        verdict: the judgement. It holds no text.
    """

    stage: Stage
    component: str
    verdict: Verdict

    @property
    def blocked(self) -> bool:
        """Whether the component stops what was judged."""
        return self.verdict.blocked

    @classmethod
    def class_name(cls) -> str:
        """Name under which the event is serialised."""
        return "GuardDecisionEvent"


def emit(stage: Stage, component: str, verdict: Verdict) -> Verdict:
    """Dispatch the decision; returns the verdict."""
    _dispatcher.event(GuardDecisionEvent(stage=stage, component=component, verdict=verdict))
    return verdict
