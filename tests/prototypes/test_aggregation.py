"""Recalibration and the sparse aggregation of layers."""

from __future__ import annotations

import numpy as np
import pytest

from mlpm_guard.prototypes.aggregation import fit_layer_weights, recalibrate

RNG = np.random.default_rng(5)
LABELS = np.repeat([0, 1], 4000)
ONCE = np.ones(len(LABELS))


def gaussian_scores(separation: float) -> np.ndarray:
    """Scores of two Gaussian classes with unit variance, whose true log-odds are `separation * (score - separation / 2)`."""
    return RNG.normal(size=len(LABELS)) + separation * LABELS


@pytest.mark.parametrize("factor", [1e-3, 1.0, 500.0])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_recalibration_finds_the_true_log_odds_whatever_scale_and_shift_hid_them(factor: float, shift: float) -> None:
    scores = gaussian_scores(2.0)
    scales, offsets = recalibrate((factor * scores + shift)[:, None], LABELS, ONCE)
    found = scales[0] * (factor * scores + shift - offsets[0])
    np.testing.assert_allclose(found, 2.0 * (scores - 1.0), atol=0.35)


def test_repeated_prompts_count_as_often_as_they_were_learned() -> None:
    scores = np.array([[0.0], [2.0], [5.0], [7.0]])
    labels = np.array([0, 0, 1, 1])
    times = np.array([3.0, 1.0, 1.0, 2.0])
    repeated = recalibrate(np.repeat(scores, times.astype(int), axis=0), np.repeat(labels, times.astype(int)), np.ones(7))
    np.testing.assert_allclose(recalibrate(scores, labels, times), repeated)


def test_a_layer_that_separates_nothing_or_the_wrong_way_gets_next_to_no_scale() -> None:
    scores = np.stack([gaussian_scores(2.0), gaussian_scores(0.0), -gaussian_scores(2.0), np.full(len(LABELS), 3.0)], axis=1)
    scales, offsets = recalibrate(scores, LABELS, ONCE)
    assert np.isfinite(scales).all()
    assert np.isfinite(offsets).all()
    assert scales[0] > 1.5
    assert abs(scales[1]) < 0.1
    assert 0 < scales[2] < 0.01


def test_both_classes_count_the_same_however_many_prompts_they_have() -> None:
    scores = gaussian_scores(1.0)
    few = np.concatenate([np.flatnonzero(LABELS == 0), np.flatnonzero(LABELS == 1)[:400]])
    weights, intercept = fit_layer_weights(scores[few, None] - 0.5, LABELS[few], ONCE[few], 1.0, [4000, 400])
    assert weights[0] > 0.5
    assert abs(intercept) < 0.15


def test_when_no_layer_survives_the_penalty_all_count_alike() -> None:
    scores = np.stack([gaussian_scores(1.0), gaussian_scores(1.0)], axis=1)
    weights, _ = fit_layer_weights(scores, LABELS, ONCE, 1e-9, [4000, 4000])
    assert weights[0] == weights[1] > 0


def test_no_layer_counts_against_what_it_sees() -> None:
    # The second layer is the first one's noise: unconstrained, it would be taken off.
    noise = RNG.normal(size=len(LABELS))
    scores = np.stack([2.0 * LABELS - 1.0 + 2.0 * noise, noise + 0.2 * LABELS - 0.1, gaussian_scores(1.0) - 0.5], axis=1)
    weights, _ = fit_layer_weights(scores, LABELS, ONCE, 1.0, [4000, 4000])
    assert (weights >= 0.0).all()
    assert weights[0] > 0.0
    assert weights[1] == 0.0


def test_what_is_clearer_than_all_that_was_learned_scores_higher_still() -> None:
    scores = gaussian_scores(6.0)[:, None] - 3.0
    weights, intercept = fit_layer_weights(scores, LABELS, ONCE, 1.0, [4000, 4000])
    clear, clearer = (float(np.array([6.0 * each]) @ weights + intercept) for each in (3.0, 6.0))
    assert clearer - clear > 5.0


def test_a_layer_that_tells_nothing_gets_no_weight() -> None:
    scores = np.stack([gaussian_scores(2.0), gaussian_scores(0.0)], axis=1) - 1.0
    scales, offsets = recalibrate(scores, LABELS, ONCE)
    weights, _ = fit_layer_weights(scales * (scores - offsets), LABELS, ONCE, 0.01, [4000, 4000])
    assert weights[0] > 0.0
    assert weights[1] == 0.0


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_that_are_the_wrong_way_round_by_chance_do_not_turn_the_guard_around(layers: int) -> None:
    scores = np.stack([0.5 - gaussian_scores(1.0) for _ in range(layers)], axis=1)
    weights, intercept = fit_layer_weights(scores, LABELS, ONCE, 1.0, [4000, 4000])
    assert np.allclose(weights, 1.0 / layers)
    assert intercept == 0.0


def test_layers_without_any_difference_between_the_classes_have_weights_that_are_numbers() -> None:
    same = np.tile(RNG.normal(size=len(LABELS) // 2), 2)[:, None]
    weights, intercept = fit_layer_weights(np.hstack([same, 1e6 * same]), LABELS, ONCE, 1.0, [4000, 4000])
    assert np.isfinite(weights).all()
    assert np.isfinite(intercept)
    assert (weights >= 0.0).all()
