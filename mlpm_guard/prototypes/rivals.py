"""What tells an added category from the fitted ones that it resembles most. Needs numpy only, as all scoring.

A category from a few examples is told from everything else at once, by one linear function n of the states. Beside it stands
one linear function d_k for every fitted category k, which tells the new category from that one alone. With the log-odds
u = slope * softmin_k d_k + offset, the category's log-odds are the soft minimum of n and u: a text belongs to it as far as it
is told from everything else *and* from the fitted category that it resembles most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mlpm_guard.prototypes.scorer import Array, sigmoid


@dataclass(frozen=True)
class Rivals:
    """Linear functions that tell one category from others, one each.

    Attributes:
        weights: float32, shape (r, used, dim), of the states as the category reads them.
        biases: shape (r,).
        scale: slope and offset of the map from the soft minimum of those functions to log-odds, shape (2,).
    """

    weights: npt.NDArray[np.float32]
    biases: Array
    scale: Array

    def log_odds(self, states: Array) -> Array:
        """Log-odds of the category against the rival that a text resembles most, in nats, shape (n,); states (n, used, dim)."""
        return self._log_odds(self._values(states).sum(axis=2) + self.biases)[0]

    def lowered(self, states: Array, contributions: Array, bias: float) -> Array:
        """Contributions of the layers to the category's log-odds, rivals considered, in nats.

        Each layer has its share of both functions, by how much either counts in the soft minimum; what no layer explains is
        spread evenly. The sum over the layers plus `bias` are the log-odds, exactly.

        Args:
            states: shape (n, used, dim).
            contributions: of the function that tells the category from everything else, shape (n, used).
            bias: of that function.

        Returns:
            Shape (n, used).
        """
        values = self._values(states)
        own = contributions.sum(axis=1) + bias
        with np.errstate(invalid="ignore"):  # what is no number stays none, and is found by who asks
            against, nearest = self._log_odds(values.sum(axis=2) + self.biases)
            log_odds = -np.logaddexp(-own, -against)
        part = sigmoid(own - against)[:, None]
        shares = (1.0 - part) * contributions + part * self.scale[0] * np.einsum("nr,nrl->nl", nearest, values)
        rest = log_odds - bias - shares.sum(axis=1)
        found: Array = shares + rest[:, None] / shares.shape[1]
        return found

    def _values(self, states: Array) -> Array:
        """What every layer adds to every function, shape (n, r, used)."""
        found: Array = np.matmul(states.swapaxes(0, 1), self._by_layer).transpose(1, 2, 0)
        return found

    def _log_odds(self, values: Array) -> tuple[Array, Array]:
        """The soft minimum of the functions as log-odds, shape (n,), and how much each counts in it, shape (n, r)."""
        lowest = values.min(axis=1, keepdims=True)
        counts = np.exp(lowest - values)
        total = counts.sum(axis=1, keepdims=True)
        return self.scale[0] * (lowest - np.log(total))[:, 0] + self.scale[1], counts / total

    @cached_property
    def _by_layer(self) -> Array:
        """Weights, shape (used, dim, r)."""
        return np.ascontiguousarray(self.weights.transpose(1, 2, 0), np.float64)
