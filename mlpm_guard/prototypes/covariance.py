"""The tied covariance of every used layer in the low-rank form that novelty is measured with, and what is usual in it.

Fits `novelty.Novelty` from the statistics; nothing is encoded. numpy and scipy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, qr
from scipy.linalg.blas import dgemm, dsymm

from mlpm_guard.prototypes.discriminant import Moments, moments
from mlpm_guard.prototypes.novelty import RANK, Array, Novelty
from mlpm_guard.prototypes.statistics import CLASSES, PrototypeStatistics

FEWEST = 10
"""Different prompts of each class from which a percentile means anything."""

_OVERSAMPLED = 8
_ITERATIONS = 2
_POINTS = 1000
_FOLDS = 5
_HELD_OUT = 256
_ENOUGH = 256


class _Fitted(NamedTuple):
    """A `Novelty` but for its percentiles."""

    means: Array
    basis: npt.NDArray[np.float32]
    variances: Array
    rest: Array

    def novelty(self, quantiles: Array) -> Novelty:
        return Novelty(*self, quantiles)


def fit_novelty(statistics: PrototypeStatistics, positions: npt.NDArray[np.int64]) -> Novelty | None:
    """Distances to the classes at some layers, and their percentiles on training prompts that they have not seen.

    A training prompt pulls its class's mean towards itself and the covariance with it, so that its own distance is too small.
    The percentiles therefore come from fits without the prompts that are measured: where every prompt's states are kept, folds
    of them until enough are measured; where only a sample is, part of the sample by one fit on everything else.

    Args:
        statistics: of the training prompts.
        positions: layers that are used, shape (used,).

    Returns:
        None where a class has fewer than `FEWEST` different prompts.
    """
    if min(len(statistics.classes[label].rows) for label in CLASSES) < FEWEST:
        return None
    fitted = _fit(statistics, positions, {})
    distances, weights = [], []
    for left_out in _groups(statistics):
        without = _fit(statistics, positions, left_out, fitted.basis).novelty(np.zeros(1))
        for label, keys in left_out.items():
            kept = statistics.classes[label].rows
            states = np.stack([kept[key].states[positions] for key in keys])
            times = np.array([kept[key].times for key in keys], np.float64)
            distances.append(without.distances(states).sum(axis=2).min(axis=1))
            # A sample has as many prompts of either class; the training prompts need not.
            weights.append(times * statistics.count(label) / _sampled(statistics, label))
    return fitted.novelty(_quantiles(np.concatenate(distances), np.concatenate(weights)))


def _sampled(statistics: PrototypeStatistics, label: int) -> int:
    return sum(row.times for row in statistics.classes[label].rows.values())


def _groups(statistics: PrototypeStatistics) -> list[dict[int, list[int]]]:
    """Kept prompts to leave out together, by class and key."""
    keys = {label: statistics.classes[label].sorted_keys() for label in CLASSES}
    if all(_sampled(statistics, label) == statistics.count(label) for label in CLASSES):
        folds = [{label: of_class[fold::_FOLDS] for label, of_class in keys.items()} for fold in range(_FOLDS)]
        return folds[: -(-_ENOUGH * _FOLDS // sum(map(len, keys.values())))]
    sizes = {label: min(_HELD_OUT, max(2, statistics.count(label) // 4)) for label in CLASSES}
    return [{label: of_class[: sizes[label]] for label, of_class in keys.items()}]


def _fit(
    statistics: PrototypeStatistics,
    positions: npt.NDArray[np.int64],
    left_out: dict[int, list[int]],
    near: npt.NDArray[np.float32] | None = None,
) -> _Fitted:
    parts = []
    # A fit without some prompts has the ridge of one with all, so that its distances are those of the guard.
    degrees = max(sum(statistics.count(label) for label in CLASSES) - 1.0, 1.0)
    for index, layer in enumerate(positions.tolist()):
        of_layer = moments(statistics, layer, left_out)
        # As they are saved, so that a loaded guard measures exactly what the fitted one does.
        prototypes = of_layer.means.astype(np.float32).astype(np.float64)
        parts.append((prototypes, *_leading(of_layer, degrees, None if near is None else near[index])))
    means, bases, variances, rest = zip(*parts, strict=True)
    return _Fitted(np.stack(means, axis=1), np.stack(bases), np.stack(variances), np.array(rest))


def _leading(
    of_layer: Moments, shrinking: float, near: npt.NDArray[np.float32] | None
) -> tuple[npt.NDArray[np.float32], Array, float]:
    """Leading directions of a layer's covariance, the variances along them, and the variance along all others.

    Subspace iteration from a fixed start, or from directions that are near already, then Rayleigh-Ritz (Halko, Martinsson &
    Tropp, SIAM Review 53, 2011).
    """
    dim = of_layer.means.shape[1]
    if of_layer.upper is not None:
        trace = float(np.trace(of_layer.upper))
    else:
        assert of_layer.factor is not None
        trace = float(np.einsum("md,md->", of_layer.factor, of_layer.factor))
    rank = min(RANK, dim)
    directions = np.random.default_rng(0).standard_normal((min(dim, rank + _OVERSAMPLED), dim)).T
    if near is not None:
        directions[:, :rank] = near.T
    for _ in range(_ITERATIONS if near is None else 1):
        directions = qr(_spread(of_layer, directions), mode="economic", check_finite=False)[0]
    spreads, turned = eigh(dgemm(1.0, directions, _spread(of_layer, directions), trans_a=True), check_finite=False)
    basis = dgemm(1.0, directions, turned[:, ::-1][:, :rank]).T.astype(np.float16).astype(np.float32)
    degrees = max(of_layer.count - 1.0, 1.0)
    variances = np.maximum(spreads[::-1][:rank], 0.0) / degrees
    total = trace / degrees
    # A layer that does not vary has no distances; anything that differs is then far away.
    ridge = max(total / shrinking, np.finfo(np.float64).tiny ** 0.5)
    if rank == dim:
        return basis, variances + ridge, float(variances.min()) + ridge  # no direction is left over
    return basis, variances + ridge, max(total - float(variances.sum()), 0.0) / (dim - rank) + ridge


def _spread(of_layer: Moments, directions: Array) -> Array:
    """Scatter times directions, shape (dim, k)."""
    found: Array
    if of_layer.upper is not None:
        # To BLAS, which counts columns first, the upper triangle is the lower one of the transpose.
        found = dsymm(1.0, of_layer.upper.T, directions, lower=1)
    else:
        assert of_layer.factor is not None
        rows = of_layer.factor.T
        found = dgemm(1.0, rows, dgemm(1.0, rows, directions, trans_a=True))
    return found


def _quantiles(values: Array, weights: Array) -> Array:
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    points = min(_POINTS, len(values))
    levels = (np.arange(points) + 0.5) / points * cumulated[-1]
    found: Array = values[order][np.searchsorted(cumulated, levels, side="left")]
    return found
