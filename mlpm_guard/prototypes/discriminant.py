"""The tied-covariance Gaussian discriminant, one per layer.

With A the within-class scatter of N prompts (the sum over classes of (h - mu_y)(h - mu_y)^T), S = A / (N - 1) and D numbers a
state:

    P = D (A + tr(S) I)^-1                  Bayes ridge precision
    w = P (mu_1 - mu_0)
    b = -1/2 (mu_1^T P mu_1 - mu_0^T P mu_0) = -1/2 w^T (mu_1 + mu_0)
    g(h) = w^T h + b                        log-odds of unsafe against safe, equal priors

Source: Chrabaszcz et al., "Efficient LLM Moderation with Multi-Layer Latent Prototypes", arXiv 2502.16174. No matrix is
inverted: a Cholesky factor is solved against, or, with fewer prompts than dimensions, the n x n dual of it (Woodbury). numpy
and scipy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dgemm

from mlpm_guard.errors import DataError
from mlpm_guard.prototypes.gram import Array, add_gram, products, weighted_sum
from mlpm_guard.prototypes.statistics import CLASSES, ClassStatistics, PrototypeStatistics


@dataclass(frozen=True)
class Discriminants:
    """One linear function a layer.

    Attributes:
        weights: shape (layers, dim), float64.
        biases: shape (layers,), float64.
    """

    weights: Array
    biases: Array


@dataclass(frozen=True)
class Moments:
    """What one layer's discriminant is made of.

    Attributes:
        count: prompts.
        means: shape (classes, dim).
        upper: the scatter's upper triangle in a new (dim, dim) matrix, or None.
        factor: shape (m, dim), m below dim; the scatter is its Gram matrix. None where `upper` is not.
    """

    count: float
    means: Array
    upper: Array | None
    factor: Array | None


def fit_discriminants(statistics: PrototypeStatistics) -> Discriminants:
    """Discriminants of all layers. A layer whose states do not vary within the classes carries no evidence and gets zeros.

    Raises:
        DataError: no layer varies.
    """
    return _solve_layers(statistics, (moments(statistics, layer, {}) for layer in range(statistics.layers)))


def out_of_fold_log_odds(statistics: PrototypeStatistics, folds: int) -> tuple[Array, npt.NDArray[np.int64], Array]:
    """Layer log-odds of the kept rows, each by discriminants that have not seen it.

    A row belongs to the fold of its rank among its class's keys, modulo `folds`; a fold's discriminants come from subtracting
    its rows, not from a refit on all data. With `folds` below 2, the log-odds are the fitted discriminants' own.

    Returns:
        Log-odds of shape (rows, layers), labels and multiplicities of shape (rows,). Rows are ordered by label and key, so that
        the result does not depend on the order prompts came in.
    """
    held: list[tuple[int, list[int]]] = [(label, statistics.classes[label].sorted_keys()) for label in CLASSES]
    labels = np.concatenate([np.full(len(keys), label) for label, keys in held])
    times = np.array([statistics.classes[label].rows[key].times for label, of_class in held for key in of_class], float)
    places = {label: np.flatnonzero(labels == label) for label in CLASSES}
    folds = max(folds, 1)
    log_odds = np.zeros((len(labels), statistics.layers))
    for layer in range(statistics.layers):
        of_layer = {label: statistics.classes[label].layer(layer, of_class) for label, of_class in held if of_class}
        for fold in range(folds):
            left_out = {} if folds == 1 else {label: of_class[fold::folds] for label, of_class in held}
            known = {label: (rows[fold::folds], often[fold::folds]) for label, (rows, often) in of_layer.items()}
            weights, bias = _solve(moments(statistics, layer, left_out, known), statistics.dim)
            for label, (rows, _) in known.items():
                log_odds[places[label][fold::folds], layer] = products(rows, weights) + bias
    return log_odds, labels, times


def _solve_layers(statistics: PrototypeStatistics, layers: Iterator[Moments]) -> Discriminants:
    solved = [_solve(each, statistics.dim) for each in layers]
    weights = np.stack([weights for weights, _ in solved])
    if not weights.any():
        raise DataError("the layer states of the training prompts do not differ; there is nothing to learn from")
    return Discriminants(weights, np.array([bias for _, bias in solved]))


def _solve(of_layer: Moments, dim: int) -> tuple[Array, float]:
    delta = of_layer.means[1] - of_layer.means[0]
    if of_layer.upper is not None:
        trace = float(np.trace(of_layer.upper))
    else:
        assert of_layer.factor is not None
        trace = float(np.einsum("md,md->", of_layer.factor, of_layer.factor))
    ridge = trace / (of_layer.count - 1)
    size = float(np.abs(of_layer.means).max())
    if not ridge > dim * (np.finfo(np.float32).eps * size) ** 2 * 1e-3:
        return np.zeros(dim), 0.0
    if of_layer.upper is not None:
        of_layer.upper.flat[:: dim + 1] += ridge
        factored = cho_factor(of_layer.upper.T, lower=True, overwrite_a=True, check_finite=False)
        weights = dim * cho_solve(factored, delta, check_finite=False)
    else:
        factor = of_layer.factor
        assert factor is not None
        gram = dgemm(1.0, factor.T, factor.T, trans_a=True) + ridge * np.eye(len(factor))
        solved = cho_solve(cho_factor(gram, lower=True), products(factor, delta))
        weights = dim / ridge * (delta - weighted_sum(solved, factor))
    return weights, float(-0.5 * weights @ (of_layer.means[1] + of_layer.means[0]))


def moments(
    statistics: PrototypeStatistics,
    layer: int,
    left_out: dict[int, list[int]],
    known: dict[int, tuple[Array, Array]] | None = None,
) -> Moments:
    """Count, means and scatter of one layer, without the rows named by key.

    Args:
        statistics: of all prompts.
        layer: position of the layer.
        left_out: keys by class.
        known: what `ClassStatistics.layer` gives for them, by class, where the caller has it already.
    """
    count = 0.0
    means = np.zeros((len(CLASSES), statistics.dim))
    factors: list[Array] = []
    removed: list[Array] = []
    for label in CLASSES:
        of_class = statistics.classes[label]
        without = left_out.get(label, [])
        if of_class.complete:
            skipped = set(without)
            keys = [key for key in of_class.sorted_keys() if key not in skipped]
            if not keys:
                raise DataError(f"no prompts of class {label} are left")
            rows, times = of_class.layer(layer, keys)
            number = times.sum()
            means[label] = weighted_sum(times, rows) / number
            factors.append(_centred(rows, means[label], times))
        elif without:
            gone = of_class.layer(layer, without) if known is None else known[label]
            number, means[label], rows = _downdate(of_class, layer, *gone)
            removed.append(rows)
        else:
            assert of_class.mean is not None
            number, means[label] = float(of_class.count), of_class.mean[layer]
        count += number
    factor = np.concatenate(factors) if factors else np.zeros((0, statistics.dim))
    if statistics.upper is None:
        if len(factor) < statistics.dim:
            return Moments(count, means, None, factor)
        upper = np.zeros((statistics.dim, statistics.dim))
    else:
        upper = statistics.upper[layer].copy()
    add_gram(upper, factor)
    if removed:
        add_gram(upper, np.concatenate(removed), -1.0)
    return Moments(count, means, upper, None)


def _centred(rows: Array, mean: Array, times: Array) -> Array:
    """Rows whose Gram matrix is the scatter of rows around their mean, each taken so many times."""
    found: Array = rows - mean
    found *= np.sqrt(times)[:, None]
    return found


def _downdate(of_class: ClassStatistics, layer: int, rows: Array, times: Array) -> tuple[float, Array, Array]:
    """Take rows out of a condensed class: the count and mean that are left, and rows whose Gram matrix leaves the scatter."""
    assert of_class.mean is not None
    mean = of_class.mean[layer]
    out = times.sum()
    out_mean = weighted_sum(times, rows) / out
    left = of_class.count - out
    left_mean = (mean * of_class.count - out_mean * out) / left
    shift = (out_mean - left_mean) * np.sqrt(left * out / of_class.count)
    return float(left), left_mean, np.concatenate([_centred(rows, out_mean, times), shift[None]])
