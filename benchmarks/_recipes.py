"""Prototype recipes that are no options of the library, fitted on cached layer states with any sources left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf_shrinkage, oas
from sklearn.linear_model import LogisticRegression

Array = npt.NDArray[np.floating]
Discriminants = tuple[Array, Array]
Shrinkage = Literal["bayes", "ledoit_wolf", "oas"]

PLAIN, TWIN = "plain", "twin"
PARTS = ("mean", "cls", "max")
"""What a layer's state is made of, in this order: over the tokens, of [CLS], and over the tokens again, where it is there."""

_SAMPLE = 3000
_FOLDS = 5


@dataclass(frozen=True)
class Prompts:
    """States of training windows, and what they belong to.

    Attributes:
        states: shape (windows, layers, dim), float32.
        owner: prompt of every window, shape (windows,), ascending.
        source: of every prompt.
        label: of every prompt, 1 unsafe.
        kind: of every prompt: "plain", "twin", or the transformation of a copy.
        held: of every prompt: whether it is kept for measuring.
        category: of every prompt, empty where it is not known; None where no variant asks for it.
    """

    states: npt.NDArray[np.float32]
    owner: npt.NDArray[np.int64]
    source: npt.NDArray[np.str_]
    label: npt.NDArray[np.int64]
    kind: npt.NDArray[np.str_]
    held: npt.NDArray[np.bool_]
    category: npt.NDArray[np.str_] | None = None


@dataclass(frozen=True)
class Variant:
    """One recipe.

    Attributes:
        name: as it stands in the table.
        ridge: added to the covariance, as a multiple of its mean eigenvalue; None leaves it to `shrinkage`.
        shrinkage: how the ridge is found: the Bayes ridge of the reference, or that of Ledoit and Wolf or of the oracle
            approximation, which count every row the same.
        aggregation: of the layers: a regression on "probabilities" or on "log_odds", or the plain "mean" of the log-odds.
        out_of_fold: the regression learns from log-odds that prototypes without a row's own source gave.
        joint: one discriminant over all layers side by side instead of one a layer.
        categories: a prototype for every unsafe category; a layer's log-odds are those of any of them.
        between: weight of the scatter between the sources of a class within the covariance; 1 is the reference.
        balance: power of a source's size that its weight is divided by: 0 every row counts the same, 1 every source.
        unsafe_weight: factor of every unsafe row in the covariance and the aggregation.
        weights: factor of single sources.
        kinds: kinds of rows to learn from.
        layers: positions of the layers to use; None uses all.
        parts: of a layer's state; None uses all. With "max" the states are to have the third part.
    """

    name: str
    ridge: float | None = None
    shrinkage: Shrinkage = "bayes"
    aggregation: str = "probabilities"
    out_of_fold: bool = False
    joint: bool = False
    categories: bool = False
    between: float = 1.0
    balance: float = 0.0
    unsafe_weight: float = 1.0
    weights: dict[str, float] = field(default_factory=dict)
    kinds: tuple[str, ...] = (PLAIN,)
    layers: tuple[int, ...] | None = None
    parts: tuple[str, ...] | None = None

    def seen(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What is read of states, as shape (n, layers, dim)."""
        if self.layers is not None:
            states = states[:, list(self.layers)]
        if self.parts is not None:
            pieces = np.split(states, 3 if "max" in self.parts else 2, axis=2)
            states = np.concatenate([pieces[PARTS.index(part)] for part in self.parts], axis=2)
        return states.reshape(len(states), 1, -1) if self.joint else states


REFERENCE = Variant("reference")


class Fits:
    """Discriminants of a variant with any sources left out, by adding and subtracting the scatter of single sources."""

    def __init__(self, prompts: Prompts, variant: Variant) -> None:
        self._variant = variant
        usable = ~prompts.held & np.isin(prompts.kind, variant.kinds)
        chosen = usable[prompts.owner]
        self.states = states = variant.seen(prompts.states[chosen])
        self.source, self.label = prompts.source[prompts.owner[chosen]], prompts.label[prompts.owner[chosen]]
        self._prototype = self.label.astype(np.str_)
        if variant.categories:
            if prompts.category is None:
                raise ValueError("these prompts have no categories")
            category = prompts.category[prompts.owner[chosen]]
            self._prototype = np.where(self.label == 1, np.char.add("1 ", category), "0")
        names, counts = np.unique(self.source, return_counts=True)
        size = dict(zip(names.tolist(), counts.tolist(), strict=True))
        self._weight = {
            name: variant.weights.get(name, 1.0) * (size[name] / np.mean(counts)) ** -variant.balance for name in size
        }
        groups: dict[tuple[str, str], list[int]] = {}
        for row, key in enumerate(zip(self.source.tolist(), self._prototype.tolist(), strict=True)):
            groups.setdefault(key, []).append(row)
        self._groups = {key: np.array(rows) for key, rows in sorted(groups.items())}
        self._means = {key: states[rows].mean(axis=0, dtype=np.float64) for key, rows in self._groups.items()}
        self._total: Array | None = None

    def weights_of(self, rows: npt.NDArray[np.int64]) -> Array:
        """Weight of every one of these windows."""
        of_source = np.array([self._weight[name] for name in self.source[rows].tolist()])
        return np.where(self.label[rows] == 1, self._variant.unsafe_weight, 1.0) * of_source

    def without(self, *left_out: str | None) -> Discriminants:
        """A fit without some sources.

        Returns:
            Weights (prototypes, layers, dim) and biases (prototypes, layers) of every unsafe prototype against the safe one.
        """
        groups = {key: rows for key, rows in self._groups.items() if key[0] not in left_out}
        amount = {key: len(rows) * self._factor(key) for key, rows in groups.items()}
        names = sorted({prototype for _, prototype in groups})
        # How often a prototype is met is told by its rows, whatever they weigh.
        size = {name: sum(len(rows) for key, rows in groups.items() if key[1] == name) for name in names}
        mean = {
            name: sum(amount[key] * self._means[key] for key in groups if key[1] == name)
            / sum(amount[key] for key in groups if key[1] == name)
            for name in names
        }
        if self._total is None:
            self._total = sum(self._within(key) for key in self._groups)
        scatter = self._total - sum(self._within(key) for key in self._groups if key[0] in left_out)
        number = sum(amount.values())
        _, layers, dim = self.states.shape
        safe, *unsafe = names
        coef, bias = np.zeros((len(unsafe), layers, dim)), np.zeros((len(unsafe), layers))
        offsets = np.stack([np.sqrt(self._variant.between * amount[key]) * (self._means[key] - mean[key[1]]) for key in groups])
        for layer in range(layers):
            covariance = (scatter[layer] + offsets[:, layer].T @ offsets[:, layer]) / number
            level = float(np.trace(covariance)) / dim
            kept, ridge = self._shrunk(layer, number)
            covariance *= kept
            covariance.flat[:: dim + 1] += level * ridge
            factored = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
            for index, name in enumerate(unsafe):
                weights = cho_solve(factored, mean[name][layer] - mean[safe][layer], check_finite=False)
                coef[index, layer] = weights
                bias[index, layer] = -0.5 * weights @ (mean[name][layer] + mean[safe][layer])
                bias[index, layer] += np.log(size[name] / sum(size[other] for other in unsafe))
        return coef, bias

    def _shrunk(self, layer: int, number: float) -> tuple[float, float]:
        """How much of a layer's covariance stays, and what its diagonal gets, as a multiple of the mean eigenvalue."""
        if self._variant.ridge is not None:
            return 1.0, self._variant.ridge
        if self._variant.shrinkage == "bayes":
            return 1.0, self.states.shape[2] / (number - 1)
        return 1.0 - self._shares[layer], self._shares[layer]

    @cached_property
    def _shares(self) -> list[float]:
        """Shrinkage of every layer by scikit-learn. Found once, with every source: one source more or less moves it little."""
        means = {name: self.states[self._prototype == name].mean(axis=0) for name in np.unique(self._prototype).tolist()}
        centred = self.states - np.stack([means[name] for name in self._prototype.tolist()])
        if self._variant.shrinkage == "ledoit_wolf":
            return [float(ledoit_wolf_shrinkage(each, assume_centered=True)) for each in centred.swapaxes(0, 1)]
        return [float(oas(each, assume_centered=True)[1]) for each in centred.swapaxes(0, 1)]

    def _factor(self, key: tuple[str, str]) -> float:
        return self._weight[key[0]] * (self._variant.unsafe_weight if key[1] != "0" else 1.0)

    def _within(self, key: tuple[str, str]) -> Array:
        """Weighted scatter of a group around its own mean, shape (layers, dim, dim)."""
        centred = self.states[self._groups[key]] - self._means[key].astype(np.float32)
        found = np.stack([centred[:, layer].T @ centred[:, layer] for layer in range(centred.shape[1])])
        return found.astype(np.float64) * self._factor(key)


def log_odds_of(states: npt.NDArray[np.float32], discriminants: Discriminants) -> Array:
    """Log-odds of every layer, shape (n, layers): those of the one unsafe prototype, or of any of several."""
    coef, bias = discriminants
    values = np.einsum("nld,pld->npl", states, coef.astype(np.float32), optimize=True).astype(np.float64) + bias
    return values[:, 0] if len(coef) == 1 else logsumexp(values, axis=1)


def aggregator(variant: Variant, log_odds: Array, labels: npt.NDArray[np.int64], weights: Array) -> Callable[[Array], Array]:
    """From the layers' log-odds to a score, learned on a sample of training windows."""
    # As the shipped classifier recalibrates: a layer's log-odds are brought to the size that its own spread says.
    middle, spread = log_odds.mean(axis=0), log_odds.std(axis=0)
    separation = (log_odds[labels == 1].mean(axis=0) - log_odds[labels == 0].mean(axis=0)) / spread

    def scaled(values: Array) -> Array:
        return (values - middle) / spread * separation

    if variant.aggregation == "mean" or log_odds.shape[1] == 1:
        return lambda values: scaled(values).mean(axis=1)

    def features(values: Array) -> Array:
        return 0.5 * np.tanh(0.5 * scaled(values)) if variant.aggregation == "probabilities" else scaled(values)

    importance = weights.copy()
    for label in (0, 1):
        importance[labels == label] *= 0.5 * len(labels) / importance[labels == label].sum()
    model = LogisticRegression(C=1.0, l1_ratio=1.0, solver="liblinear", tol=1e-5, max_iter=1000, random_state=0)
    model.fit(features(log_odds), labels, sample_weight=importance)
    return lambda values: features(values) @ model.coef_[0] + model.intercept_[0]


def scorer(fits: Fits, variant: Variant, left_out: str | None) -> Callable[[npt.NDArray[np.float32]], Array]:
    """Scores of windows, from states of shape (n, layers, dim), by a fit without one source."""
    discriminants = fits.without(left_out)
    rows = np.flatnonzero(fits.source != left_out)
    rows = np.concatenate([np.random.default_rng(0).permutation(rows[fits.label[rows] == label])[:_SAMPLE] for label in (0, 1)])
    log_odds = _out_of_fold(fits, rows, left_out) if variant.out_of_fold else log_odds_of(fits.states[rows], discriminants)
    combine = aggregator(variant, log_odds, fits.label[rows], fits.weights_of(rows))

    def score(states: npt.NDArray[np.float32]) -> Array:
        return combine(log_odds_of(variant.seen(states), discriminants))

    return score


def _out_of_fold(fits: Fits, rows: npt.NDArray[np.int64], left_out: str | None) -> Array:
    """Log-odds of some rows by fits that have seen neither their sources nor the one that is left out."""
    sources = np.unique(fits.source[rows])
    found = np.zeros((len(rows), fits.states.shape[1]))
    for fold in range(min(_FOLDS, len(sources))):
        away = sources[fold::_FOLDS]
        of_fold = np.isin(fits.source[rows], away)
        found[of_fold] = log_odds_of(fits.states[rows[of_fold]], fits.without(left_out, *away.tolist()))
    return found
