"""Distances to the classes, and the percentile of the nearest among training prompts."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from mlpm_guard.prototypes.classifier import content_keys
from mlpm_guard.prototypes.covariance import FEWEST, fit_novelty
from mlpm_guard.prototypes.novelty import RANK, Novelty
from mlpm_guard.prototypes.statistics import PrototypeStatistics

LAYERS = 3


def states(count: int, dim: int, seed: int, *, spectrum: float = 0.7, shift: float = 0.0) -> np.ndarray:
    """Gaussian states whose variances fall off like those of a model, shape (count, layers, dim)."""
    rng = np.random.default_rng(seed)
    scales = (1.0 + np.arange(dim)) ** -spectrum
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(dim, dim)))[0]
    return ((rng.normal(size=(count, LAYERS, dim)) * scales) @ turn + shift * turn[0]).astype(np.float32)


def learned(count: int, dim: int, *, sample_size: int = 1024, seed: int = 0) -> tuple[PrototypeStatistics, np.ndarray]:
    """Statistics of two classes, and the states they were learned from."""
    rows = np.concatenate([states(count, dim, seed), states(count, dim, seed + 1, shift=1.0)])
    statistics = PrototypeStatistics(LAYERS, dim, sample_size=sample_size)
    keys = content_keys([f"{seed}|{index}".encode() for index in range(2 * count)])
    statistics.update(rows, np.repeat([0, 1], count), keys)
    return statistics, rows


def exact(rows: np.ndarray, count: int, new: np.ndarray) -> np.ndarray:
    """Distances by the formula of the docstring, shape (n, classes, layers)."""
    found = np.zeros((len(new), 2, LAYERS))
    for layer in range(LAYERS):
        classes = [rows[:count, layer].astype(float), rows[count:, layer].astype(float)]
        centred = np.concatenate([each - each.mean(axis=0) for each in classes])
        covariance = centred.T @ centred / (2 * count - 1)
        covariance += np.trace(covariance) / (2 * count - 1) * np.eye(len(covariance))
        for label, of_class in enumerate(classes):
            off = new[:, layer] - of_class.mean(axis=0)
            found[:, label, layer] = np.einsum("nd,nd->n", off @ np.linalg.inv(covariance), off)
    return found


ALL = np.arange(LAYERS)


@pytest.mark.parametrize(("count", "dim"), [(15, 64), (20, 200), (300, 24), (400, RANK)])
def test_distances_are_exact_where_the_covariance_has_no_more_directions_than_are_kept(count: int, dim: int) -> None:
    statistics, rows = learned(count, dim)
    novelty = fit_novelty(statistics, ALL)
    assert novelty is not None
    new = states(50, dim, 7)
    np.testing.assert_allclose(novelty.distances(new), exact(rows, count, new), rtol=5e-3)


def test_distances_of_a_condensed_class_are_those_of_one_that_keeps_its_rows() -> None:
    small, rows = learned(1200, 24, sample_size=64)
    large, _ = learned(1200, 24, sample_size=4000)
    assert not small.classes[0].complete
    assert large.classes[0].complete
    new = states(50, 24, 7)
    one, two = fit_novelty(small, ALL), fit_novelty(large, ALL)
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(one.distances(new), two.distances(new), rtol=1e-3)
    np.testing.assert_allclose(one.distances(new), exact(rows, 1200, new), rtol=5e-3)


def test_the_low_rank_form_orders_states_as_the_exact_distance_does() -> None:
    statistics, rows = learned(2000, 128, sample_size=200)
    novelty = fit_novelty(statistics, ALL)
    assert novelty is not None
    assert novelty.basis.shape == (LAYERS, RANK, 128)
    # Unlike what was learned in all sorts of ways.
    rng = np.random.default_rng(5)
    new = states(300, 128, 7) * rng.uniform(0.5, 2.0, size=(300, 1, 1)).astype(np.float32)
    nearest = exact(rows, 2000, new).sum(axis=2).min(axis=1)
    assert spearmanr(novelty.distances(new).sum(axis=2).min(axis=1), nearest)[0] > 0.97


@pytest.mark.parametrize(
    ("count", "dim", "sample_size"), [(60, 96, 1024), (150, 24, 1024), (500, 128, 1024), (1500, 128, 400), (3000, 24, 400)]
)
def test_fresh_states_like_those_of_training_have_uniform_percentiles(count: int, dim: int, sample_size: int) -> None:
    statistics, _ = learned(count, dim, sample_size=sample_size)
    novelty = fit_novelty(statistics, ALL)
    assert novelty is not None
    new = np.concatenate([states(1000, dim, 70), states(1000, dim, 71, shift=1.0)])
    percentiles = novelty.percentile(novelty.distances(new))
    assert np.all((percentiles >= 0.0) & (percentiles <= 1.0))
    # Twice the distance that a sample of that size has at a level of 1 %.
    reference = len(novelty.quantiles)
    assert kstest(percentiles, "uniform").statistic < 2 * 1.63 * np.sqrt(1 / reference + 1 / len(new))


def test_training_states_measured_by_their_own_fit_would_not_be_uniform() -> None:
    statistics, rows = learned(60, 96)
    novelty = fit_novelty(statistics, ALL)
    assert novelty is not None
    own = novelty.percentile(novelty.distances(rows))
    assert kstest(own, "uniform").statistic > 0.5
    assert np.median(own) < 0.3


def test_what_is_unlike_training_is_novel_and_the_farther_the_more() -> None:
    statistics, _ = learned(500, 64)
    novelty = fit_novelty(statistics, ALL)
    assert novelty is not None
    far = [novelty.percentile(novelty.distances(factor * states(200, 64, 9))).mean() for factor in (1.0, 1.1, 1.5)]
    assert far[0] < far[1] < far[2]
    assert far[2] > 0.99


def test_the_more_frequent_class_counts_for_more_in_the_percentiles() -> None:
    rows = np.concatenate([states(40, 16, 1), 3.0 * states(40, 16, 2, shift=20.0)])
    keys = content_keys([str(index).encode() for index in range(80)])
    labels = np.repeat([0, 1], 40)
    even, uneven = (PrototypeStatistics(LAYERS, 16) for _ in range(2))
    even.update(rows, labels, keys)
    for _ in range(10):
        uneven.update(rows[:40], labels[:40], keys[:40])
    uneven.update(rows[40:], labels[40:], keys[40:])
    assert uneven.count(0) == 400
    fits = [fit_novelty(each, ALL) for each in (even, uneven)]
    assert all(fit is not None and len(fit.quantiles) == 80 for fit in fits)
    ratios = [fit.quantiles[64] / fit.quantiles[16] for fit in fits if fit is not None]
    assert ratios[0] > 3.0 > ratios[1]


def test_the_order_of_prompts_makes_no_difference() -> None:
    statistics, rows = learned(40, 32)
    again = PrototypeStatistics(LAYERS, 32, sample_size=1024)
    order = np.random.default_rng(3).permutation(80)
    keys = content_keys([f"0|{index}".encode() for index in range(80)])
    again.update(rows[order], np.repeat([0, 1], 40)[order], keys[order])
    one, two = fit_novelty(statistics, ALL), fit_novelty(again, ALL)
    assert one is not None
    assert two is not None
    for name in ("means", "basis", "variances", "rest", "quantiles"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_merged_statistics_measure_what_whole_ones_do() -> None:
    whole, rows = learned(1500, 24, sample_size=100)
    keys = content_keys([f"0|{index}".encode() for index in range(3000)])
    labels = np.repeat([0, 1], 1500)
    parts = [PrototypeStatistics(LAYERS, 24, sample_size=100) for _ in range(2)]
    for index, part in enumerate(parts):
        part.update(rows[index::2], labels[index::2], keys[index::2])
    merged = fit_novelty(parts[0].merge(parts[1]), ALL)
    expected = fit_novelty(whole, ALL)
    assert merged is not None
    assert expected is not None
    new = states(50, 24, 8)
    np.testing.assert_allclose(merged.distances(new), expected.distances(new), rtol=1e-3)
    np.testing.assert_allclose(merged.quantiles, expected.quantiles, rtol=1e-3)


def test_only_the_used_layers_are_measured() -> None:
    statistics, _ = learned(40, 32)
    every, last = fit_novelty(statistics, ALL), fit_novelty(statistics, np.array([2]))
    assert every is not None
    assert last is not None
    new = states(20, 32, 8)
    np.testing.assert_allclose(last.distances(new[:, 2:]), every.distances(new)[:, :, 2:])


def test_few_prompts_have_no_percentiles() -> None:
    assert fit_novelty(learned(FEWEST - 1, 16)[0], ALL) is None
    assert fit_novelty(learned(FEWEST, 16)[0], ALL) is not None


def test_one_state_is_measured_as_in_a_batch() -> None:
    novelty = fit_novelty(learned(100, 64)[0], ALL)
    assert novelty is not None
    new = states(64, 64, 4)
    together = novelty.distances(new)
    np.testing.assert_allclose(np.concatenate([novelty.distances(each[None]) for each in new]), together, rtol=1e-4)
    assert novelty.distances(new[:0]).shape == (0, 2, LAYERS)


def test_huge_common_offsets_do_not_drown_the_distances() -> None:
    offset = np.zeros(64, np.float32)
    offset[5] = 5_000.0
    plain, moved = (PrototypeStatistics(LAYERS, 64) for _ in range(2))
    rows, keys = (
        np.concatenate([states(80, 64, 1), states(80, 64, 2, shift=1.0)]),
        content_keys([str(index).encode() for index in range(160)]),
    )
    plain.update(rows, np.repeat([0, 1], 80), keys)
    moved.update(rows + offset, np.repeat([0, 1], 80), keys)
    one, two = fit_novelty(plain, ALL), fit_novelty(moved, ALL)
    assert one is not None
    assert two is not None
    new = states(50, 64, 4)
    np.testing.assert_allclose(two.distances(new + offset), one.distances(new), rtol=0.05)


def test_it_can_be_copied_while_other_threads_measure() -> None:
    novelty = fit_novelty(learned(40, 32)[0], ALL)
    assert novelty is not None
    new, stop, wrong = states(4, 32, 1), threading.Event(), []

    def measure(shared: Novelty) -> None:
        while not stop.is_set():
            try:
                shared.distances(new)
            except Exception as error:
                wrong.append(error)

    for _ in range(20):
        fresh = copy.deepcopy(novelty)
        thread = threading.Thread(target=measure, args=(fresh,))
        thread.start()
        copy.deepcopy(fresh)
        stop.set()
        thread.join()
        stop.clear()
    assert wrong == []
