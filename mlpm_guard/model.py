"""What a guard judges with, as one immutable value."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mlpm_guard.prototypes.scorer import LayerScorer

if TYPE_CHECKING:
    from mlpm_guard.bundle import Bundle, Calibration


class Model(NamedTuple):
    """What a guard judges with, replaced as a whole: threads see either the old or the new, and never wait for a fit.

    Attributes:
        scorer: turns layer states into log-odds.
        bundle: where it was loaded from or saved to; None for what was learned since.
        calibration: how threshold and probabilities were calibrated, or None.
        saved: whether the bundle holds exactly this.
    """

    scorer: LayerScorer
    bundle: Bundle | None
    calibration: Calibration | None = None
    saved: bool = True
