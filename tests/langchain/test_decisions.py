"""GuardDecisionModel, where the installed langchain-core has decision models; otherwise what is said instead."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import langchain_mlpm_guard
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from mlpm_guard import ConfigurationError
from mlpm_guard.testing import MockGuard
from tests.langchain.support import BOMB, HELLO, ScriptedModel, prompt_guard, response_guard

HAS_DECISIONS = find_spec("langchain_core.decisions") is not None
needs_decisions = pytest.mark.skipif(not HAS_DECISIONS, reason="needs langchain-core 1.8: it has no decision models before")


@pytest.mark.skipif(HAS_DECISIONS, reason="this langchain-core has decision models")
def test_without_decision_models_the_name_is_not_offered_and_says_what_is_missing() -> None:
    assert "GuardDecisionModel" not in langchain_mlpm_guard.__all__
    with pytest.raises(ImportError, match=r"langchain-core 1\.8"):
        _ = langchain_mlpm_guard.GuardDecisionModel


def model(**options: Any) -> Any:
    return langchain_mlpm_guard.GuardDecisionModel(**{"guard": prompt_guard(), **options})


def question(name: str = "unsafe") -> dict[str, Any]:
    from langchain_core.decisions import Noul

    return {name: Noul(instructions="Is this unsafe?")}


@needs_decisions
@pytest.mark.parametrize(
    "state",
    [BOMB, HumanMessage(BOMB), [HumanMessage(BOMB)], {"messages": [HumanMessage(BOMB)]}, {"tool_call": {"args": {"q": BOMB}}}],
)
async def test_what_the_guard_blocks_is_at_least_an_even_chance(state: Any) -> None:
    asked = {"state": state, "questions": question()}
    assert model().invoke(asked).nouls["unsafe"].noul >= 0.5
    assert (await model().ainvoke(asked)).nouls["unsafe"].noul >= 0.5


@needs_decisions
def test_the_guards_threshold_lies_at_one_half_and_monitor_mode_never_reaches_it() -> None:
    def asked(score: float, **options: Any) -> float:
        guard = MockGuard(lambda text: score, **options)
        return float(model(guard=guard).invoke({"state": HELLO, "questions": question()}).nouls["unsafe"].noul)

    assert asked(0.6, threshold=0.9) < 0.5
    assert asked(0.91, threshold=0.9) >= 0.5
    assert asked(0.2, threshold=0.1) >= 0.5
    assert asked(0.99, threshold=0.1, mode="monitor") < 0.5
    assert asked(0.3) < asked(0.4) < asked(0.6) < asked(0.9)


@needs_decisions
def test_what_cannot_be_judged_counts_as_unsafe() -> None:
    fails = MockGuard(lambda text: 1 / 0)
    asked = {"state": HELLO, "questions": question()}
    assert model(guard=fails).invoke(asked).nouls["unsafe"].noul == 1.0


@needs_decisions
def test_other_questions_are_refused() -> None:
    from langchain_core.decisions import Choice

    with pytest.raises(ConfigurationError, match="is_polite"):
        model().invoke({"state": HELLO, "questions": question("is_polite")})
    with pytest.raises(ConfigurationError, match="choice"):
        model().invoke({"state": HELLO, "questions": {"unsafe": Choice(instructions="Which?", criteria={"a": "A", "b": "B"})}})
    with pytest.raises(ConfigurationError):
        model(guard=response_guard())


@needs_decisions
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_langchains_auto_mode_takes_it_as_its_classifier(way: str) -> None:
    from langchain.agents import create_agent
    from langchain.agents.middleware import AutoModeMiddleware

    ran: list[str] = []

    def post(text: str) -> str:
        """Post a text."""
        ran.append(text)
        return "posted"

    calls = [{"name": "post", "args": {"text": text}, "id": str(index)} for index, text in enumerate((BOMB, HELLO))]
    agent = create_agent(
        ScriptedModel(answers=[AIMessage("", tool_calls=calls), "done"]),
        tools=[post],
        middleware=[AutoModeMiddleware(tools=["post"], classifier=model())],
    )
    asked: Any = {"messages": [("user", "post it")]}
    state = await agent.ainvoke(asked) if way == "ainvoke" else agent.invoke(asked)
    assert ran == [HELLO]
    assert [message.status for message in state["messages"] if message.type == "tool"] == ["error", "success"]
