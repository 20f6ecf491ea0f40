"""One category from a handful of examples: a logistic regression against what a guard has seen.

Layer states are centred, scaled to unit length and whitened with the covariance of a bounded sample of training states
(shrunk towards a sphere); then the examples are separated from that sample, and from any negatives, by a regularised logistic
regression. Everything happens in the space of inner products (Woodbury), so that the cost depends on the number of rows, a
thousand or so, and not on the width of a model. The result is one linear function per layer. Source of the affine map to
probabilities: Platt 1999.

Twenty examples say little about how a category differs from each of those that the guard was fitted on; their own rows say
more. So prototypes, with a covariance tied over those categories, tell it from each of them (`Rivals`), but for those that the
examples seem to belong to. numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp

from mlpm_guard.errors import DataError
from mlpm_guard.prototypes.categories import CategoryBlock, deeper_half, unit_states
from mlpm_guard.prototypes.rivals import Rivals
from mlpm_guard.prototypes.scorer import Array, sigmoid
from mlpm_guard.prototypes.statistics import CLASSES, PrototypeStatistics

SHRINKAGE = 3.0
"""Of the covariance, towards a sphere: weight of its mean eigenvalue."""
STRENGTH = 100.0
"""Inverse strength of the regression's penalty."""
PRIOR = 0.1
"""Share of all texts that belong to an added category, as its probabilities assume."""
PRIOR_AMONG_RIVALS = 0.25
"""The same, of those texts that belong to it or to fitted categories."""
BACKGROUND = 512
"""Training prompts of each class that examples are told from."""
RIVAL_SHRINKAGE = 1.0
"""As `SHRINKAGE`, where a category is told from fitted ones."""
RIVAL_ROWS = (5, 60)
"""Training prompts of a fitted category that are needed, and used at most."""
TOLD_APART = 0.75
"""Area under the ROC curve from which examples count as told from a fitted category."""
_EXAMPLES_SHARE = 0.5
_NEGATIVES_SHARE = 0.8
_IMPORTANCE = 40.0
_STEPS = 50
_TOLERANCE = 1e-4

States = npt.NDArray[np.floating]


@dataclass(frozen=True)
class _Rows:
    """States of all rows, shape (n, used, dim), which of them are examples, and how much each counts."""

    states: Array
    labels: Array
    importance: Array


def add_from_statistics(
    name: str,
    examples: States,
    negatives: States | None,
    statistics: PrototypeStatistics,
    used: npt.NDArray[np.int64],
) -> CategoryBlock:
    """A category from its examples and what a classifier keeps of its training prompts.

    Args:
        name: of the category.
        examples: their states, shape (n, layers, dim).
        negatives: states of texts that do not belong to it, shape (m, layers, dim), or None.
        statistics: of the classifier; not changed.
        used: which layers its score uses.

    Raises:
        DataError: the examples cannot be told from everything else.
    """
    background: list[States] = [
        _kept(statistics, label, statistics.classes[label].sorted_keys()[:BACKGROUND], used) for label in CLASSES
    ]
    center = 0.5 * (statistics.means(0)[used] + statistics.means(1)[used])
    others = None if negatives is None else negatives[:, used]
    block = learn_category(name, examples[:, used], background, others, used, center)
    # What tells one harm from another stands in the deeper layers.
    deep = np.isin(used, deeper_half(used))
    groups = [unit_states(each, center)[:, deep] for each in _fitted(statistics, used)]
    rivals = learn_rivals(unit_states(examples[:, used], center)[:, deep], groups)
    return block if rivals is None else replace(block, rivals=_widened(rivals, deep))


def _widened(rivals: Rivals, read: npt.NDArray[np.bool_]) -> Rivals:
    """The same functions of more layers, nothing for those that they do not read."""
    weights = np.zeros((len(rivals.biases), len(read), rivals.weights.shape[2]), np.float32)
    weights[:, read] = rivals.weights
    return replace(rivals, weights=weights)


def _kept(statistics: PrototypeStatistics, label: int, keys: Sequence[int], positions: npt.NDArray[np.int64]) -> Array:
    """States of training prompts that statistics keep, shape (n, used, dim)."""
    rows = statistics.classes[label].rows
    return np.array([rows[key].states[positions] for key in keys], np.float64)


def _fitted(statistics: PrototypeStatistics, positions: npt.NDArray[np.int64]) -> list[Array]:
    """States of the kept prompts of every fitted category that has enough of them."""
    fewest, most = RIVAL_ROWS
    of_category: dict[str, list[int]] = {}
    keys = statistics.classes[1].sorted_keys()
    for key, name in zip(keys, statistics.categories.of(keys), strict=True):
        if name is not None:
            of_category.setdefault(name, []).append(key)
    return [_kept(statistics, 1, of[:most], positions) for _, of in sorted(of_category.items()) if len(of) >= fewest]


def learn_category(
    name: str,
    examples: States,
    background: Sequence[States],
    negatives: States | None,
    positions: npt.NDArray[np.int64],
    center: Array,
) -> CategoryBlock:
    """A category from its examples.

    Args:
        name: of the category.
        examples: their states, shape (n, used, dim).
        background: states of training prompts, one array of shape (m, used, dim) per class; classes count the same.
        negatives: states of texts that do not belong to it, or None.
        positions: which of the encoder's layers these are, shape (used,).
        center: from where states are seen, shape (used, dim).

    Raises:
        DataError: the examples cannot be told from everything else.
    """
    seen = [unit_states(each, center) for each in background]
    rows = _weighted(unit_states(examples, center), seen, None if negatives is None else unit_states(negatives, center))
    scale = 1.0 / (rows.states.shape[1] * rows.states.shape[2])
    whitened = [_whitened(rows.states[:, at], [each[:, at] for each in seen], SHRINKAGE) for at in range(len(positions))]
    gram = scale * np.sum([rows.states[:, at] @ each for at, each in enumerate(whitened)], axis=0)
    factors, intercept, left_out = _regress(gram, rows.labels, rows.importance)
    slope, offset = _platt(left_out, rows.labels, rows.importance, PRIOR)
    if not slope > 0.0:
        raise DataError("the examples cannot be told from what the guard knows already; give others, or more of them")
    weights = slope * scale * np.stack([each @ factors for each in whitened])
    return CategoryBlock(
        (name,),
        np.asarray(positions, np.int64),
        weights[None].astype(np.float32),
        np.array([slope * intercept + offset]),
        center.astype(np.float32),
    )


def learn_rivals(examples: Array, groups: Sequence[Array]) -> Rivals | None:
    """What tells a category from others, but for those that its examples seem to belong to.

    Args:
        examples: of the category, as it reads them, shape (n, used, dim).
        groups: training prompts of each other category, shape (m, used, dim).

    Returns:
        None where it cannot be told from any.
    """
    if not groups:
        return None
    weights, biases, differences = _prototypes(examples, groups)
    owner = np.repeat(np.arange(-1, len(groups)), [len(examples), *(len(each) for each in groups)])
    told = [
        index
        for index in range(len(groups))
        if _area(differences[owner == -1, index], differences[owner == index, index]) >= TOLD_APART
    ]
    if not told:
        return None
    chosen = np.isin(owner, [-1, *told])
    nearest = -logsumexp(-differences[chosen][:, told], axis=1)
    labels = (owner[chosen] == -1).astype(np.float64)
    importance = np.where(labels > 0.5, 0.5 / labels.sum(), 0.5 / (len(labels) - labels.sum()))
    slope, offset = _platt(nearest, labels, importance, PRIOR_AMONG_RIVALS)
    if not slope > 0.0:
        return None
    return Rivals(weights[told].astype(np.float32), biases[told], np.array([slope, offset]))


def _prototypes(examples: Array, groups: Sequence[Array]) -> tuple[Array, Array, Array]:
    """A function for each group that is higher for the examples' category than for that group.

    Returns:
        Weights, shape (groups, used, dim), biases, shape (groups,), and the functions of all rows, those of the examples first,
        an example's own row left out of its prototype, shape (rows, groups).
    """
    used, dim = examples.shape[1:]
    rows = np.concatenate([examples, *groups])
    weights, biases = np.zeros((len(groups), used, dim)), np.zeros(len(groups))
    values = np.zeros((len(rows), len(groups)))
    for at in range(used):
        own, others = examples[:, at], np.stack([each[:, at].mean(axis=0) for each in groups])
        solved = _whitened(np.concatenate([others, own]), [each[:, at] for each in groups], RIVAL_SHRINKAGE) / used
        of_groups, of_own = solved[:, : len(groups)], solved[:, len(groups) :]
        mean = of_own.mean(axis=1)
        bias = -0.5 * float(own.mean(axis=0) @ mean)
        of_others = -0.5 * np.einsum("kd,dk->k", others, of_groups)
        weights[:, at] = mean - of_groups.T
        biases += bias - of_others
        values[: len(own)] += _left_out(own @ of_own)[:, None]
        values[len(own) :] += (rows[len(own) :, at] @ mean + bias)[:, None]
        values -= rows[:, at] @ of_groups + of_others
    return weights, biases, values


def _left_out(inner: Array) -> Array:
    """Linear scores of examples against the prototype of the others, from their inner products, shape (n, n)."""
    count, sums, total = len(inner), inner.sum(axis=1), inner.sum()
    diagonal = np.diag(inner)
    square = (total - 2.0 * sums + diagonal) / (count - 1) ** 2
    found: Array = (sums - diagonal) / (count - 1) - 0.5 * square
    return found


def _area(examples: Array, others: Array) -> float:
    """Area under the ROC curve."""
    return float(np.mean(examples[:, None] > others))


def _weighted(examples: Array, background: Sequence[Array], negatives: Array | None) -> _Rows:
    parts = [examples, *background]
    rest = 1.0 - _EXAMPLES_SHARE
    shares = [_EXAMPLES_SHARE, *(rest / len(background) for _ in background)]
    if negatives is not None:
        shares = [_EXAMPLES_SHARE, *((1.0 - _NEGATIVES_SHARE) * rest / len(background) for _ in background)]
        parts.append(negatives)
        shares.append(_NEGATIVES_SHARE * rest)
    importance = np.concatenate([np.full(len(part), share / len(part)) for part, share in zip(parts, shares, strict=True)])
    states = np.concatenate(parts)
    return _Rows(states, np.r_[np.ones(len(examples)), np.zeros(len(states) - len(examples))], importance)


def _whitened(states: Array, background: Sequence[Array], shrinkage: float) -> Array:
    """Rows times the inverse of the background's shrunk within-group covariance, transposed: shape (dim, n)."""
    centred = np.concatenate([each - each.mean(axis=0) for each in background])
    count, dim = centred.shape
    ridge = max(shrinkage * float(np.einsum("nd,nd->", centred, centred)) / (count * dim), np.finfo(np.float64).tiny)
    inner = centred @ centred.T
    inner.flat[:: count + 1] += count * ridge
    solved = cho_solve(cho_factor(inner, lower=True, check_finite=False), centred @ states.T, check_finite=False)
    # In units of the average direction, so that the regression's penalty means the same in every layer and model.
    found: Array = (states.T - centred.T @ solved) * (dim / shrinkage)
    return found


def _regress(gram: Array, labels: Array, importance: Array) -> tuple[Array, float, Array]:
    """Kernel logistic regression by Newton's method.

    Returns:
        Factors of the rows, the intercept, and the log-odds of every row by a regression that has not seen it (to first order:
        the leave-one-out formula of the last weighted least-squares step).
    """
    weights = _IMPORTANCE * importance
    n = len(labels)
    found, factors, intercept = np.zeros(n), np.zeros(n), 0.0
    for _ in range(_STEPS):
        chance = sigmoid(found)
        curvature = np.maximum(weights * chance * (1.0 - chance), 1e-12)
        working = found + weights * (labels - chance) / curvature
        system = gram.copy()
        system.flat[:: n + 1] += 1.0 / (STRENGTH * curvature)
        factored = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        ones, solved = cho_solve(factored, np.stack([np.ones(n), working], axis=1), check_finite=False).T
        intercept = float(solved.sum() / ones.sum())
        factors = solved - intercept * ones
        before, found = found, gram @ factors + intercept
        if np.abs(found - before).max() < _TOLERANCE:
            break
    diagonal = np.diag(cho_solve(factored, np.eye(n), check_finite=False)) - ones**2 / ones.sum()
    return factors, intercept, working - factors / diagonal


def _platt(log_odds: Array, labels: Array, importance: Array, prior: float) -> tuple[float, float]:
    """Slope and offset of the map from log-odds to those of a category that a share of `prior` of all texts belongs to."""
    examples = labels > 0.5
    count = int(examples.sum())
    targets = np.where(examples, (count + 1.0) / (count + 2.0), 1.0 / (len(labels) - count + 2.0))
    weights = np.where(examples, prior, 1.0 - prior) * importance
    weights = weights / np.where(examples, importance[examples].sum(), importance[~examples].sum()) * len(labels)
    center, spread = float(np.average(log_odds, weights=weights)), float(log_odds.std()) or 1.0
    features = np.stack([(log_odds - center) / spread, np.ones_like(log_odds)], axis=1)
    solution = np.zeros(2)
    for _ in range(_STEPS):
        chance = sigmoid(features @ solution)
        gradient = features.T @ (weights * (targets - chance)) - 1e-3 * solution
        hessian = (features.T * (weights * chance * (1.0 - chance))) @ features + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        solution = solution + step
        if np.abs(step).max() < _TOLERANCE:
            break
    slope = float(solution[0] / spread)
    return slope, float(solution[1] - slope * center)
