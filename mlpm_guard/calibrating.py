"""Calibrating a guard: prompts to scores, scores to a threshold and an affine map."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlpm_guard.bundle import Calibration
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.prototypes.calibration import (
    Array,
    OperatingPoint,
    affine_map,
    check_options,
    expected_calibration_error,
    needed,
    threshold_for_fpr,
    threshold_for_objective,
)
from mlpm_guard.prototypes.classifier import content_keys
from mlpm_guard.prototypes.scorer import certainty
from mlpm_guard.training import Label, labelled
from mlpm_guard.variants import variant_key
from mlpm_guard.verdict import Target

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard

Flags = npt.NDArray[np.bool_]

_CHUNK = 1024
_MAX_FPR = 0.01
_MANY_REPEATED = 0.1
_log = logging.getLogger("mlpm_guard")


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
    log_odds, truth, repeats = _scored(model_alone, prompts, labels)
    scale, offset = (1.0, 0.0) if labels is None else affine_map(log_odds, truth)
    scores = certainty(scale * log_odds + offset)
    rate = None
    if objective is not None:
        point = threshold_for_objective(scores, truth, objective)
    else:
        rate = _MAX_FPR if max_fpr is None else max_fpr
        point = _promised(scores[~truth], repeats[~truth], rate, confidence)
    repeated = int(repeats[~truth].sum())
    if repeated > _MANY_REPEATED * point.benign:
        _log.warning(
            "%d of %d benign calibration prompts repeat others; give a plain sample of traffic", repeated, point.benign
        )
    return (scale, offset), Calibration(
        threshold=point.threshold,
        benign=point.benign,
        repeated=repeated,
        unsafe=int(truth.sum()),
        flagged=point.flagged,
        max_fpr=rate,
        confidence=None if rate is None else confidence,
        objective=objective,
        scale=scale,
        offset=offset,
        calibration_error=None if labels is None else expected_calibration_error(scores, truth),
    )


def _promised(scores: Array, repeats: Flags, max_fpr: float, confidence: float) -> OperatingPoint:
    """The threshold that keeps the promise whether prompts that repeat others were drawn again, or copied."""
    different = scores[~repeats]
    least = needed(max_fpr, confidence)
    if len(different) < least <= len(scores):
        raise DataError(
            f"{len(scores)} benign prompts, of which only {len(different)} are different; at least {least} different ones are "
            f"needed to promise a false-positive rate of {max_fpr:.2%} with {confidence:.0%} confidence"
        )
    points = [threshold_for_fpr(each, max_fpr, confidence) for each in ([scores, different] if repeats.any() else [scores])]
    threshold = max(point.threshold for point in points)
    return OperatingPoint(threshold, int((scores >= threshold).sum()), len(scores))


def _scored(guard: Guard, prompts: Iterable[ConversationLike], labels: Iterable[Label] | None) -> tuple[Array, Flags, Flags]:
    """Log-odds and labels of all prompts, in order, and which of them repeat an earlier one."""
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
        raise DataError(f"prompts: a list of them, not {type(prompts).__name__}")
    rows: Iterator[tuple[ConversationLike, int]]
    if labels is None:
        rows = ((prompt, 0) for prompt in prompts)
    else:
        rows = ((conversation, label) for conversation, _, label in labelled(prompts, labels, guard.target))
    found: list[float] = []
    truth: list[int] = []
    repeats = _Repeats(guard.target)
    while chunk := list(islice(rows, _CHUNK)):
        for row, verdict in enumerate(guard.check_batch([prompt for prompt, _ in chunk]), start=len(found)):
            if verdict.log_odds is None:
                raise DataError(f"row {row} cannot be judged ({verdict.error}); calibrate on prompts that can")
            found.append(verdict.log_odds)
        truth += [label for _, label in chunk]
        repeats.add(prompt for prompt, _ in chunk)
    return np.array(found), np.array(truth, bool), np.array(repeats.found, bool)


class _Repeats:
    """Which prompts of a stream are the same as an earlier one, but for blanks, case and Unicode forms."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._seen: set[int] = set()
        self.found: list[bool] = []

    def add(self, prompts: Iterable[ConversationLike]) -> None:
        keys = content_keys([variant_key(Conversation.parse(prompt, target=self._target)) for prompt in prompts])
        for key in keys.tolist():
            self.found.append(key in self._seen)
            self._seen.add(key)
