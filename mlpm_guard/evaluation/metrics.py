"""Metrics of binary moderation: what is caught, what is flagged for nothing, and how well scores rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import average_precision_score, roc_curve

from mlpm_guard.errors import DataError

Rate = Literal["0.01", "0.05"]

RATES: tuple[Rate, ...] = ("0.01", "0.05")
"""False-positive rates at which recall is reported."""

Name = Literal["precision", "recall", "f1", "average_precision", "recall@0.01", "recall@0.05", "false_positive_rate"]
"""A metric by its name, recall at a false-positive rate included."""

NOT_JUDGED = 2.0
"""What a row that could not be judged ranks with: above every score."""


class Metrics(BaseModel):
    """How good verdicts are. A figure that the rows do not define is None.

    Attributes:
        n: rows.
        unsafe: rows labelled unsafe.
        safe: rows labelled safe.
        errors: rows that could not be judged. They count as flagged, and rank above every other row.
        precision: share of flagged rows that are unsafe. None with one class only, or when nothing was flagged.
        recall: share of unsafe rows that are flagged.
        f1: harmonic mean of precision and recall; 0 when nothing was flagged. None with one class only.
        false_positive_rate: share of safe rows that are flagged.
        average_precision: area under the precision-recall curve, as scikit-learn sums it. None with one class only.
        recall_at_fpr: recall at the lowest threshold whose false-positive rate is at most the key. None with one class only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(ge=0)
    unsafe: int = Field(ge=0)
    safe: int = Field(ge=0)
    errors: int = Field(ge=0)
    precision: float | None
    recall: float | None
    f1: float | None
    false_positive_rate: float | None
    average_precision: float | None
    recall_at_fpr: dict[Rate, float | None]

    def figure(self, name: Name) -> float | None:
        """A metric by its name; None where the rows do not define it."""
        if name == "recall@0.01":
            return self.recall_at_fpr["0.01"]
        if name == "recall@0.05":
            return self.recall_at_fpr["0.05"]
        value: float | None = getattr(self, name)
        return value


def compute(
    labels: Sequence[int] | npt.NDArray[np.integer],
    scores: Sequence[float | None] | npt.NDArray[np.floating],
    flagged: Sequence[bool] | npt.NDArray[np.bool_],
) -> Metrics:
    """Metrics of one set of verdicts.

    Args:
        labels: 0 for safe, 1 for unsafe.
        scores: probability of being unsafe; None or NaN for a row that could not be judged, which then counts as flagged.
        flagged: the judgement on each row.

    Raises:
        DataError: the three differ in length, a label is neither 0 nor 1, or a score is not a probability.
    """
    truth = np.asarray(labels, np.float64).reshape(-1)
    ranks = np.array([np.nan if score is None else score for score in scores], np.float64)
    positive = np.asarray(flagged, bool).reshape(-1)
    if not len(truth) == len(ranks) == len(positive):
        raise DataError(f"{len(truth)} labels, {len(ranks)} scores and {len(positive)} judgements: give one of each per row")
    if not np.isin(truth, (0, 1)).all():
        raise DataError(f"label {int(np.flatnonzero(~np.isin(truth, (0, 1)))[0])} is neither 0 (safe) nor 1 (unsafe)")
    failed = np.isnan(ranks)
    outside = np.flatnonzero(~failed & ((ranks < 0) | (ranks > 1)))
    if len(outside):
        raise DataError(f"score {int(outside[0])} is not a probability from 0 to 1")
    positive = positive | failed
    # A score of 1 of a judged row would tie with a failed one; a row that is blocked unseen outranks every score.
    ranks = np.where(failed, NOT_JUDGED, ranks)
    unsafe_rows = truth == 1
    unsafe, safe = int(unsafe_rows.sum()), int((~unsafe_rows).sum())
    hits, false_alarms = int((positive & unsafe_rows).sum()), int((positive & ~unsafe_rows).sum())
    both = unsafe > 0 and safe > 0
    return Metrics(
        n=len(truth),
        unsafe=unsafe,
        safe=safe,
        errors=int(failed.sum()),
        precision=_share(hits, hits + false_alarms) if both else None,
        recall=_share(hits, unsafe),
        f1=_share(2 * hits, hits + false_alarms + unsafe) if both else None,
        false_positive_rate=_share(false_alarms, safe),
        average_precision=float(average_precision_score(unsafe_rows, ranks)) if both else None,
        recall_at_fpr=_recalls(unsafe_rows, ranks) if both else dict.fromkeys(RATES),
    )


def _recalls(unsafe_rows: npt.NDArray[np.bool_], ranks: npt.NDArray[np.float64]) -> dict[Rate, float | None]:
    # Every distinct score is a threshold, so that equal scores are flagged together or not at all.
    false_positive_rates, recalls, _ = roc_curve(unsafe_rows, ranks, drop_intermediate=False)
    return {rate: float(recalls[false_positive_rates <= float(rate)].max()) for rate in RATES}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
