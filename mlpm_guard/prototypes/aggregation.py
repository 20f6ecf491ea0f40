"""The sparse aggregation of layer scores: recalibration, then an L1-regularised logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from mlpm_guard.prototypes.scorer import Array

_NEGLIGIBLE = 1e-6
_LEAST_SEPARATION = 1e-3


def recalibrate(log_odds: Array, labels: npt.NDArray[np.int64], times: Array) -> tuple[Array, Array]:
    """Scale and offset of every layer's log-odds that make them true to prompts they have not seen.

    The ridge that makes a discriminant usable also sets the size of its log-odds: far too large after a fit on few prompts, too
    small after one on many. Out-of-fold scores of the two classes are taken for Gaussian with one variance v and means m_0,
    m_1; the log-odds of such a score g are (m_1 - m_0) / v * (g - (m_0 + m_1) / 2).

    Args:
        log_odds: out-of-fold layer log-odds, shape (n, layers).
        labels: 0 or 1, shape (n,).
        times: how often each prompt was learned, shape (n,).

    Returns:
        Scales and offsets, each of shape (layers,).
    """
    means = np.stack([np.average(log_odds[labels == c], axis=0, weights=times[labels == c]) for c in (0, 1)])
    spread = [np.average((log_odds[labels == c] - means[c]) ** 2, axis=0, weights=times[labels == c]) for c in (0, 1)]
    variance = np.maximum(0.5 * (spread[0] + spread[1]), np.finfo(np.float64).tiny)
    deviation = np.sqrt(variance)
    # A layer that does not separate prompts it has not seen keeps a sliver of weight; the regression decides about it.
    separation = np.maximum((means[1] - means[0]) / deviation, _LEAST_SEPARATION)
    usable = deviation > 1e-12 * np.maximum(np.abs(means).max(axis=0), 1e-12)
    return np.where(usable, separation / deviation, 1.0), np.where(usable, means.mean(axis=0), 0.0)


def reference_scale(layers: int) -> tuple[Array, Array]:
    """Scales and offsets that leave the log-odds as they are."""
    return np.ones(layers), np.zeros(layers)


def fit_layer_weights(
    log_odds: Array, labels: npt.NDArray[np.int64], times: Array, C: float, counts: Sequence[int]
) -> tuple[Array, float]:
    """Layer weights and intercept.

    The regression reads log-odds, not probabilities: a probability saturates on prompts like those of training, and then no
    longer tells the clear from the clearer among others. No weight is negative, because a layer that looks more unsafe is no
    evidence of the contrary; layers whose weight would be are left out. Both classes count the same, and together as much as
    all training prompts, so that the penalty `C` means what it would mean if the regression saw every prompt instead of a
    sample.

    Args:
        log_odds: layer log-odds of the sample, shape (n, layers).
        labels: 0 or 1, shape (n,).
        times: how often each prompt was learned, shape (n,).
        C: inverse strength of the penalty.
        counts: training prompts of class 0 and 1.

    Returns:
        Weights of shape (layers,) and the intercept, in nats.
    """
    importance = np.asarray(times, np.float64).copy()
    for label in (0, 1):
        importance[labels == label] *= 0.5 * sum(counts) / importance[labels == label].sum()
    # In the unit of the penalty, the classes are one apart where they are furthest, as between probabilities of 0 and 1.
    apart = max(_apart(log_odds, labels, importance), 1e-9 * float(np.abs(log_odds).max()), float(np.finfo(np.float64).tiny))
    features = log_odds / apart
    weights, intercept = _regress(features, labels, importance, C)
    kept = np.arange(features.shape[1])
    while len(kept) > 1 and (weights[kept] < 0.0).any():
        kept = np.delete(kept, int(np.argmin(weights[kept])))
        weights = np.zeros(features.shape[1])
        weights[kept], intercept = _regress(features[:, kept], labels, importance, C)
    weights[weights < _NEGLIGIBLE * np.abs(weights).max()] = 0.0
    if not weights.any():
        # Nothing survived the penalty: too few prompts, or layers that tell nothing. All layers then count alike.
        shared, intercept = _regress(features.mean(axis=1, keepdims=True), labels, importance, 1e6)
        weights = np.full(features.shape[1], shared[0] / features.shape[1])
        if shared[0] < 0.0:
            # By chance, the sample says the opposite of what the discriminants have learned from all prompts.
            weights, intercept = np.full(features.shape[1], apart / features.shape[1]), 0.0
    return weights / apart, intercept


def _apart(log_odds: Array, labels: npt.NDArray[np.int64], importance: Array) -> float:
    """Distance between the means of the two classes, in the layer where it is largest."""
    means = [np.average(log_odds[labels == label], axis=0, weights=importance[labels == label]) for label in (0, 1)]
    return float(np.abs(means[1] - means[0]).max())


def _regress(features: Array, labels: npt.NDArray[np.int64], importance: Array, C: float) -> tuple[Array, float]:
    model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", tol=1e-6, max_iter=2000, random_state=0)
    model.fit(features, labels, sample_weight=importance)
    return np.asarray(model.coef_[0], np.float64), float(model.intercept_[0])
