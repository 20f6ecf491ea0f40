import copy
from dataclasses import replace

import numpy as np
import pytest

from mlpm_guard.errors import DataError
from mlpm_guard.prototypes.classifier import PrototypeClassifier
from mlpm_guard.prototypes.discriminant import fit_discriminants
from mlpm_guard.prototypes.moving import Aggregation, moved, shifted
from mlpm_guard.prototypes.statistics import PrototypeStatistics


def states(count, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, 3, 8)).astype(np.float32) + np.float32(shift)


@pytest.fixture
def fitted():
    X = np.concatenate([states(60, 0), states(60, 1, 0.8)])
    return PrototypeClassifier(sample_size=40).fit(X, np.repeat([0, 1], 60))


def test_nothing_learned_moves_nothing(fitted):
    before, scores = fitted.scorer_, fitted.decision_function(states(20, 2))
    fitted.move(before, copy.deepcopy(fitted.statistics_))
    assert fitted.decision_function(states(20, 2)) == pytest.approx(scores, abs=1e-9)
    assert fitted.scorer_.levels == before.levels


def test_what_is_learned_moves_the_discriminants_and_not_how_layers_are_put_together(fitted):
    scorer, before = fitted.scorer_, copy.deepcopy(fitted.statistics_)
    fitted.update(states(5, 3), [1] * 5)
    expected = fit_discriminants(fitted.statistics_)
    fitted.move(scorer, before)
    assert np.array_equal(fitted.coef_, expected.weights)
    assert np.array_equal(fitted.scorer_.layer_weights, scorer.layer_weights)
    assert fitted.scorer_.intercept == scorer.intercept
    # Each layer's log-odds are the new discriminant's, on the scale that the layer had.
    positions = scorer.positions
    old = fit_discriminants(before)
    ratio = scorer.weights[:, 0] / old.weights[positions, 0]
    assert fitted.scorer_.weights == pytest.approx(expected.weights[positions] * ratio[:, None])
    shift = old.biases[positions] - scorer.biases / ratio
    assert fitted.scorer_.biases == pytest.approx((expected.biases[positions] - shift) * ratio)


def test_a_prompt_that_is_learned_more_often_is_scored_ever_more_as_labelled(fitted):
    scorer, before = fitted.scorer_, copy.deepcopy(fitted.statistics_)
    one = states(1, 4, 0.8)
    scores = [fitted.decision_function(one)[0]]
    for _ in range(6):
        fitted.update(one, [0]).move(scorer, before)
        scores.append(fitted.decision_function(one)[0])
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0] - 0.5


def test_calibrated_log_odds_stay_on_their_scale(fitted):
    before = copy.deepcopy(fitted.statistics_)
    calibrated = fitted.scorer_.rescaled(0.5, -1.0)
    plain = copy.deepcopy(fitted).update(states(5, 3), [1] * 5).move(fitted.scorer_, before)
    fitted.update(states(5, 3), [1] * 5).move(calibrated, before)
    assert fitted.decision_function(states(9, 5)) == pytest.approx(0.5 * plain.decision_function(states(9, 5)) - 1.0)


def test_a_scorer_of_other_statistics_is_refused(fitted):
    other = PrototypeClassifier().fit(np.concatenate([states(30, 6), states(30, 7, 0.3)]), np.repeat([0, 1], 30))
    scorer = fitted.scorer_
    with pytest.raises(DataError, match="does not score with the prototypes"):
        fitted.move(scorer, other.statistics_)
    assert fitted.scorer_ is scorer
    with pytest.raises(DataError, match="does not score"):
        moved(scorer, fit_discriminants(other.statistics_), fit_discriminants(fitted.statistics_))


# -- moving by what a smaller sample tells ------------------------------------------------------------------------------------


def saved_with(rows, fitted):
    """What is left of a classifier that was saved with fewer rows a class, as it comes back."""
    tensors = copy.deepcopy(fitted.statistics_)
    tensors.classes = {label: copy.deepcopy(each) for label, each in tensors.classes.items()}
    for each in tensors.classes.values():
        each.prune(rows)
    again = PrototypeClassifier(sample_size=rows)
    again.statistics_ = PrototypeStatistics.from_tensors(tensors.to_tensors(), layers=3, dim=8, sample_size=rows)
    return again


@pytest.fixture
def large():
    X = np.concatenate([states(400, 0), states(400, 1, 0.3)])
    return PrototypeClassifier(sample_size=200).fit(X, np.repeat([0, 1], 400))


def test_a_refit_on_fewer_rows_puts_the_layers_together_otherwise_and_a_shift_does_not(large):
    again, scores = saved_with(20, large), large.decision_function(states(50, 2))
    assert again.statistics_.trimmed
    before = copy.deepcopy(again.statistics_)
    assert np.abs(copy.deepcopy(again).refit().decision_function(states(50, 2)) - scores).max() > 0.1
    assert again.shift(large.scorer_, before).decision_function(states(50, 2)) == pytest.approx(scores, abs=1e-4)
    assert again.scorer_.levels == pytest.approx(large.scorer_.levels)


def test_a_shift_follows_what_is_learned_more_closely_than_a_refit_on_fewer_rows(large):
    new, labels, test = np.concatenate([states(20, 3), states(20, 4, 0.6)]), np.repeat([0, 1], 20), states(200, 5, 0.15)
    again = saved_with(20, large)
    before = copy.deepcopy(again.statistics_)
    shifted = copy.deepcopy(again).update(new, labels).shift(large.scorer_, before).decision_function(test)
    refitted = again.update(new, labels).refit().decision_function(test)
    truth = large.partial_fit(new, labels).decision_function(test)
    assert np.sqrt(np.mean((shifted - truth) ** 2)) < 0.5 * np.sqrt(np.mean((refitted - truth) ** 2))


def test_a_shift_of_all_rows_is_a_refit(large):
    scorer, before = large.scorer_, copy.deepcopy(large.statistics_)
    assert not before.trimmed
    large.update(states(30, 3, 0.5), [1] * 30)
    refitted = copy.deepcopy(large).refit().decision_function(states(20, 2))
    assert large.shift(scorer, before).decision_function(states(20, 2)) == pytest.approx(refitted, abs=1e-9)


def test_a_shift_uses_the_layers_that_are_used_and_refuses_a_scorer_of_other_statistics(large):
    used = replace(
        large.scorer_,
        positions=large.scorer_.positions[1:],
        weights=large.scorer_.weights[1:],
        biases=large.scorer_.biases[1:],
        layer_weights=large.scorer_.layer_weights[1:],
    )
    before = copy.deepcopy(large.statistics_)
    large.update(states(30, 3, 0.5), [1] * 30)
    assert large.shift(used, before).scorer_.positions.tolist() == used.positions.tolist()
    assert large.layer_weights_[0] == 0.0
    with pytest.raises(DataError, match="does not score with the prototypes"):
        large.shift(used, large.statistics_)


@pytest.mark.parametrize(("fallen", "expected"), [([0.5, 0.0, 0.25], [0.0, 0.5, 0.25]), ([5.0, 5.0, 5.0], [0.1, 0.5, 0.5])])
def test_a_shift_gives_no_layer_a_weight_below_zero_and_leaves_the_guard_some(large, fallen, expected):
    discriminants = fit_discriminants(large.statistics_)
    before = Aggregation(discriminants, np.ones(3), np.zeros(3), np.full(3, 6.0), 0.0, (-1.0, 1.0))
    after = replace(before, weights=6.0 - np.array(fallen))
    scorer = replace(before.scorer(np.arange(3)), layer_weights=np.array([0.1, 0.5, 0.5]))
    assert shifted(scorer, before, after).layer_weights == pytest.approx(expected)
