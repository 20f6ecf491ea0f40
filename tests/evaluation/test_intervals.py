import numpy as np
import pytest
from scipy.stats import binom

from mlpm_guard.evaluation import intervals
from mlpm_guard.evaluation.intervals import NAMES, _metrics, exact, percentile, replicates
from mlpm_guard.evaluation.metrics import compute


def drawn(count, seed, unsafe_share=0.4, ties=False):
    rng = np.random.default_rng(seed)
    unsafe = rng.random(count) < unsafe_share
    scores = np.clip(rng.normal(0.4 + 0.2 * unsafe, 0.2), 0, 1)
    return unsafe, np.round(scores, 1) if ties else scores


def by_name(metrics):
    return {name: metrics.figure(name) for name in NAMES}


@pytest.mark.parametrize("ties", [False, True])
def test_a_resample_has_the_metrics_of_the_rows_that_were_drawn(ties):
    unsafe, scores = drawn(200, 1, ties=ties)
    flagged = scores >= 0.55
    weights = intervals._drawn(unsafe, 5, [np.random.default_rng(2), np.random.default_rng(3)])
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum((weights * unsafe)[:, order], axis=1)[:, ends]
    alarms = np.cumsum((weights * ~unsafe)[:, order], axis=1)[:, ends]
    found = _metrics(weights, unsafe, flagged, hits, alarms)
    for number, row in enumerate(weights):
        rows = np.repeat(np.arange(200), row)
        expected = by_name(compute(unsafe[rows].astype(int), scores[rows], flagged[rows]))
        assert {name: found[name][number] for name in NAMES} == pytest.approx(expected)


def test_each_class_is_drawn_as_often_as_it_is_there():
    unsafe, _ = drawn(300, 3)
    weights = intervals._drawn(unsafe, 20, [np.random.default_rng(0), np.random.default_rng(1)])
    assert (weights[:, unsafe].sum(axis=1) == unsafe.sum()).all()
    assert (weights[:, ~unsafe].sum(axis=1) == (~unsafe).sum()).all()
    assert weights.std() > 0


def test_the_seed_decides_the_draws_and_the_memory_limit_does_not(monkeypatch):
    unsafe, scores = drawn(100, 4)
    one = replicates(unsafe, scores, scores >= 0.5, repeats=40)
    again = replicates(unsafe, scores, scores >= 0.5, repeats=40)
    other = replicates(unsafe, scores, scores >= 0.5, repeats=40, seed=1)
    assert all(np.array_equal(one[name], again[name]) for name in NAMES)
    assert any(not np.array_equal(one[name], other[name]) for name in NAMES)
    monkeypatch.setattr(intervals, "_CELLS", 700)
    piecewise = replicates(unsafe, scores, scores >= 0.5, repeats=40)
    assert all(np.array_equal(one[name], piecewise[name]) for name in NAMES)


def test_the_interval_of_average_precision_holds_the_truth_about_as_often_as_it_says():
    unsafe, scores = drawn(200_000, 5)
    truth = by_name(compute(unsafe.astype(int), scores, scores >= 0.5))
    covered = dict.fromkeys(("f1", "average_precision"), 0)
    repeats = 150
    for seed in range(repeats):
        sample = np.random.default_rng(seed).choice(len(unsafe), 250, replace=False)
        values = replicates(unsafe[sample], scores[sample], scores[sample] >= 0.5, repeats=200, seed=seed)
        for name in covered:
            ends = percentile(values[name])
            covered[name] += ends.low <= truth[name] <= ends.high
    # 95 % promised; the percentile bootstrap is known to fall a little short at 250 rows. Monte-Carlo error 1.8 %.
    assert all(0.88 <= count / repeats <= 1.0 for count in covered.values()), covered


def test_a_metric_that_a_resample_leaves_undefined_has_no_interval():
    unsafe, scores = drawn(60, 6)
    flagged = np.zeros(60, bool)
    flagged[0] = True
    values = replicates(unsafe, scores, flagged)
    assert np.isnan(values["precision"]).any()
    assert percentile(values["precision"]) is None
    assert percentile(values["f1"]) is not None


@pytest.mark.parametrize(("part", "whole"), [(0, 20), (7, 20), (20, 20), (1, 1000)])
def test_the_exact_interval_leaves_half_of_the_error_on_each_side(part, whole):
    low, high = exact(part, whole)
    assert low <= part / whole <= high
    assert low == 0.0 if part == 0 else binom.sf(part - 1, whole, low) == pytest.approx(0.025)
    assert high == 1.0 if part == whole else binom.cdf(part, whole, high) == pytest.approx(0.025)


def test_a_share_of_nothing_has_no_interval():
    assert exact(0, 0) is None
