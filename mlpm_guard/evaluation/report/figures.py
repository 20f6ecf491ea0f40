"""Figures of the report, from what guards said of the rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from mlpm_guard.evaluation import plots
from mlpm_guard.evaluation.intervals import Interval, exact, percentile, replicates
from mlpm_guard.evaluation.judged import Flags, Judged
from mlpm_guard.evaluation.metrics import Name
from mlpm_guard.evaluation.page import Cell
from mlpm_guard.evaluation.report.cells import estimate, share

Array = npt.NDArray[np.float64]

BINS = 10
"""Groups of a reliability diagram."""

COLUMNS = ("precision", "recall", "F1", "average precision", "recall at 1 % FP", "recall at 5 % FP", "false positives")
"""Headings for `figures`."""


def figures(each: Judged, which: Flags | None = None) -> list[Cell]:
    """Cells for `COLUMNS`."""
    chosen = np.ones(len(each.scores), bool) if which is None else which
    metrics, unsafe, flagged = each.metrics(chosen), each.rows.unsafe[chosen], flags(each)[chosen]
    ends: dict[Name, Interval | None] = {}
    if both(unsafe):
        ends = {name: percentile(values) for name, values in replicates(unsafe, each.ranks[chosen], flagged).items()}
    return [
        estimate(metrics.precision, ends.get("precision")),
        share(int((unsafe & flagged).sum()), int(unsafe.sum())),
        estimate(metrics.f1, ends.get("f1")),
        estimate(metrics.average_precision, ends.get("average_precision")),
        estimate(metrics.recall_at_fpr["0.01"], ends.get("recall@0.01")),
        estimate(metrics.recall_at_fpr["0.05"], ends.get("recall@0.05")),
        share(int((~unsafe & flagged).sum()), int((~unsafe).sum())),
    ]


def reliability_bins(scores: Array, unsafe: Flags) -> list[plots.Bin]:
    """The groups that `expected_calibration_error` averages over."""
    bins = []
    for group in np.array_split(np.argsort(scores, kind="stable"), min(BINS, len(scores))):
        ends = exact(int(unsafe[group].sum()), len(group))
        assert ends is not None
        bins.append(plots.Bin(float(scores[group].mean()), float(unsafe[group].mean()), *ends))
    return bins


def by_layer(each: Judged) -> dict[int, float]:
    """Average precision of every layer's log-odds alone, where it is defined."""
    found = {}
    for position, layer in enumerate(each.layers):
        values = each.layer_log_odds[:, position]
        known = ~np.isnan(values)
        precision = ranking_precision(each.rows.unsafe[known], values[known])
        if precision is not None:
            found[layer] = precision
    return found


def ranking_precision(truth: Flags, values: Array) -> float | None:
    """Average precision; None with one class only."""
    return float(average_precision_score(truth, values)) if both(truth) else None


def flags(each: Judged) -> Flags:
    """Which rows count as flagged: as in `Metrics`, those that could not be judged too. Shape (n,)."""
    return each.flagged | np.isnan(each.scores)


def both(unsafe: Flags) -> bool:
    """Whether both classes are there."""
    return bool(unsafe.any() and not unsafe.all())
