"""Everything behind a verdict: every piece, every class, no text."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from mlpm_guard import EmptyInputError, Explanation, Guard, GuardTimeoutError, NotFittedError, Rules
from mlpm_guard.testing import MockEncoder, MockGuard
from tests.conftest import SAFE, UNSAFE

HARM = "tell me this unsafe thing"
CALM = "tell me about gardens"
LONG = "The garden is calm and the birds sing in it today. " * 20 + f"{HARM} and do not tell. "


@pytest.mark.parametrize("text", [HARM, CALM, LONG, "tell me this un\u200bsafe thing"])
def test_the_verdict_is_the_one_that_checking_gives(mock_guard: Guard, text: str) -> None:
    explanation = mock_guard.explain(text)
    assert explanation.verdict == mock_guard.check(text)
    assert asyncio.run(mock_guard.aexplain(text)) == explanation


@pytest.mark.parametrize("text", [CALM, LONG])
def test_every_window_adds_up_and_the_one_that_decides_is_the_verdicts(mock_guard: Guard, text: str) -> None:
    explanation = mock_guard.explain(text)
    verdict = explanation.verdict
    assert len(explanation.windows) == verdict.windows
    for window in explanation.windows:
        total = window.intercept + sum(layer.contribution for layer in window.layers)
        assert total == pytest.approx(window.log_odds, abs=1e-9)
        assert window.score == pytest.approx(1 / (1 + np.exp(-window.log_odds)))
        assert (window.margin > 0.0) == (window.where.kind != "whole")
    (deciding,) = [window for window in explanation.windows if window.decides]
    assert (deciding.where, deciding.score, deciding.novelty) == (verdict.window, verdict.score, verdict.novelty)
    assert (deciding.layers, deciding.intercept) == (verdict.layers, verdict.intercept)
    assert deciding.score == max(window.score for window in explanation.windows)


def test_distances_to_the_classes_come_nearest_first_and_sum_over_layers(mock_guard: Guard) -> None:
    for text, nearest in ((UNSAFE[0], "unsafe"), (SAFE[0], "safe")):
        explanation = mock_guard.explain(text)
        assert explanation.prototypes[0].name == nearest
        assert {each.name for each in explanation.prototypes} == {"safe", "unsafe"}
        assert explanation.prototypes[0].distance <= explanation.prototypes[1].distance
        for each in explanation.prototypes:
            assert each.distance == pytest.approx(sum(layer.distance for layer in each.layers))
            assert [layer.layer for layer in each.layers] == [layer.layer for layer in explanation.verdict.layers]


def test_it_survives_json_and_holds_no_text(mock_guard: Guard) -> None:
    explanation = mock_guard.explain("a secret unsafe plan")
    assert Explanation.model_validate_json(explanation.model_dump_json()) == explanation
    assert "secret" not in explanation.model_dump_json() + repr(explanation)


def test_what_a_rule_decides_has_no_windows(mock_guard: Guard) -> None:
    mock_guard.rules = Rules(block=["gardens"])
    explanation = mock_guard.explain(CALM)
    assert explanation.verdict.rule is not None
    assert (explanation.windows, explanation.prototypes) == ((), ())


async def test_failures_are_verdicts_or_errors_as_in_checking(mock_guard: Guard) -> None:
    for explanation in (mock_guard.explain(""), await mock_guard.aexplain("")):
        assert explanation.verdict == mock_guard.check("")
        assert explanation.windows == ()
    mock_guard.on_error = "raise"
    with pytest.raises(EmptyInputError):
        mock_guard.explain("")
    with pytest.raises(EmptyInputError):
        await mock_guard.aexplain("")
    with pytest.raises(NotFittedError):
        Guard(MockEncoder()).explain(CALM)


async def test_the_time_out_holds() -> None:
    guard = MockGuard(delay=30.0, timeout=0.05)
    assert guard.explain(CALM).verdict.error == "timeout"
    assert (await guard.aexplain(CALM)).verdict.error == "timeout"
    guard.on_error = "raise"
    with pytest.raises(GuardTimeoutError):
        guard.explain(CALM)


def test_a_mock_guard_explains_too() -> None:
    explanation = MockGuard(lambda text: "unsafe" in text).explain(HARM)
    assert explanation.verdict.flagged
    assert [window.decides for window in explanation.windows] == [True]
    assert explanation.prototypes == ()
