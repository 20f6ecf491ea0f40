"""The sparse aggregation of layer scores: L1-regularised logistic regression on the layers' probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from mlpm_guard.prototypes.scorer import Array, sigmoid


def fit_layer_weights(
    log_odds: Array, labels: npt.NDArray[np.int64], times: Array, C: float, counts: Sequence[int]
) -> tuple[Array, float]:
    """Layer weights and intercept.

    Both classes count the same, and together as much as all training prompts, so that the penalty `C` means what it would mean
    if the regression saw every prompt instead of a sample.

    Args:
        log_odds: layer log-odds of the sample, shape (n, layers).
        labels: 0 or 1, shape (n,).
        times: how often each prompt was learned, shape (n,).
        C: inverse strength of the penalty.
        counts: training prompts of class 0 and 1.

    Returns:
        Weights of shape (layers,) and the intercept, in nats.
    """
    # Centred at one half, a layer without evidence adds nothing and the penalised intercept stays near zero.
    features = sigmoid(log_odds) - 0.5
    importance = np.asarray(times, np.float64).copy()
    for label in (0, 1):
        importance[labels == label] *= 0.5 * sum(counts) / importance[labels == label].sum()
    weights, intercept = _regress(features, labels, importance, C)
    if not weights.any():
        # Nothing survived the penalty: too few prompts, or layers that tell nothing. All layers then count alike.
        shared, intercept = _regress(features.mean(axis=1, keepdims=True), labels, importance, 1e6)
        weights = np.full(features.shape[1], shared[0] / features.shape[1])
    return weights, intercept - 0.5 * float(weights.sum())


def _regress(features: Array, labels: npt.NDArray[np.int64], importance: Array, C: float) -> tuple[Array, float]:
    model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", tol=1e-6, max_iter=2000, random_state=0)
    model.fit(features, labels, sample_weight=importance)
    return np.asarray(model.coef_[0], np.float64), float(model.intercept_[0])
