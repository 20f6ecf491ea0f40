"""The tied-covariance discriminant equals its formulas, and scikit-learn's with the shrinkage that they imply."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from layer_data import close, collect, make, reference_discriminant
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mlpm_guard.errors import DataError
from mlpm_guard.prototypes.discriminant import fit_discriminants, out_of_fold_log_odds

# Fewer prompts than dimensions, more, unbalanced; a small sample size puts the classes into the shared scatter.
SHAPES = {
    "n<dim": (4, 5, 20),
    "n>dim": (40, 40, 6),
    "unbalanced": (50, 3, 6),
    "n=dim": (5, 5, 10),
    "one-dimensional": (9, 7, 1),
}


@pytest.mark.parametrize(("safe", "unsafe", "dim"), SHAPES.values(), ids=SHAPES)
def test_discriminants_equal_the_formulas(safe: int, unsafe: int, dim: int) -> None:
    states, labels = make(safe, unsafe, dim=dim)
    found = fit_discriminants(collect(states, labels))
    weights, biases = reference_discriminant(states, labels)
    assert close(found.weights, weights, 1e-8)
    assert close(found.biases, biases, 1e-8)


@pytest.mark.parametrize("condensed", [(40, 40), (40, 4), (4, 40)], ids=["both", "safe", "unsafe"])
def test_discriminants_equal_the_formulas_when_rows_are_not_kept(condensed: tuple[int, int]) -> None:
    states, labels = make(*condensed)
    statistics = collect(states, labels, sample_size=4)
    assert [statistics.classes[label].complete for label in (0, 1)] == [n <= 6 for n in condensed]
    found = fit_discriminants(statistics)
    weights, biases = reference_discriminant(states, labels)
    assert close(found.weights, weights, 1e-8)
    assert close(found.biases, biases, 1e-8)


@pytest.mark.parametrize("sample_size", [512, 4], ids=["rows-kept", "rows-summed"])
def test_a_prompt_learned_several_times_counts_as_often(sample_size: int) -> None:
    states, labels = make(20, 20)
    times = np.random.default_rng(1).integers(1, 4, size=len(labels))
    repeated = np.repeat(np.arange(len(labels)), times)
    found = fit_discriminants(
        collect(states[repeated], labels[repeated], sample_size=sample_size, keys=repeated.astype(np.uint64))
    )
    weights, biases = reference_discriminant(states[repeated], labels[repeated])
    assert close(found.weights, weights, 1e-8)
    assert close(found.biases, biases, 1e-8)


@pytest.mark.parametrize(("each", "dim"), [(5, 20), (40, 6), (100, 3)])
def test_discriminants_are_shrunk_linear_discriminant_analysis_up_to_a_known_factor(each: int, dim: int) -> None:
    # LDA's covariance with shrinkage s is (1 - s) A / N + s tr(A) / (N D) I, which is (1 - s) / N (A + tr(A) / (N - 1) I) for
    # s / (1 - s) = D / (N - 1).
    states, labels = make(each, each, dim=dim)
    N = 2 * each
    shrinkage = dim / (dim + N - 1)
    found = fit_discriminants(collect(states, labels))
    for layer in range(states.shape[1]):
        lda = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5], shrinkage=shrinkage)
        lda.fit(states[:, layer].astype(np.float64), labels)
        factor = dim * (N - 1) / (N * (dim + N - 1))
        assert close(found.weights[layer], factor * lda.coef_[0], 1e-7)
        assert close(found.biases[layer], factor * lda.intercept_[0], 1e-7)


def test_the_point_halfway_between_the_prototypes_tells_nothing() -> None:
    states, labels = make(30, 12)
    statistics = collect(states, labels)
    found = fit_discriminants(statistics)
    halfway = (statistics.means(0) + statistics.means(1)) / 2
    assert np.abs((halfway * found.weights).sum(axis=1) + found.biases).max() < 1e-10


def test_swapping_the_classes_turns_the_sign() -> None:
    states, labels = make(30, 12)
    found, swapped = fit_discriminants(collect(states, labels)), fit_discriminants(collect(states, 1 - labels))
    assert close(swapped.weights, -found.weights)
    assert close(swapped.biases, -found.biases)


@pytest.mark.parametrize("sample_size", [512, 4], ids=["rows-kept", "rows-summed"])
def test_states_far_from_the_origin_lose_no_accuracy(sample_size: int) -> None:
    states, labels = make(60, 50, offset=1e6)
    found = fit_discriminants(collect(states, labels, sample_size=sample_size))
    # Subtracting what all states have in common is exact here, and changes the weights by nothing.
    weights, _ = reference_discriminant((states.astype(np.float64) - 1e6).astype(np.float32), labels)
    assert close(found.weights, weights, 1e-6)


def test_a_layer_that_does_not_vary_gets_zeros_and_the_others_stay_as_they_are() -> None:
    states, labels = make(20, 20)
    constant = states.copy()
    constant[:, 1] = 3.0
    found, untouched = fit_discriminants(collect(constant, labels)), fit_discriminants(collect(states, labels))
    assert not found.weights[1].any()
    assert found.biases[1] == 0.0
    assert np.array_equal(found.weights[[0, 2]], untouched.weights[[0, 2]])


def test_a_constant_feature_gets_no_weight_and_changes_no_direction() -> None:
    states, labels = make(20, 20, dim=5)
    padded = np.concatenate([states, np.full((40, 3, 1), 7.0, np.float32)], axis=2)
    found = fit_discriminants(collect(padded, labels))
    without = fit_discriminants(collect(states, labels))
    assert np.abs(found.weights[:, 5]).max() < 1e-10
    # The factor D is the number of features, constant or not.
    assert close(found.weights[:, :5] / 6, without.weights / 5, 1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6, -3.5])
def test_states_that_are_all_the_same_cannot_be_learned_from(value: float) -> None:
    with pytest.raises(DataError, match="do not differ"):
        fit_discriminants(collect(np.full((8, 2, 4), value, np.float32), np.array([0, 1] * 4)))


def test_identical_prompts_in_both_classes_cannot_be_learned_from() -> None:
    states, _ = make(10, 10)
    both = np.concatenate([states, states])
    with pytest.raises(DataError, match="do not differ"):
        fit_discriminants(collect(both, np.repeat([0, 1], 20)))


# -- out of fold --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample_size", [512, 12, 4], ids=["rows-kept", "sampled", "few-sampled"])
@pytest.mark.parametrize("folds", [2, 4])
def test_out_of_fold_scores_equal_those_of_a_fit_without_the_fold(sample_size: int, folds: int) -> None:
    states, labels = make(30, 25)
    statistics = collect(states, labels, sample_size=sample_size)
    log_odds, found_labels, times = out_of_fold_log_odds(statistics, folds)
    kept = np.array([key for label in (0, 1) for key in statistics.classes[label].sorted_keys()])
    assert np.array_equal(found_labels, labels[kept])
    assert (times == 1).all()
    rank = np.concatenate([np.arange((found_labels == label).sum()) for label in (0, 1)])
    for fold in range(folds):
        held_out = kept[rank % folds == fold]
        rest = np.setdiff1d(np.arange(len(labels)), held_out)
        weights, biases = reference_discriminant(states[rest], labels[rest])
        expected = np.einsum("nld,ld->nl", states[held_out].astype(np.float64), weights) + biases
        assert close(log_odds[rank % folds == fold], expected, 1e-7)


@pytest.mark.parametrize("folds", [0, 1])
def test_without_folds_the_scores_are_the_discriminants_own(folds: int) -> None:
    states, labels = make(12, 9)
    statistics = collect(states, labels)
    found = fit_discriminants(statistics)
    order = np.argsort(labels, kind="stable")
    expected = np.einsum("nld,ld->nl", states[order].astype(np.float64), found.weights) + found.biases
    assert close(out_of_fold_log_odds(statistics, folds)[0], expected)


# -- memory -------------------------------------------------------------------------------------------------------------------


def test_a_fit_from_few_prompts_on_a_wide_model_makes_no_square_matrix() -> None:
    dim, layers = 4096, 8
    states, labels = np.random.default_rng(0).normal(size=(40, layers, dim)).astype(np.float32), np.arange(40) % 2
    tracemalloc.start()
    try:
        statistics = collect(states, labels)
        found = fit_discriminants(statistics)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.weights.shape == (layers, dim)
    assert statistics.scatter is None
    assert peak < dim * dim * 4
