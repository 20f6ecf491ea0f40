"""Operating points: thresholds with a guarantee, thresholds for an objective, and calibrated probabilities.

Works on scores and labels; knows no text. A guarantee holds for traffic that is exchangeable with the calibration prompts:
drawn the same way, and not used for fitting.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from mlpm_guard.errors import ConfigurationError, DataError

Array = npt.NDArray[np.float64]
_LEAST_STEP = 1e-9
_RECALL_AT = re.compile(r"recall@fpr=(0?\.\d+)")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it did on the prompts it was chosen on.

    Attributes:
        threshold: probability from which a prompt is flagged.
        flagged: how many of the benign calibration prompts it flags.
        benign: how many there were.
    """

    threshold: float
    flagged: int
    benign: int


def check_options(max_fpr: float | None, confidence: float, objective: str | None) -> None:
    """Find a bad option before anything is judged for it.

    Raises:
        ConfigurationError: a rate is not in (0, 1), or the objective is unknown.
    """
    for name, value in (("max_fpr", max_fpr), ("confidence", confidence)):
        if value is not None and not (isinstance(value, (int, float)) and 0.0 < value < 1.0):
            raise ConfigurationError(f"{name}={value!r}: a share above 0 and below 1")
    if objective is not None and not (isinstance(objective, str) and (objective == "f1" or _RECALL_AT.fullmatch(objective))):
        raise ConfigurationError(f"objective={objective!r}: 'f1', or 'recall@fpr=' and a rate such as 0.05")


def needed(max_fpr: float, confidence: float) -> int:
    """Fewest benign prompts from which a rate can be promised at all: the least n with (1 - max_fpr)^n <= 1 - confidence."""
    return math.ceil(math.log(1.0 - confidence) / math.log1p(-max_fpr))


def threshold_for_fpr(scores: npt.ArrayLike, max_fpr: float, confidence: float) -> OperatingPoint:
    """The lowest threshold whose false-positive rate is at most `max_fpr` with the given confidence.

    The threshold lies just above the (k+1)-th largest of n benign scores. The false-positive rate there is at most
    Beta(k + 1, n - k) distributed, whatever the scores' distribution (Wilks, "Determination of sample sizes for setting
    tolerance limits", Ann. Math. Stat. 12, 1941), so k is the largest number with
    P(Binomial(n, max_fpr) <= k) <= 1 - confidence (Clopper & Pearson, Biometrika 26, 1934).

    Args:
        scores: probability of unsafe of benign prompts, shape (n,).
        max_fpr: largest acceptable share of benign prompts flagged, in (0, 1).
        confidence: how sure that must be, in (0, 1).

    Raises:
        ConfigurationError: a rate is not in (0, 1).
        DataError: there are too few prompts, or too many of them have the highest possible score; says what is reachable.
    """
    check_options(max_fpr, confidence, None)
    values = np.sort(_probabilities(scores))[::-1]
    count, least = len(values), needed(max_fpr, confidence)
    if count < least:
        reachable = f"; {count} prompts can promise {_bound(0, count, confidence):.2%}" if count else ""
        raise DataError(
            f"{count} benign prompts; at least {least} are needed to promise a false-positive rate of {max_fpr:.2%} with "
            f"{confidence:.0%} confidence{reachable}"
        )
    allowed = int(binom.ppf(1.0 - confidence, count, max_fpr))
    while allowed >= 0 and binom.cdf(allowed, count, max_fpr) > 1.0 - confidence:
        allowed -= 1
    # By more than rounding, so that a prompt with this score, which traffic may repeat, is not flagged in another batch.
    score = values[allowed]
    threshold = float(max(np.nextafter(score, np.inf), score + _LEAST_STEP * score * (1.0 - score)))
    if threshold > 1.0:
        certain = int((values >= 1.0).sum())
        raise DataError(
            f"{certain} of {count} benign prompts have the highest possible score, so no threshold keeps the false-positive "
            f"rate below {max_fpr:.2%}; {_bound(certain, count, confidence):.2%} is reachable with {confidence:.0%} confidence"
        )
    return OperatingPoint(threshold, int((values >= threshold).sum()), count)


def threshold_for_objective(scores: npt.ArrayLike, labels: npt.ArrayLike, objective: str) -> OperatingPoint:
    """The threshold that is best on labelled prompts. No guarantee: it is the best of these prompts.

    Args:
        scores: probability of unsafe, shape (n,).
        labels: 0 or 1, shape (n,), both present.
        objective: "f1", or "recall@fpr=0.05": the lowest threshold that flags at most that share of the safe prompts.

    Raises:
        ConfigurationError: the objective is neither.
        DataError: a class is missing, or no threshold reaches the rate; says what is reachable.
    """
    check_options(None, 0.5, objective)
    values, truth = _probabilities(scores), np.asarray(labels).astype(bool)
    if truth.shape != values.shape:
        raise DataError(f"{len(values)} scores and {truth.size} labels")
    if truth.all() or not truth.any():
        raise DataError("an objective needs both safe and unsafe prompts")
    candidates = np.unique(values)[::-1]
    hits = np.array([(values[truth] >= t).sum() for t in candidates])
    alarms = np.array([(values[~truth] >= t).sum() for t in candidates])
    rate = _RECALL_AT.fullmatch(objective)
    if objective == "f1":
        best = int(np.argmax(2 * hits / (hits + alarms + truth.sum())))
    else:
        assert rate is not None
        within = np.flatnonzero(alarms <= float(rate[1]) * (~truth).sum())
        if not len(within):
            raise DataError(
                f"even the highest score flags {alarms[0] / (~truth).sum():.2%} of the safe prompts; {rate[1]} is out of reach"
            )
        best = int(within[-1])
    # Between two scores rather than on one, so that a score that differs in its last digit stays on its side.
    below = candidates[best + 1] if best + 1 < len(candidates) else 0.0
    threshold = float((candidates[best] + below) / 2)
    return OperatingPoint(threshold, int(alarms[best]), int((~truth).sum()))


def affine_map(log_odds: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[float, float]:
    """Scale and offset that make `sigmoid(scale * log_odds + offset)` a calibrated probability.

    Platt scaling with smoothed targets (Platt, "Probabilistic outputs for support vector machines", 1999). The classes keep
    the shares that they have in the data.

    Raises:
        DataError: a class is missing, or higher log-odds do not mean more unsafe prompts.
    """
    from sklearn.linear_model import LogisticRegression

    values, truth = np.asarray(log_odds, np.float64).reshape(-1, 1), np.asarray(labels).astype(bool)
    unsafe, safe = int(truth.sum()), int((~truth).sum())
    if not unsafe or not safe:
        raise DataError("calibrated probabilities need both safe and unsafe prompts")
    target = np.where(truth, (unsafe + 1) / (unsafe + 2), 1 / (safe + 2))
    spread = float(values.std()) or 1.0
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit(
        np.concatenate([values, values]) / spread,
        np.repeat([1, 0], len(values)),
        sample_weight=np.concatenate([target, 1.0 - target]),
    )
    scale = float(model.coef_[0, 0]) / spread
    if not scale > 0.0:
        raise DataError("on these prompts a higher score does not mean more unsafe; check the labels")
    return scale, float(model.intercept_[0])


def expected_calibration_error(scores: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10) -> float:
    """Mean distance of probability and observed share of unsafe, over equally filled bins (Naeini et al., AAAI 2015)."""
    values, truth = _probabilities(scores), np.asarray(labels, np.float64)
    if not len(values):
        raise DataError("there are no scores")
    groups = np.array_split(np.argsort(values, kind="stable"), min(bins, len(values)))
    return float(sum(abs(values[group].mean() - truth[group].mean()) * len(group) for group in groups) / len(values))


def _probabilities(scores: npt.ArrayLike) -> Array:
    values = np.asarray(scores, np.float64).reshape(-1)
    if not np.isfinite(values).all() or (values < 0.0).any() or (values > 1.0).any():
        raise DataError("scores must be probabilities from 0 to 1")
    return values


def _bound(flagged: int, count: int, confidence: float) -> float:
    """Upper end of the one-sided Clopper-Pearson interval."""
    return 1.0 if flagged >= count else float(beta.ppf(confidence, flagged + 1, count - flagged))
