"""What scoring needs, and nothing else: a few dot products. Needs numpy only, so that a loaded guard stays light."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_LEAST = 2.0**-53


def sigmoid(log_odds: npt.NDArray[np.floating]) -> Array:
    """Probability of log-odds in nats, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(log_odds, np.float64)))


def certainty(log_odds: npt.NDArray[np.floating]) -> Array:
    """The same, never quite 0 or 1, so that a threshold of 1 is above every score."""
    return np.clip(sigmoid(log_odds), _LEAST, 1.0 - _LEAST)


@dataclass(frozen=True)
class LayerScorer:
    """Discriminants of the used layers and their aggregation.

    Attributes:
        positions: which of the encoder's layers are used, shape (used,), ascending.
        weights: discriminant weights, shape (used, dim).
        biases: discriminant biases, shape (used,).
        layer_weights: aggregation weights, shape (used,).
        intercept: log-odds that no layer explains.
        levels: median log-odds of safe and of unsafe prompts that the discriminants had not seen.
    """

    positions: npt.NDArray[np.int64]
    weights: Array
    biases: Array
    layer_weights: Array
    intercept: float
    levels: tuple[float, float]

    def rescaled(self, scale: float, offset: float) -> LayerScorer:
        """The same scorer with `scale * log_odds + offset` for its scores; layers still add up to them."""
        low, high = (scale * level + offset for level in self.levels)
        return replace(
            self, layer_weights=self.layer_weights * scale, intercept=self.intercept * scale + offset, levels=(low, high)
        )

    def log_odds(self, states: npt.NDArray[np.floating]) -> Array:
        """Log-odds g_l of every used layer in nats, shape (n, used), from states of shape (n, used, dim)."""
        values: Array = np.einsum("nld,ld->nl", np.asarray(states, np.float64), self.weights) + self.biases
        return values

    def score(self, states: npt.NDArray[np.floating]) -> Array:
        """Log-odds of unsafe in nats, shape (n,)."""
        return self.aggregate(self.log_odds(states))

    def aggregate(self, log_odds: Array) -> Array:
        """Log-odds of unsafe in nats, shape (n,), from the used layers' log-odds."""
        scores: Array = log_odds @ self.layer_weights + self.intercept
        return scores
