"""Moving the prototypes of a fitted scorer, while the way in which its layers are put together stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlpm_guard.errors import DataError
from mlpm_guard.prototypes.discriminant import Discriminants
from mlpm_guard.prototypes.scorer import LayerScorer

_TOLERANCE = 1e-3


def moved(scorer: LayerScorer, before: Discriminants, after: Discriminants) -> LayerScorer:
    """The scorer with other discriminants: each layer scaled and shifted, and all layers put together, as they were.

    A scorer holds discriminants that were scaled and shifted when its layers were put together. Both numbers of a layer follow
    from the scorer and the discriminants that it was made of.

    Args:
        scorer: what scores now.
        before: the discriminants that it was made of.
        after: those that take their place.

    Raises:
        DataError: the scorer was not made of `before`.
    """
    made_of, of_bias = before.weights[scorer.positions], before.biases[scorer.positions]
    sizes = np.einsum("ld,ld->l", made_of, made_of)
    scales = np.einsum("ld,ld->l", scorer.weights, made_of) / np.where(sizes > 0.0, sizes, np.nan)
    left = np.abs(scorer.weights - scales[:, None] * made_of).max(axis=1)
    if not (left <= _TOLERANCE * np.abs(scorer.weights).max(axis=1)).all():
        raise DataError("the guard does not score with the prototypes in its statistics; fit it again")
    offsets = of_bias - scorer.biases / scales
    return replace(
        scorer,
        weights=after.weights[scorer.positions] * scales[:, None],
        biases=(after.biases[scorer.positions] - offsets) * scales,
    )
