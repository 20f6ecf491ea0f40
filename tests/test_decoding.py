"""What a span of generated tokens says together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlpm_guard.decoding import DecodeMonitor
from mlpm_guard.errors import NonFiniteError
from mlpm_guard.prototypes.scorer import LayerScorer

SCORER = LayerScorer(np.arange(2), np.zeros((2, 4)), np.zeros(2), np.array([0.5, 0.25]), -1.0, (-4.0, 4.0))
HARMFUL = np.array([12.0, 8.0])


def evidence(*tokens: Any, span: int = 16) -> Any:
    """Evidence on the last `span` of some tokens, by the log-odds of two layers each."""
    policy: Any = SimpleNamespace(scorer=SCORER, categories=SimpleNamespace(biases=np.empty(0)))
    monitor = DecodeMonitor(
        None,  # type: ignore[arg-type]
        policy,
        [None],  # type: ignore[list-item]
        every=1,
        span=span,
        ends=frozenset(),
        answered=lambda *_: None,  # type: ignore[arg-type,return-value]
        released=None,
    )
    monitor.start(1)
    monitor._log_odds[0] = [np.asarray(each, np.float64) for each in tokens]
    monitor._categories[0] = [np.empty((0, 2)) for _ in tokens]
    return monitor._evidence(0, span)


def test_a_span_says_the_mean_of_what_its_tokens_say_in_every_layer() -> None:
    found = evidence([100.0, 100.0], [2.0, -4.0], [6.0, 8.0], span=2)
    assert found.layer_log_odds.tolist() == [4.0, 2.0]
    assert found.log_odds == pytest.approx(0.5 * 4.0 + 0.25 * 2.0 - 1.0)


@pytest.mark.parametrize("odd", [-60.0, -1e6])
def test_one_odd_token_does_not_outvote_a_harmful_answer(odd: float) -> None:
    assert evidence(*[HARMFUL] * 15, [odd, odd]).log_odds > 0.8 * evidence(*[HARMFUL] * 16).log_odds - 2.0
    assert evidence(*[HARMFUL] * 15, [odd, odd]).log_odds == evidence(*[HARMFUL] * 15, [-20.0, -20.0]).log_odds


def test_states_that_give_no_number_give_an_error() -> None:
    assert isinstance(evidence(HARMFUL, [np.nan, 0.0]), NonFiniteError)
    assert isinstance(evidence(HARMFUL, [np.inf, 0.0]), NonFiniteError)
