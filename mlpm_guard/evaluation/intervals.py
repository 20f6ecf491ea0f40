"""Confidence intervals of metrics: exact ones for plain shares, the seeded bootstrap for everything else.

Works on labels, scores and judgements; knows no text.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from mlpm_guard.evaluation.metrics import Name

Array = npt.NDArray[np.float64]

NAMES: tuple[Name, ...] = get_args(Name)
"""What the bootstrap resamples, as in `Metrics`."""

REPEATS = 1000
SEED = 0
CONFIDENCE = 0.95

_CELLS = 1_000_000


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval."""

    low: float
    high: float


def exact(part: int, whole: int, confidence: float = CONFIDENCE) -> Interval | None:
    """The interval of a share, two-sided (Clopper & Pearson, Biometrika 26, 1934). None where `whole` is 0."""
    if not whole:
        return None
    tail = (1.0 - confidence) / 2
    low = 0.0 if part == 0 else float(beta.ppf(tail, part, whole - part + 1))
    high = 1.0 if part == whole else float(beta.ppf(1.0 - tail, part + 1, whole - part))
    return Interval(low, high)


def replicates(
    unsafe: npt.NDArray[np.bool_],
    ranks: Array,
    flagged: npt.NDArray[np.bool_],
    *,
    repeats: int = REPEATS,
    seed: int = SEED,
) -> dict[Name, Array]:
    """Metrics of resamples of the rows (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993).

    Rows are drawn with replacement within each class, because how many of each there are was somebody's choice and no chance.
    The same seed draws the same rows, so that two guards on the same rows can be compared draw by draw.

    Args:
        unsafe: which rows are unsafe, shape (n,), both classes present.
        ranks: what ranks the rows, shape (n,); equal values are flagged together or not at all.
        flagged: the judgement on each row, shape (n,).
        repeats: how many resamples.
        seed: of the draws.

    Returns:
        For every metric an array of shape (repeats,). The precision of a resample without a flagged row is NaN.
    """
    order = np.argsort(-ranks, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(ranks[order])), len(order) - 1)
    # A generator for each class, so that the draws do not depend on how many resamples fit into memory at once.
    generators = [np.random.default_rng([seed, label]) for label in (0, 1)]
    found: dict[Name, list[Array]] = {name: [] for name in NAMES}
    left = repeats
    while left:
        count = min(left, max(1, _CELLS // len(order)))
        left -= count
        weights = _drawn(unsafe, count, generators)
        hits = np.cumsum((weights * unsafe)[:, order], axis=1)[:, ends]
        alarms = np.cumsum((weights * ~unsafe)[:, order], axis=1)[:, ends]
        for name, values in _metrics(weights, unsafe, flagged, hits, alarms).items():
            found[name].append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def percentile(values: Array, confidence: float = CONFIDENCE) -> Interval | None:
    """The percentile interval of replicates; None where one is undefined."""
    if np.isnan(values).any():
        return None
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def _drawn(unsafe: npt.NDArray[np.bool_], count: int, generators: list[np.random.Generator]) -> npt.NDArray[np.int64]:
    """How often each row is drawn, shape (count, n)."""
    weights = np.zeros((count, len(unsafe)), np.int64)
    for rows, generator in zip((np.flatnonzero(~unsafe), np.flatnonzero(unsafe)), generators, strict=True):
        drawn = generator.integers(0, len(rows), (count, len(rows))) + np.arange(count)[:, None] * len(rows)
        weights[:, rows] = np.bincount(drawn.reshape(-1), minlength=count * len(rows)).reshape(count, len(rows))
    return weights


def _metrics(
    weights: npt.NDArray[np.int64],
    unsafe: npt.NDArray[np.bool_],
    flagged: npt.NDArray[np.bool_],
    hits: npt.NDArray[np.int64],
    alarms: npt.NDArray[np.int64],
) -> dict[Name, Array]:
    positives, negatives = int(unsafe.sum()), int((~unsafe).sum())
    caught = weights @ (flagged & unsafe).astype(np.int64)
    wrong = weights @ (flagged & ~unsafe).astype(np.int64)
    steps = np.diff(hits, axis=1, prepend=0) / positives
    taken = hits + alarms
    # A group of equal ranks that was not drawn at all stands first with nothing taken; its step is 0 as well.
    precisions = hits / np.maximum(taken, 1)
    with np.errstate(invalid="ignore"):
        precision = caught / (caught + wrong)
    return {
        "precision": precision,
        "recall": caught / positives,
        "false_positive_rate": wrong / negatives,
        "f1": 2 * caught / (caught + wrong + positives),
        "average_precision": (steps * precisions).sum(axis=1),
        "recall@0.01": _recall_at(hits / positives, alarms / negatives, 0.01),
        "recall@0.05": _recall_at(hits / positives, alarms / negatives, 0.05),
    }


def _recall_at(recalls: Array, false_positive_rates: Array, allowed: float) -> Array:
    within = (false_positive_rates <= allowed).sum(axis=1)
    reached = np.take_along_axis(recalls, np.maximum(within - 1, 0)[:, None], axis=1)[:, 0]
    return np.where(within > 0, reached, 0.0)
