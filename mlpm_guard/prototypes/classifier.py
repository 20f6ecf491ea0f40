"""PrototypeClassifier: layer states to a probability, with scikit-learn's manners.

Prototypes and a tied covariance per layer, then an L1-regularised logistic regression over the layers' log-odds. Knows no text.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from mlpm_guard.errors import ConfigurationError, DataError, NotFittedError
from mlpm_guard.prototypes.categories import CategoryBlock, deeper_half
from mlpm_guard.prototypes.category_fitting import fit_categories
from mlpm_guard.prototypes.covariance import fit_novelty
from mlpm_guard.prototypes.discriminant import Discriminants, fit_discriminants, out_of_fold_log_odds
from mlpm_guard.prototypes.ledger import Keys
from mlpm_guard.prototypes.moving import Aggregation
from mlpm_guard.prototypes.novelty import Novelty
from mlpm_guard.prototypes.scorer import Array, LayerScorer, sigmoid
from mlpm_guard.prototypes.statistics import CLASSES, PrototypeStatistics

_MIN_PROMPTS = 2


@dataclass(frozen=True)
class Fitted:
    """Learned state, replaced as a whole, so that threads that score see either the old or the new.

    Attributes:
        scorer: what scoring needs: the layers with a non-zero weight.
        weights: aggregation weight of every layer, shape (layers,).
        coef: discriminant weights of every layer, shape (layers, dim).
        biases: discriminant biases of every layer, shape (layers,).
        novelty: distances to the classes at the used layers; None after a fit on very few prompts.
        categories: those that enough prompts were learned of; None where there are none.
    """

    scorer: LayerScorer
    weights: Array
    coef: Array
    biases: Array
    novelty: Novelty | None
    categories: CategoryBlock | None


class PrototypeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multi-layer prototype classifier (MLPM).

    Args:
        C: inverse strength of the L1 penalty on the layer weights. Smaller keeps fewer layers.
        sample_size: prompts per class that the layers' aggregation is fitted on (a bottom-k sample by key).
        folds: layer scores for the aggregation come from discriminants that have not seen the prompt, in this many folds; 0
            uses the fitted discriminants' own scores, as the reference implementation does.

    Attributes:
        classes_: ndarray of shape (2,): 0 is safe, 1 is unsafe.
        coef_: discriminant weights, ndarray of shape (n_layers, dim).
        biases_: discriminant biases, ndarray of shape (n_layers,).
        layer_weights_: aggregation weights, ndarray of shape (n_layers,); zero for a layer that scoring does not need.
        intercept_: log-odds that no layer explains.
        statistics_: the mergeable sufficient statistics.

    Source: Chrabaszcz et al., arXiv 2502.16174.
    """

    statistics_: PrototypeStatistics
    fitted_: Fitted

    def __init__(self, *, C: float = 1.0, sample_size: int = 1024, folds: int = 5) -> None:
        self.C = C
        self.sample_size = sample_size
        self.folds = folds

    # -- learning -----------------------------------------------------------------------------------------------------------

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, keys: npt.ArrayLike | None = None) -> Self:
        """Forget everything and learn from these states.

        Args:
            X: layer states of shape (n, n_layers, dim).
            y: labels of shape (n,): 0 or False for safe, 1 or True for unsafe.
            keys: 64-bit integers of shape (n,) that identify the prompts; by default a hash of their states.

        Raises:
            DataError: wrong shapes or labels, or fewer than two prompts of a class.
            NonFiniteError: a state is NaN or infinite.
            ConfigurationError: an option has a bad value.
        """
        self.reset()
        self.update(X, y, keys)
        return self.refit()

    def partial_fit(self, X: npt.ArrayLike, y: npt.ArrayLike, keys: npt.ArrayLike | None = None) -> Self:
        """Learn from more states; the same as if they had been there from the start. Arguments as in `fit`.

        Until both classes have two prompts, the classifier only collects and cannot score.
        """
        self.update(X, y, keys)
        return self.refit() if self._enough() else self

    def forget(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        keys: npt.ArrayLike | None = None,
        categories: Sequence[str | None] | None = None,
        *,
        also_read: Sequence[int] = (),
    ) -> Self:
        """Unlearn states: statistics and discriminants are then what they were without them. Arguments as in `update`, `refit`.

        Raises:
            UnknownPromptError: one was never learned under that label; nothing has changed then.
            DataError: fewer than two prompts of a class would be left; nothing has changed then.
        """
        return self.unlearn(X, y, keys, categories).refit(also_read)

    def unlearn(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        keys: npt.ArrayLike | None = None,
        categories: Sequence[str | None] | None = None,
    ) -> Self:
        """Take states out of the statistics without refitting; `refit` makes it count. Arguments and errors as in `forget`.

        Without `categories`, prompts leave the category that they were learned in.
        """
        states, labels, ids = self._read(X, y, keys)
        with self._lock():
            statistics = getattr(self, "statistics_", None)
            if statistics is None:
                statistics = PrototypeStatistics(*states.shape[1:], sample_size=self.sample_size)
            statistics.require_known(labels, ids)
            for label in CLASSES:
                left = statistics.count(label) - int((labels == label).sum())
                if left < _MIN_PROMPTS and (labels == label).any():
                    raise DataError(
                        f"forgetting these would leave {left} prompts of class {label}; at least {_MIN_PROMPTS} must stay"
                    )
            statistics.forget(states, labels, ids, categories)
        return self

    def merge(self, other: PrototypeClassifier) -> Self:
        """Learn everything that another classifier learned, as if from its states."""
        with self._lock():
            theirs = other.statistics_
            self.statistics_ = self.statistics_.merge(theirs) if hasattr(self, "statistics_") else copy.deepcopy(theirs)
        return self.refit() if self._enough() else self

    def update(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        keys: npt.ArrayLike | None = None,
        categories: Sequence[str | None] | None = None,
    ) -> Self:
        """Collect statistics without refitting; `refit` makes them count. For streaming fits.

        Arguments as in `fit`; `categories` holds a category or None for every prompt, None for a safe one.
        """
        states, labels, ids = self._read(X, y, keys)
        with self._lock():
            self._statistics(states).update(states, labels, ids, categories)
        return self

    def refit(self, also_read: Sequence[int] = ()) -> Self:
        """Discriminants and aggregation from the statistics collected so far.

        Args:
            also_read: positions of layers that the scorer keeps even if it gives them no weight, because others need them.

        Raises:
            DataError: a class has fewer than two prompts, or the states do not vary.
        """
        with self._lock():
            pooled = self._collected().pooled()
            found = self._aggregated(pooled)
            used = np.union1d(np.flatnonzero(found.weights), np.asarray(also_read, np.int64))
            self._settle(pooled, found.scorer(used), found.discriminants)
        return self

    def move(self, scorer: LayerScorer, before: PrototypeStatistics) -> Self:
        """Discriminants from the statistics collected so far, put together as `scorer` puts together those of `before`.

        `refit` also finds anew how to put the layers together, on the bounded sample of prompts that is kept. That moves every
        score, whatever was learned. For a few prompts more or less, this moves only what they move.

        Raises:
            DataError: the scorer does not belong to `before`, or the states do not vary.
        """
        from mlpm_guard.prototypes.moving import moved

        with self._lock():
            statistics = self._collected()
            discriminants = fit_discriminants(statistics)
            self._settle(statistics.pooled(), moved(scorer, fit_discriminants(before), discriminants), discriminants)
        return self

    def shift(self, scorer: LayerScorer, before: PrototypeStatistics) -> Self:
        """What `refit` would make of the statistics collected so far, as far as it differs from what it makes of `before`.

        For a scorer that was fitted on more rows than `before` keeps: a refit on those alone would put its layers together
        otherwise, whatever was learned. Both refits see the same rows, so that most of what these do by chance cancels. The
        scorer's layers stay the used ones.

        Raises:
            DataError: the scorer does not belong to `before`, or as in `refit`.
        """
        from mlpm_guard.prototypes.moving import shifted

        with self._lock():
            pooled = self._collected().pooled()
            found = self._aggregated(pooled)
            self._settle(pooled, shifted(scorer, self._aggregated(before.pooled()), found), found.discriminants)
        return self

    def reset(self) -> Self:
        """Forget everything."""
        self._check_options()
        with self._lock():
            for name in ("statistics_", "fitted_"):
                if hasattr(self, name):
                    delattr(self, name)
        return self

    # -- scoring ------------------------------------------------------------------------------------------------------------

    def decision_function(self, X: npt.ArrayLike) -> Array:
        """Log-odds of unsafe in nats, shape (n,), from states of shape (n, n_layers, dim)."""
        states = np.asarray(X)
        scorer = self.scorer_
        layers, dim = self.coef_.shape
        if states.ndim != 3 or states.shape[1:] != (layers, dim):
            raise DataError(f"states have shape {states.shape}; expected (n, {layers}, {dim})")
        return scorer.score(states[:, scorer.positions])

    def predict_proba(self, X: npt.ArrayLike) -> Array:
        """Probability of safe and of unsafe, shape (n, 2)."""
        unsafe = sigmoid(self.decision_function(X))
        return np.stack([1.0 - unsafe, unsafe], axis=1)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """1 where the probability of unsafe is at least one half, shape (n,)."""
        return (self.decision_function(X) >= 0.0).astype(np.int64)

    @property
    def scorer_(self) -> LayerScorer:
        """What scoring needs, of the used layers only."""
        return self._fitted().scorer

    @property
    def novelty_(self) -> Novelty | None:
        """Distances to the classes at the used layers; None after a fit on very few prompts."""
        return self._fitted().novelty

    @property
    def categories_(self) -> CategoryBlock | None:
        """Categories that enough prompts were learned of; None where there are none."""
        return self._fitted().categories

    @property
    def classes_(self) -> npt.NDArray[np.int64]:
        """0 is safe, 1 is unsafe."""
        return np.array(CLASSES)

    @property
    def coef_(self) -> Array:
        """Discriminant weights, shape (n_layers, dim)."""
        return self._fitted().coef

    @property
    def biases_(self) -> Array:
        """Discriminant biases, shape (n_layers,)."""
        return self._fitted().biases

    @property
    def layer_weights_(self) -> Array:
        """Aggregation weights, shape (n_layers,)."""
        return self._fitted().weights

    @property
    def intercept_(self) -> float:
        """Log-odds that no layer explains."""
        return self._fitted().scorer.intercept

    # -- how ----------------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_guard_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "fitted_")

    def _lock(self) -> threading.RLock:
        # Made at first use, because an estimator's __init__ only stores its arguments; setdefault is atomic.
        lock: threading.RLock = self.__dict__.setdefault("_guard_lock", threading.RLock())
        return lock

    def _fitted(self) -> Fitted:
        fitted: Fitted | None = getattr(self, "fitted_", None)
        if fitted is None:
            raise NotFittedError("this classifier has not learned from both classes yet; call fit first")
        return fitted

    def _enough(self) -> bool:
        return hasattr(self, "statistics_") and all(self.statistics_.count(c) >= _MIN_PROMPTS for c in CLASSES)

    def _usable_folds(self, statistics: PrototypeStatistics) -> int:
        # Every fold must leave a class two prompts to learn from.
        smallest = min(len(statistics.classes[label].rows) for label in CLASSES)
        folds = min(self.folds, smallest)
        return folds if folds >= 2 and smallest >= 3 else 0

    def _collected(self) -> PrototypeStatistics:
        """The statistics, where there are enough to fit on."""
        self._check_options()
        statistics: PrototypeStatistics | None = getattr(self, "statistics_", None)
        if statistics is None:
            raise DataError("no prompts were given to fit on")
        for label, name in zip(CLASSES, ("safe", "unsafe"), strict=True):
            if (count := statistics.count(label)) < _MIN_PROMPTS:
                raise DataError(f"{count} {name} prompts; at least {_MIN_PROMPTS} are needed of either class")
        return statistics

    def _aggregated(self, pooled: PrototypeStatistics) -> Aggregation:
        """Discriminants of all layers, and how the rows that are kept put them together."""
        from mlpm_guard.prototypes.aggregation import fit_layer_weights, recalibrate, reference_scale

        discriminants = fit_discriminants(pooled)
        folds = self._usable_folds(pooled)
        log_odds, labels, times = out_of_fold_log_odds(pooled, folds)
        scales, offsets = recalibrate(log_odds, labels, times) if folds else reference_scale(pooled.layers)
        log_odds = scales * (log_odds - offsets)
        counts = [pooled.count(label) for label in CLASSES]
        weights, intercept = fit_layer_weights(log_odds, labels, times, self.C, counts)
        if not weights.any():
            raise DataError("the layer states of the training prompts do not tell the labels apart")
        scores = log_odds @ weights + intercept
        levels = (float(np.median(scores[labels == 0])), float(np.median(scores[labels == 1])))
        return Aggregation(discriminants, scales, offsets, weights, intercept, levels)

    def _settle(self, pooled: PrototypeStatistics, scorer: LayerScorer, discriminants: Discriminants) -> None:
        """Score with this from now on."""
        weights = np.zeros(pooled.layers)
        weights[scorer.positions] = scorer.layer_weights
        novelty = fit_novelty(pooled, scorer.positions)
        categories = fit_categories(self.statistics_, deeper_half(scorer.positions))
        self.fitted_ = Fitted(scorer, weights, discriminants.weights, discriminants.biases, novelty, categories)

    def _statistics(self, states: npt.NDArray[np.floating]) -> PrototypeStatistics:
        if not hasattr(self, "statistics_"):
            self._check_options()
            self.statistics_ = PrototypeStatistics(*states.shape[1:], sample_size=self.sample_size)
        return self.statistics_

    def _check_options(self) -> None:
        if not (isinstance(self.C, (int, float)) and self.C > 0):
            raise ConfigurationError(f"C={self.C!r}: a number above 0")
        for name, value, least in (("sample_size", self.sample_size, 2), ("folds", self.folds, 0)):
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name}={value!r}: a whole number, at least {least}")

    @staticmethod
    def _read(
        X: npt.ArrayLike, y: npt.ArrayLike, keys: npt.ArrayLike | None
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64], Keys]:
        states = np.asarray(X)
        if states.ndim != 3 or not len(states):
            raise DataError(f"states have shape {states.shape}; expected (n, n_layers, dim) with n of at least 1")
        if not np.issubdtype(states.dtype, np.floating):
            states = states.astype(np.float32)
        labels = np.asarray(y)
        if labels.shape != (len(states),):
            raise DataError(f"{len(states)} states but labels of shape {labels.shape}")
        if labels.dtype == bool:
            labels = labels.astype(np.int64)
        if not np.isin(labels, CLASSES).all():
            raise DataError("labels must be 0 or False (safe), 1 or True (unsafe)")
        ids = state_keys(states) if keys is None else np.asarray(keys).astype(np.uint64)
        if ids.shape != labels.shape:
            raise DataError(f"{len(states)} states but keys of shape {ids.shape}")
        return states, labels.astype(np.int64), ids


def state_keys(states: npt.NDArray[np.floating]) -> Keys:
    """64-bit keys of states, shape (n,): equal for equal states."""
    rows = np.ascontiguousarray(states, np.float32)
    return content_keys([row.tobytes() for row in rows])


def content_keys(contents: Sequence[bytes]) -> Keys:
    """64-bit keys of contents, shape (n,): evenly spread, the same in every process."""
    digests = (hashlib.blake2b(content, digest_size=8, person=b"mlpm-guard").digest() for content in contents)
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
