from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.prototypes.calibration import (
    affine_map,
    expected_calibration_error,
    needed,
    threshold_for_fpr,
    threshold_for_objective,
)
from mlpm_guard.prototypes.scorer import sigmoid


@pytest.mark.parametrize(("count", "max_fpr", "confidence"), [(2000, 0.01, 0.95), (500, 0.05, 0.9), (299, 0.01, 0.95)])
def test_the_promised_rate_is_kept_as_often_as_promised(count: int, max_fpr: float, confidence: float) -> None:
    """2,000 calibrations on uniform scores, whose false-positive rate at a threshold t is exactly 1 - t."""
    generator = np.random.default_rng(0)
    runs = 2000
    rates = np.array([1.0 - threshold_for_fpr(generator.random(count), max_fpr, confidence).threshold for _ in range(runs)])
    broken = (rates > max_fpr).mean()
    error = 3 * np.sqrt((1 - confidence) * confidence / runs)
    assert broken <= 1 - confidence + error
    # Not looser than need be: with one more flagged prompt the promise would no longer hold.
    flagged = threshold_for_fpr(generator.random(count), max_fpr, confidence).flagged
    assert binom.cdf(flagged, count, max_fpr) <= 1 - confidence < binom.cdf(flagged + 1, count, max_fpr)


def test_at_2000_prompts_the_bound_is_within_twice_the_best_possible() -> None:
    generator = np.random.default_rng(1)
    rates = [1.0 - threshold_for_fpr(generator.random(2000), 0.01, 0.95).threshold for _ in range(500)]
    assert np.mean(rates) >= 0.01 / 2


@pytest.mark.parametrize(("max_fpr", "confidence", "least"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.001, 0.99, 4603)])
def test_too_few_prompts_are_refused_with_how_many_are_needed(max_fpr: float, confidence: float, least: int) -> None:
    assert needed(max_fpr, confidence) == least
    with pytest.raises(DataError, match=rf"at least {least} are needed"):
        threshold_for_fpr(np.linspace(0, 0.5, least - 1), max_fpr, confidence)
    assert threshold_for_fpr(np.linspace(0, 0.5, least), max_fpr, confidence).flagged == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99]), min_size=60, max_size=200))
def test_ties_never_flag_more_than_is_allowed(scores: list[float]) -> None:
    point = threshold_for_fpr(scores, 0.05, 0.95)
    assert sum(score >= point.threshold for score in scores) == point.flagged
    assert binom.cdf(point.flagged, len(scores), 0.05) <= 0.05 or point.flagged == 0


def test_certain_scores_make_a_rate_unreachable_and_the_message_says_what_is() -> None:
    with pytest.raises(DataError, match=r"20 of 400 .* is reachable"):
        threshold_for_fpr([1.0] * 20 + [0.1] * 380, 0.01, 0.95)


@pytest.mark.parametrize(("max_fpr", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.01, 1.0), (float("nan"), 0.9)])
def test_rates_outside_their_range_are_refused(max_fpr: float, confidence: float) -> None:
    with pytest.raises(ConfigurationError):
        threshold_for_fpr([0.1] * 500, max_fpr, confidence)


@pytest.mark.parametrize("scores", [[float("nan")], [1.2], [-0.1]])
def test_what_is_no_probability_is_refused(scores: list[float]) -> None:
    with pytest.raises(DataError, match="probabilities"):
        threshold_for_fpr(scores, 0.5, 0.5)


def test_the_best_f1_and_the_recall_at_a_rate() -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
    labels = [0, 0, 0, 1, 0, 1, 1, 1]
    assert 0.3 < threshold_for_objective(scores, labels, "f1").threshold < 0.4
    strict = threshold_for_objective(scores, labels, "recall@fpr=0.1")
    assert 0.6 < strict.threshold < 0.7
    assert strict.flagged == 0
    assert threshold_for_objective(scores, labels, "recall@fpr=0.25").flagged == 1


@pytest.mark.parametrize("objective", ["recall", "recall@fpr=2", "F1", "recall@fpr=x"])
def test_an_unknown_objective_is_refused(objective: str) -> None:
    with pytest.raises(ConfigurationError, match="objective"):
        threshold_for_objective([0.1, 0.9], [0, 1], objective)


def test_an_objective_needs_both_classes_and_a_reachable_rate() -> None:
    with pytest.raises(DataError, match="both"):
        threshold_for_objective([0.1, 0.9], [0, 0], "f1")
    with pytest.raises(DataError, match="out of reach"):
        threshold_for_objective([0.9, 0.1], [0, 1], "recall@fpr=0.1")


def test_an_affine_map_is_found_again_and_calibrates() -> None:
    generator = np.random.default_rng(0)
    log_odds = generator.normal(0, 4, 20_000)
    labels = generator.random(20_000) < sigmoid(0.5 * log_odds - 1.0)
    scale, offset = affine_map(log_odds, labels)
    assert (scale, offset) == (pytest.approx(0.5, abs=0.02), pytest.approx(-1.0, abs=0.05))
    before = expected_calibration_error(sigmoid(log_odds), labels)
    after = expected_calibration_error(sigmoid(scale * log_odds + offset), labels)
    assert after < 0.015 < 0.1 < before


def test_an_affine_map_of_separable_scores_is_finite() -> None:
    scale, offset = affine_map([-3.0, -2.0, 2.0, 3.0], [0, 0, 1, 1])
    assert 0 < scale < 10
    assert abs(offset) < 1


def test_scores_that_rank_the_wrong_way_are_refused() -> None:
    with pytest.raises(DataError, match="labels"):
        affine_map([-3.0, -2.0, 2.0, 3.0], [1, 1, 0, 0])
    with pytest.raises(DataError, match="both"):
        affine_map([1.0, 2.0], [1, 1])
