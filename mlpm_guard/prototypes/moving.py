"""What becomes of a fitted scorer when its prototypes move: the way in which its layers are put together stays, or shifts.

numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mlpm_guard.errors import DataError
from mlpm_guard.prototypes.discriminant import Discriminants
from mlpm_guard.prototypes.scorer import Array, LayerScorer

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Aggregation:
    """Discriminants of all layers, and how they are put together.

    Attributes:
        discriminants: of all layers.
        scales: of every layer's log-odds, shape (layers,).
        offsets: taken off every layer's log-odds before they are scaled, shape (layers,).
        weights: of the layers' scaled log-odds, shape (layers,).
        intercept: log-odds that no layer explains.
        levels: median log-odds of safe and of unsafe prompts that the discriminants had not seen.
    """

    discriminants: Discriminants
    scales: Array
    offsets: Array
    weights: Array
    intercept: float
    levels: tuple[float, float]

    def scorer(self, positions: npt.NDArray[np.int64]) -> LayerScorer:
        """What scoring needs of some layers."""
        scales, offsets = self.scales[positions], self.offsets[positions]
        return LayerScorer(
            positions=positions,
            weights=self.discriminants.weights[positions] * scales[:, None],
            biases=(self.discriminants.biases[positions] - offsets) * scales,
            layer_weights=self.weights[positions],
            intercept=self.intercept,
            levels=self.levels,
        )


def moved(scorer: LayerScorer, before: Discriminants, after: Discriminants) -> LayerScorer:
    """The scorer with other discriminants: each layer scaled and shifted, and all layers put together, as they were.

    Args:
        scorer: what scores now.
        before: the discriminants that it was made of.
        after: those that take their place.

    Raises:
        DataError: the scorer was not made of `before`.
    """
    scales, offsets = _scaled_by(scorer, before)
    return replace(
        scorer,
        weights=after.weights[scorer.positions] * scales[:, None],
        biases=(after.biases[scorer.positions] - offsets) * scales,
    )


def shifted(scorer: LayerScorer, before: Aggregation, after: Aggregation) -> LayerScorer:
    """The scorer with the discriminants of `after`, put together otherwise by as much as `after` is otherwise than `before`.

    Args:
        scorer: what scores now. Its layers stay the used ones.
        before: an aggregation of the discriminants that it was made of, though not the one that put them together in it.
        after: one of those that take their place.

    Raises:
        DataError: the scorer was not made of the discriminants of `before`.
    """
    used = scorer.positions
    scales, offsets = _scaled_by(scorer, before.discriminants)
    scales = scales * after.scales[used] / before.scales[used]
    offsets = offsets + after.offsets[used] - before.offsets[used]
    # No layer counts against what it sees; where nothing would be left, layers stay together as they were.
    weights = np.maximum(scorer.layer_weights + after.weights[used] - before.weights[used], 0.0)
    low, high = (level + new - old for level, new, old in zip(scorer.levels, after.levels, before.levels, strict=True))
    return LayerScorer(
        positions=used,
        weights=after.discriminants.weights[used] * scales[:, None],
        biases=(after.discriminants.biases[used] - offsets) * scales,
        layer_weights=weights if weights.any() else scorer.layer_weights,
        intercept=scorer.intercept + after.intercept - before.intercept,
        levels=(low, high),
    )


def _scaled_by(scorer: LayerScorer, made_of: Discriminants) -> tuple[Array, Array]:
    """Scale and offset of every used layer, each of shape (used,).

    A scorer holds discriminants that were scaled and shifted when its layers were put together. Both numbers of a layer follow
    from the scorer and the discriminants that it was made of.

    Raises:
        DataError: it was not made of them.
    """
    weights, biases = made_of.weights[scorer.positions], made_of.biases[scorer.positions]
    sizes = np.einsum("ld,ld->l", weights, weights)
    scales = np.einsum("ld,ld->l", scorer.weights, weights) / np.where(sizes > 0.0, sizes, np.nan)
    left = np.abs(scorer.weights - scales[:, None] * weights).max(axis=1)
    if not (left <= _TOLERANCE * np.abs(scorer.weights).max(axis=1)).all():
        raise DataError("the guard does not score with the prototypes in its statistics; fit it again")
    return scales, biases - scorer.biases / scales
