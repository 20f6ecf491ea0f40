"""What a guard judges with, as one immutable value."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mlpm_guard.lineage import Change
from mlpm_guard.prototypes.categories import Categories
from mlpm_guard.prototypes.novelty import Novelty
from mlpm_guard.prototypes.scorer import LayerScorer

if TYPE_CHECKING:
    from mlpm_guard.bundle import Bundle, Calibration


UNMAPPED = (1.0, 0.0)
"""Scale and offset that leave log-odds as they are."""


class Model(NamedTuple):
    """What a guard judges with, replaced as a whole: threads see either the old or the new, and never wait for a fit.

    Attributes:
        scorer: turns layer states into log-odds.
        novelty: measures how unlike training states are; None where it was not fitted.
        bundle: where it was loaded from or saved to; None for what was learned since.
        calibration: how threshold and probabilities were calibrated, or None.
        parent: the bundle that it was loaded from or saved to last; changes count from there.
        changes: what was changed since.
        saved: whether the bundle holds exactly this.
        categories: every category it knows.
        log_odds_map: scale and offset, in nats, by which calibrations have mapped the log-odds since the fit; the scorer's are
            mapped already.
    """

    scorer: LayerScorer
    novelty: Novelty | None
    bundle: Bundle | None
    calibration: Calibration | None = None
    parent: Bundle | None = None
    changes: tuple[Change, ...] = ()
    saved: bool = True
    categories: Categories = Categories()
    log_odds_map: tuple[float, float] = UNMAPPED

    @property
    def fitted_scorer(self) -> LayerScorer:
        """The scorer as it was fitted, before any calibration mapped its log-odds."""
        scale, offset = self.log_odds_map
        return self.scorer if self.log_odds_map == UNMAPPED else self.scorer.rescaled(1.0 / scale, -offset / scale)

    def calibrated(self, change: Change, scale: float, offset: float, calibration: Calibration) -> Model:
        """The model with `scale * log_odds + offset` for its log-odds, and what it was calibrated on."""
        before = self.log_odds_map
        return self.changed(
            change,
            scorer=self.scorer.rescaled(scale, offset),
            calibration=calibration,
            log_odds_map=(scale * before[0], scale * before[1] + offset),
        )

    def changed(self, change: Change, **fields: object) -> Model:
        """The model after a change, with new values for these fields; no longer what its bundle holds."""
        return self._replace(changes=(*self.changes, change), saved=False, **fields)  # type: ignore[arg-type]
