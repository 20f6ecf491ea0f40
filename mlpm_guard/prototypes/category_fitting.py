"""Categories from labelled training prompts: discriminants with a covariance tied over all categories.

With A the scatter of all training prompts about the means of their categories (the unsafe prompts without one, and the safe
prompts, each being a group of their own), N prompts and D numbers a state, per layer and category c, against the midpoint m of
the safe and the unsafe mean:

    P = D (A + tr(A) / (N - 1) I)^-1
    s_c(h) = (mu_c - m)^T P (h - (mu_c + m) / 2)

The mean of s_c over the layers, and the logarithm of the category's share of the unsafe prompts, go into one logistic
regression that all categories share; so a category's log-odds are linear in the states. It is fitted on the sample of states
that the statistics keep, each scored as if it had not been learned (exact leave-one-out, by Sherman and Morrison's formula).
numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from mlpm_guard.prototypes.categories import CategoryBlock
from mlpm_guard.prototypes.discriminant import moments
from mlpm_guard.prototypes.gram import Array, add_gram
from mlpm_guard.prototypes.scorer import sigmoid
from mlpm_guard.prototypes.statistics import CLASSES, PrototypeStatistics

MIN_PROMPTS = 5
"""Prompts that a category needs to be told from the others; one with fewer waits until it has them."""
_STEPS = 100
_RIDGE = 1e-2


@dataclass(frozen=True)
class _Sample:
    """Kept rows: states (n, used, dim), which group each belongs to (k is unsafe without a category, k + 1 safe), times."""

    states: Array
    groups: npt.NDArray[np.int64]
    times: Array


@dataclass(frozen=True)
class _Groups:
    """Count (k + 2,) and means (k + 2, used, dim) of the categories, of unsafe prompts without one, and of safe prompts."""

    counts: Array
    means: Array
    middle: Array


def fit_categories(statistics: PrototypeStatistics, positions: npt.NDArray[np.int64]) -> CategoryBlock | None:
    """All categories with at least `MIN_PROMPTS` prompts; None where there are none.

    Args:
        statistics: with the categories' own.
        positions: which layers to read.
    """
    names = tuple(name for name in statistics.categories.names if statistics.categories.sums[name].count >= MIN_PROMPTS)
    if not names:
        return None
    groups = _groups(statistics, names, positions)
    sample = _sample(statistics, names, positions)
    solved = [_layer(statistics, groups, sample, at, int(position)) for at, position in enumerate(positions)]
    weights = np.stack([weights for weights, _, _ in solved], axis=1) / len(positions)
    biases = np.mean([biases for _, biases, _ in solved], axis=0)
    left_out = np.mean([scores for _, _, scores in solved], axis=0)
    shares = np.log(groups.counts[: len(names)] / statistics.count(1))
    slope, share, offset = _calibrate(left_out, shares, sample, len(names))
    return CategoryBlock(
        names,
        np.asarray(positions, np.int64),
        (slope * weights).astype(np.float32),
        slope * biases + share * shares + offset,
    )


def _groups(statistics: PrototypeStatistics, names: tuple[str, ...], positions: npt.NDArray[np.int64]) -> _Groups:
    sums = [statistics.categories.sums[name] for name in names]
    safe, unsafe = (statistics.means(label)[positions] for label in CLASSES)
    counts = np.array([each.count for each in sums], np.float64)
    means = np.stack([each.mean[positions] for each in sums])
    rest = statistics.count(1) - counts.sum()
    left = (unsafe * statistics.count(1) - np.einsum("k,kld->ld", counts, means)) / rest if rest > 0 else unsafe
    counts = np.r_[counts, max(rest, 0.0), statistics.count(0)]
    return _Groups(counts, np.concatenate([means, left[None], safe[None]]), 0.5 * (safe + unsafe))


def _sample(statistics: PrototypeStatistics, names: tuple[str, ...], positions: npt.NDArray[np.int64]) -> _Sample:
    states, groups, times = [], [], []
    number = {name: index for index, name in enumerate(names)}
    for label in CLASSES:
        rows = statistics.classes[label].rows
        keys = statistics.classes[label].sorted_keys()
        named = statistics.categories.of(keys) if label == 1 else [None] * len(keys)
        states += [rows[key].states[positions] for key in keys]
        groups += [len(names) + 1 if label == 0 else number.get(name or "", len(names)) for name in named]
        times += [rows[key].times for key in keys]
    return _Sample(np.array(states, np.float64), np.array(groups), np.array(times, np.float64))


def _layer(
    statistics: PrototypeStatistics, groups: _Groups, sample: _Sample, at: int, position: int
) -> tuple[Array, Array, Array]:
    """Weights (k, dim) and biases (k,) of one layer, and the scores of the sample as if it had not been learned, (n, k)."""
    means, middle, rows = groups.means[:, at], groups.middle[at], sample.states[:, at]
    k, dim = len(means) - 2, means.shape[1]
    scatter = scatter_of(statistics, position)
    unsafe = statistics.means(1)[position]
    add_gram(scatter, (means[: k + 1] - unsafe) * np.sqrt(groups.counts[: k + 1, None]), -1.0)
    ridge = max(float(np.trace(scatter)), 0.0) / (statistics.count(0) + statistics.count(1) - 1)
    scatter.flat[:: dim + 1] += ridge if ridge > 0.0 else 1.0
    factored = cho_factor(scatter.T, lower=True, overwrite_a=True, check_finite=False)
    deltas = means[:k] - middle
    weights = dim * cho_solve(factored, deltas.T, check_finite=False).T
    biases = -0.5 * np.einsum("kd,kd->k", weights, means[:k] + middle)
    # Every row without itself: its group's mean moves, and its share of the scatter goes.
    counts = np.maximum(groups.counts[sample.groups], 2.0)
    residuals = rows - means[sample.groups]
    solved = cho_solve(factored, residuals.T, check_finite=False).T
    factor = counts / (counts - 1.0)
    leverage = np.minimum(factor * np.einsum("nd,nd->n", residuals, solved), 0.999)
    gain = factor / (1.0 - leverage)
    scores = rows @ weights.T + biases
    along = np.einsum("nd,nd->n", solved, rows)[:, None] - 0.5 * solved @ (means[:k] + middle).T
    scores = scores + dim * gain[:, None] * (solved @ deltas.T) * along
    own = np.flatnonzero(sample.groups < k)
    if len(own):
        group = sample.groups[own]
        moved = means[group] - residuals[own] / (counts[own, None] - 1.0)
        delta, center = moved - middle, rows[own] - 0.5 * (moved + middle)
        plain = np.einsum("nd,nd->n", delta, cho_solve(factored, center.T, check_finite=False).T)
        correction = gain[own] * np.einsum("nd,nd->n", delta, solved[own]) * np.einsum("nd,nd->n", center, solved[own])
        scores[own, group] = dim * (plain + correction)
    return weights, biases, scores


def scatter_of(statistics: PrototypeStatistics, position: int) -> Array:
    """Upper triangle of a layer's scatter about the means of safe and unsafe, shape (dim, dim)."""
    found = moments(statistics, position, {})
    if found.upper is not None:
        return found.upper
    assert found.factor is not None
    scatter = np.zeros((statistics.dim, statistics.dim))
    add_gram(scatter, found.factor)
    return scatter


def _calibrate(scores: Array, shares: Array, sample: _Sample, k: int) -> tuple[float, float, float]:
    """Slope of the scores, slope of the logarithmic shares, and offset, for safe and unsafe prompts in equal number.

    Rows without a known category say nothing about which one they belong to, and are left out.
    """
    known = sample.groups != k
    safe = sample.groups[known] == k + 1
    weights = sample.times[known].copy()
    for of_class in (safe, ~safe):
        if of_class.any():
            weights[of_class] *= 0.5 * len(weights) / weights[of_class].sum()
    targets = (sample.groups[known][:, None] == np.arange(k)).astype(np.float64).ravel()
    spread = float(scores[known].std()) or 1.0
    features = np.stack([scores[known].ravel() / spread, np.tile(shares, int(known.sum())), np.ones(targets.size)], axis=1)
    importance = np.repeat(weights, k)
    solution = np.array([1.0, 0.0, -2.0])
    for _ in range(_STEPS):
        chance = sigmoid(features @ solution)
        gradient = features.T @ (importance * (targets - chance)) - _RIDGE * solution
        hessian = (features.T * (importance * chance * (1.0 - chance))) @ features + _RIDGE * np.eye(3)
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        solution = solution + step
        if np.abs(step).max() < 1e-6:
            break
    return max(float(solution[0] / spread), 1e-6), float(solution[1]), float(solution[2])
