"""GuardDecisionModel: a guard as langchain-core's decision model, for LangChain's own middleware. Needs langchain-core 1.8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.judging import Judge, is_guard
from langchain_mlpm_guard.messages import Turns, prompt_messages, prompt_turns, strings
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.verdict import Verdict

if find_spec("langchain_core.decisions") is None:
    raise ImportError(
        f"GuardDecisionModel needs langchain-core 1.8 or newer; this is {version('langchain-core')}:\n"
        'pip install --upgrade "langchain-core>=1.8"'
    )

from langchain_core.decisions import (  # type: ignore[import-not-found, unused-ignore]
    BaseDecisionModel,
    ClassifierResponse,
    NoulAnswer,
)

_LIMIT = 0.5
_BELOW = 0.4999


class GuardDecisionModel(BaseDecisionModel):  # type: ignore[misc, unused-ignore]
    """Answers one question, whether something is unsafe, and refuses all others: a guard knows nothing else.

    `AutoModeMiddleware(tools=["post"], classifier=GuardDecisionModel(guard=g))` blocks the calls whose arguments the guard
    blocks. LangChain's middleware compares probabilities with 0.5; so the guard's score is stretched until its threshold lies
    there, and 0.5 or more means exactly that the guard blocks. What the guard cannot judge follows its `on_error`.

    Args:
        guard: a `Guard` with `target="prompt"`, or anything with its `check` or `acheck`.
        model: a name, told in metadata.
        questions: names of the question under which callers may ask.

    Raises:
        ConfigurationError: the guard judges answers, or another question was asked.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    guard: SkipValidation[Any] = Field(exclude=True)
    model: str = "mlpm-guard"
    questions: Sequence[str] = ("unsafe", "is_unsafe", "is_risky")

    def __init__(self, **options: Any) -> None:
        with checked(self):
            super().__init__(**options)

    @model_validator(mode="after")
    def _complete(self) -> GuardDecisionModel:
        is_guard(self.guard, "prompt", "guard")
        return self

    @property
    def _provider(self) -> str:
        return "mlpm_guard"

    def _classify(self, state: Any, questions: Mapping[str, Any]) -> Any:
        self._known(questions)
        (verdict,) = Judge(self.guard).worst([_to_judge(state)])
        return self._answer(verdict, questions)

    async def _aclassify(self, state: Any, questions: Mapping[str, Any]) -> Any:
        self._known(questions)
        (verdict,) = await Judge(self.guard).aworst([_to_judge(state)])
        return self._answer(verdict, questions)

    def _known(self, questions: Mapping[str, Any]) -> None:
        for name, question in questions.items():
            if name not in self.questions or getattr(question, "type", None) != "noul":
                kind = getattr(question, "type", type(question).__name__)
                raise ConfigurationError(
                    f"a guard answers the yes-or-no questions {', '.join(self.questions)}, not {name!r} ({kind})"
                )

    def _answer(self, verdict: Verdict | None, questions: Mapping[str, Any]) -> Any:
        probability = _probability(verdict)
        answers = {name: NoulAnswer(type="noul", noul=probability) for name in questions}
        return ClassifierResponse(model=self.model, answers=answers)


def _probability(verdict: Verdict | None) -> float:
    if verdict is None:
        return 0.0
    if verdict.score is None:
        return 1.0 if verdict.blocked else 0.0
    score, threshold = verdict.score, verdict.threshold
    if score < threshold:
        stretched = _LIMIT * score / threshold
    else:
        stretched = _LIMIT + _LIMIT * (score - threshold) / (1.0 - threshold) if threshold < 1.0 else 1.0
    return max(stretched, _LIMIT) if verdict.blocked else min(stretched, _BELOW)


def _to_judge(state: Any) -> list[Turns]:
    """A proposed tool call is judged by its arguments; messages are judged as a model's prompt is."""
    if isinstance(state, Mapping) and "tool_call" in state:
        call = state["tool_call"]
        texts = strings(call.get("args", call) if isinstance(call, Mapping) else call)
    elif isinstance(state, Mapping) and "messages" in state:
        return prompt_turns(prompt_messages(state, "messages"))
    elif isinstance(state, Mapping):
        texts = strings(state)
    elif isinstance(state, (str, BaseMessage)) or (isinstance(state, Sequence) and len(state) > 0):
        return prompt_turns(prompt_messages(state))
    else:
        texts = strings(state)
    text = "\n".join(each for each in texts if each.strip())
    return [[{"role": "user", "content": text}]] if text else []
