"""What learning makes of a guard: a classifier to learn into, and the model that follows from it.

Knows statistics and models, never text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from mlpm_guard.lineage import Change
from mlpm_guard.model import UNMAPPED, Model
from mlpm_guard.prototypes.categories import with_added
from mlpm_guard.prototypes.scorer import sigmoid

if TYPE_CHECKING:
    from mlpm_guard.bundle import Bundle
    from mlpm_guard.prototypes.classifier import PrototypeClassifier
    from mlpm_guard.prototypes.statistics import PrototypeStatistics
    from mlpm_guard.training import Label


def classifier_of(bundle: Bundle) -> PrototypeClassifier:
    """A classifier with the statistics of a bundle, not refitted.

    Raises:
        BundleError: it was saved without statistics.
    """
    from mlpm_guard.prototypes.classifier import PrototypeClassifier
    from mlpm_guard.prototypes.statistics import PrototypeStatistics

    shape = bundle.manifest.classifier
    classifier = PrototypeClassifier(C=shape.C, sample_size=shape.sample_size, folds=shape.folds)
    classifier.statistics_ = PrototypeStatistics.from_tensors(
        bundle.statistics(), layers=shape.layers, dim=shape.dim, sample_size=shape.sample_size
    )
    return classifier


def refitted(
    classifier: PrototypeClassifier, model: Model, before: PrototypeStatistics, *, keep_layers: bool
) -> PrototypeClassifier:
    """A classifier that has collected more, or less, ready to score.

    Args:
        classifier: has collected.
        model: what the guard judges with so far.
        before: the statistics that this was fitted on.
        keep_layers: leave the way in which layers are put together as it is.

    Raises:
        DataError: a class has too few prompts, or the states do not vary.
    """
    if keep_layers:
        return classifier.move(model.fitted_scorer, before)
    if before.trimmed:
        return classifier.shift(model.fitted_scorer, before)
    # Layers that added categories read stay, because those categories do.
    return classifier.refit(sorted({int(at) for block in model.categories.added for at in block.positions}))


def relearned(before: Model | None, classifier: PrototypeClassifier, change: Change | None) -> Model:
    """What a guard judges with once it has learned. It is not calibrated.

    What calibrations have made of the log-odds stays, so that thresholds mean what they meant; a fit from scratch undoes it.

    Args:
        before: what it judged with; None for nothing.
        classifier: fitted.
        change: how it came from the present one; None for a fit from scratch.

    Raises:
        CategoryError: a category that was added from examples has the name of one that was learned.
    """
    if before is None or change is None:
        return Model(classifier.scorer_, classifier.novelty_, None, categories=with_added(classifier.categories_, ()))
    return Model(
        classifier.scorer_.rescaled(*before.log_odds_map),
        classifier.novelty_,
        None,
        parent=before.parent,
        changes=(*before.changes, change),
        categories=with_added(classifier.categories_, before.categories.added),
        log_odds_map=before.log_odds_map,
    )


def unmapped(probability: float, log_odds_map: tuple[float, float]) -> float:
    """The probability that a map of log-odds has made this one of."""
    if log_odds_map == UNMAPPED:
        return probability
    scale, offset = log_odds_map
    with np.errstate(divide="ignore"):
        log_odds = np.log(probability) - np.log1p(-probability)
    return float(sigmoid((log_odds - offset) / scale))


class Counted:
    """Labels that are counted while they are read; there is one for every prompt."""

    def __init__(self, labels: Iterable[Label]) -> None:
        self.number = 0
        # What is no iterable is left for the reader to complain about.
        self.labels = self._counting(labels) if isinstance(labels, Iterable) else labels

    def _counting(self, labels: Iterable[Label]) -> Iterator[Label]:
        for label in labels:
            self.number += 1
            yield label
