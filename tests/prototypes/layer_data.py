"""Synthetic layer states with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlpm_guard.prototypes.statistics import PrototypeStatistics

States = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def make(
    safe: int, unsafe: int, *, layers: int = 3, dim: int = 6, seed: int = 0, shift: float = 1.0, offset: float = 0.0
) -> tuple[States, Labels]:
    """Correlated Gaussian states whose classes are `shift` apart, in shuffled order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1], [safe, unsafe]))
    mixing = rng.normal(size=(layers, dim, dim))
    states = np.einsum("nld,lde->nle", rng.normal(size=(len(labels), layers, dim)), mixing)
    states += shift * labels[:, None, None] + offset
    return states.astype(np.float32), labels


def collect(states: States, labels: Labels, *, sample_size: int = 512, keys: Any = None) -> PrototypeStatistics:
    statistics = PrototypeStatistics(*states.shape[1:], sample_size=sample_size)
    keys = np.arange(len(labels), dtype=np.uint64) if keys is None else keys
    statistics.update(states, labels, keys)
    return statistics


def close(one: Any, two: Any, tolerance: float = 1e-9) -> bool:
    """Equal relative to the largest number."""
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    return one.shape == two.shape and bool(np.abs(one - two).max() <= tolerance * max(1.0, np.abs(two).max()))


def reference_discriminant(states: States, labels: Labels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The formulas of the paper, layer by layer, with an inverse."""
    weights, biases = [], []
    for layer in range(states.shape[1]):
        h = states[:, layer].astype(np.float64)
        N, D = h.shape
        mu = [h[labels == y].mean(axis=0) for y in (0, 1)]
        A = np.zeros((D, D))
        for state, y in zip(h, labels, strict=True):
            A += np.outer(state - mu[y], state - mu[y])
        S = A / (N - 1)
        P = D * np.linalg.inv(A + np.trace(S) * np.eye(D))
        weights.append(P @ (mu[1] - mu[0]))
        biases.append(-0.5 * (mu[1] @ P @ mu[1] - mu[0] @ P @ mu[0]))
    return np.array(weights), np.array(biases)
