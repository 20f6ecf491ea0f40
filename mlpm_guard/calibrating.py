"""Calibrating a guard: prompts to scores, scores to a threshold and an affine map."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mlpm_guard.bundle import Calibration
from mlpm_guard.conversation import ConversationLike
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.prototypes.calibration import (
    Array,
    affine_map,
    check_options,
    expected_calibration_error,
    threshold_for_fpr,
    threshold_for_objective,
)
from mlpm_guard.prototypes.scorer import sigmoid
from mlpm_guard.training import Label, labelled

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard

_CHUNK = 1024
_MAX_FPR = 0.01


def calibrated(
    guard: Guard,
    prompts: Iterable[ConversationLike],
    labels: Iterable[Label] | None,
    *,
    max_fpr: float | None,
    confidence: float,
    objective: str | None,
) -> tuple[tuple[float, float], Calibration]:
    """Scale and offset for a guard's log-odds, and the threshold behind them. Arguments and errors as `Guard.calibrate`."""
    if objective is not None and (labels is None or max_fpr is not None):
        raise ConfigurationError("an objective needs labels, and takes the place of max_fpr: give one of the two")
    check_options(max_fpr, confidence, objective)
    model_alone = copy.copy(guard)
    model_alone.rules = None
    log_odds, truth = _scored(model_alone, prompts, labels)
    scale, offset = (1.0, 0.0) if labels is None else affine_map(log_odds, truth)
    scores = sigmoid(scale * log_odds + offset)
    rate = None
    if objective is not None:
        point = threshold_for_objective(scores, truth, objective)
    else:
        rate = _MAX_FPR if max_fpr is None else max_fpr
        point = threshold_for_fpr(scores[~truth], rate, confidence)
    return (scale, offset), Calibration(
        threshold=point.threshold,
        benign=point.benign,
        unsafe=int(truth.sum()),
        flagged=point.flagged,
        max_fpr=rate,
        confidence=None if rate is None else confidence,
        objective=objective,
        scale=scale,
        offset=offset,
        calibration_error=None if labels is None else expected_calibration_error(scores, truth),
    )


def _scored(
    guard: Guard, prompts: Iterable[ConversationLike], labels: Iterable[Label] | None
) -> tuple[Array, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Log-odds and labels of all prompts, in order."""
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
        raise DataError(f"prompts: a list of them, not {type(prompts).__name__}")
    rows: Iterator[tuple[ConversationLike, int]]
    if labels is None:
        rows = ((prompt, 0) for prompt in prompts)
    else:
        rows = ((conversation, label) for conversation, _, label in labelled(prompts, labels, guard.target))
    found: list[float] = []
    truth: list[int] = []
    while chunk := list(islice(rows, _CHUNK)):
        for row, verdict in enumerate(guard.check_batch([prompt for prompt, _ in chunk]), start=len(found)):
            if verdict.log_odds is None:
                raise DataError(f"row {row} cannot be judged ({verdict.error}); calibrate on prompts that can")
            found.append(verdict.log_odds)
        truth += [label for _, label in chunk]
    return np.array(found), np.array(truth, bool)
