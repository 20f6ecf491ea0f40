"""Mergeable sufficient statistics of layer states, per class.

Counts and means per class and layer, and the within-class scatter that the tied covariance is made of. They add and subtract
exactly (Chan, Golub & LeVeque 1979), in float64, so that a fit can be streamed, merged from shards and undone. numpy and
BLAS only; knows nothing of text: prompts are known by 64-bit keys.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mlpm_guard.errors import BundleCorruptError, CategoryError, DataError, NonFiniteError, UnknownPromptError
from mlpm_guard.prototypes.categories import UNKNOWN, require_name
from mlpm_guard.prototypes.category_statistics import CategoryStatistics
from mlpm_guard.prototypes.gram import Array, add_gram, mirrored, weighted_sum
from mlpm_guard.prototypes.ledger import KeyLedger, Keys
from mlpm_guard.prototypes.rows import Row, Rows, States

CLASSES = (0, 1)
"""0 is safe, 1 is unsafe."""
_SAVED_SAMPLE_BYTES = 3_650_000
_LEAST_SAVED = 256


@dataclass
class ClassStatistics:
    """What is known of one class.

    While `complete`, the rows of all its prompts are kept and everything else follows from them; later, count, mean and the
    shared scatter are kept, and the rows are a bottom-k sample: the k prompts with the smallest keys, whatever the order they
    came in.

    Attributes:
        rows: prompts by key.
        complete: whether `rows` holds every prompt.
        count: prompts learned (not complete only).
        mean: shape (layers, dim) (not complete only).
        ledger: keys of every prompt learned (not complete only).
    """

    rows: Rows = field(default_factory=Rows)
    complete: bool = True
    count: int = 0
    mean: Array | None = None
    ledger: KeyLedger = field(default_factory=KeyLedger)

    def times(self, key: int) -> int:
        """How often a prompt was learned."""
        if not self.complete:
            return self.ledger.count(key)
        row = self.rows.get(key)
        return 0 if row is None else row.times

    def sorted_keys(self) -> list[int]:
        """Keys of the kept rows, ascending."""
        return sorted(self.rows)

    def layer(self, index: int, keys: list[int]) -> tuple[Array, Array]:
        """Rows of one layer, shape (keys, dim), and how often each was learned, shape (keys,)."""
        states = np.array([self.rows[key].states[index] for key in keys], np.float64)
        return states, np.array([self.rows[key].times for key in keys], np.float64)

    def prune(self, size: int) -> None:
        """Keep the rows with the smallest keys."""
        if len(self.rows) > size:
            for key in self.sorted_keys()[size:]:
                del self.rows[key]


class PrototypeStatistics:
    """Sufficient statistics of the tied-covariance discriminant, and a bounded sample for the aggregation of layers.

    A class keeps its rows while it has at most `max(sample_size, dim)` different prompts, so that a fit from a few hundred
    prompts on a wide model stays small; beyond that, its scatter goes into one (layers, dim, dim) sum that all classes share,
    which is all that a tied covariance needs. Memory is O(layers * dim^2) whatever the number of prompts, plus 8 bytes a
    prompt.

    Args:
        layers: number of layers.
        dim: numbers per layer state.
        sample_size: prompts per class kept with their states for the aggregation.

    Attributes:
        trimmed: whether they were saved with fewer kept rows, or less precise ones, than an aggregation was fitted on.
    """

    def __init__(self, layers: int, dim: int, *, sample_size: int = 512) -> None:
        self.layers = layers
        self.dim = dim
        self.sample_size = sample_size
        self.classes: dict[int, ClassStatistics] = {label: ClassStatistics() for label in CLASSES}
        self.categories = CategoryStatistics(layers, dim)
        self.upper: Array | None = None
        self.trimmed = False

    @property
    def scatter(self) -> Array | None:
        """Scatter that condensed classes share, shape (layers, dim, dim); None while all classes keep their rows. A copy."""
        return None if self.upper is None else mirrored(self.upper)

    @property
    def capacity(self) -> int:
        """Different prompts of a class up to which all its rows are kept."""
        return max(self.sample_size, self.dim)

    def count(self, label: int) -> int:
        """Prompts learned of a class, repetitions included."""
        statistics = self.classes[label]
        return sum(row.times for row in statistics.rows.values()) if statistics.complete else statistics.count

    def means(self, label: int) -> Array:
        """The prototypes of a class: mean state per layer, shape (layers, dim)."""
        statistics = self.classes[label]
        if statistics.mean is not None:
            return statistics.mean
        keys = statistics.sorted_keys()
        result = np.zeros((self.layers, self.dim))
        for layer in range(self.layers if keys else 0):
            states, times = statistics.layer(layer, keys)
            result[layer] = weighted_sum(times, states) / times.sum()
        return result

    def pooled(self) -> PrototypeStatistics:
        """The same statistics for taking many subsets out of: the scatter of every class is in the shared sum.

        Taking rows out of a sum costs what the rows cost, however many are left. These statistics themselves where they are in
        that form, or where the rows are fewer than the dimensions and so the smaller form. Shares its rows with them.
        """
        complete = {label: each for label, each in self.classes.items() if each.complete and each.rows}
        if not complete or (self.upper is None and sum(len(each.rows) for each in complete.values()) < self.dim):
            return self
        result = PrototypeStatistics(self.layers, self.dim, sample_size=self.capacity)
        result.upper = None if self.upper is None else self.upper.copy()
        result.classes = dict(self.classes)
        for label, each in complete.items():
            result.classes[label] = ClassStatistics(each.rows)
            result._condense(result.classes[label])
        return result

    # -- learning and forgetting --------------------------------------------------------------------------------------------

    def update(
        self,
        states: States,
        labels: npt.NDArray[np.int64],
        keys: Keys,
        categories: Sequence[str | None] | None = None,
    ) -> None:
        """Add prompts.

        Args:
            states: shape (n, layers, dim).
            labels: 0 or 1, shape (n,).
            keys: what identifies each prompt, shape (n,); equal keys of one class are the same prompt.
            categories: a category or None for each prompt, length n; None for a safe one.

        Raises:
            DataError: wrong shapes, or a category of a safe prompt.
            CategoryError: a category's name cannot be used.
            NonFiniteError: a state is NaN or infinite.
        """
        states = self._check(states, labels, keys)
        if categories is not None:
            self.categories.update(states, checked_categories(categories, labels), keys)
        condensed: list[tuple[ClassStatistics, States, Keys]] = []
        for label, statistics in self.classes.items():
            chosen = np.flatnonzero(labels == label)
            if not len(chosen):
                continue
            if not statistics.complete:
                condensed.append((statistics, states[chosen], keys[chosen]))
                continue
            for index in chosen:
                statistics.rows.remember(int(keys[index]), states[index])
            if len(statistics.rows) > self.capacity:
                self._condense(statistics)
        if condensed:
            self._add(condensed)

    def assign(self, states: States, names: Sequence[str | None], keys: Keys) -> None:
        """Say which category unsafe prompts belong to that were learned without one; nothing else changes.

        Args:
            states: shape (n, layers, dim).
            names: a category or None for each prompt, length n.
            keys: what identifies each prompt, shape (n,).

        Raises:
            UnknownPromptError: one was never learned as an unsafe prompt; nothing has changed then.
            CategoryError: one has a category already (as often as it was learned), or a name cannot be used; nothing has
                changed then.
        """
        labels = np.ones(len(keys), np.int64)
        states = self._check(states, labels, keys)
        names = checked_categories(names, labels)
        self.require_known(labels, keys)
        asked = Counter(key for key, name in zip(keys.tolist(), names, strict=True) if name is not None)
        twice = sum(times + self.categories.times(key) > self.classes[1].times(key) for key, times in asked.items())
        if twice:
            raise CategoryError(f"{twice} of {len(asked)} prompts have a category already; nothing was assigned")
        self.categories.update(states, names, keys)

    def forget(
        self,
        states: States,
        labels: npt.NDArray[np.int64],
        keys: Keys,
        categories: Sequence[str | None] | None = None,
    ) -> None:
        """Take prompts out again; counts, means and scatter are then what they were without them.

        In a class beyond `capacity`, prompts that the bottom-k sample dropped in favour of a forgotten one do not come back.
        Without `categories`, prompts leave the category that they were learned in.

        Raises:
            UnknownPromptError: a prompt was not learned under that label (as often); nothing has changed then.
            DataError: prompts of a class would be left, but none of its sample; nothing has changed then.
        """
        states = self._check(states, labels, keys)
        self.require_known(labels, keys)
        names = self._names(labels, keys, categories)
        for label, statistics in self.classes.items():
            going = Counter(keys[labels == label].tolist())
            left = statistics.count - going.total()
            if not statistics.complete and left and all(row.times <= going[key] for key, row in statistics.rows.items()):
                raise DataError(
                    f"forgetting these would leave {left} prompts of class {label}, but none of the sample whose states are "
                    "kept; nothing was forgotten. Fit again without them."
                )
        self.categories.forget(states, names, keys)
        for label, statistics in self.classes.items():
            chosen = np.flatnonzero(labels == label)
            if not len(chosen):
                continue
            for index in chosen:
                row = statistics.rows.get(int(keys[index]))
                if row is not None:
                    row.times -= 1
                    if row.times == 0:
                        del statistics.rows[int(keys[index])]
            if not statistics.complete:
                self._subtract(statistics, states[chosen])
                statistics.ledger.remove(int(key) for key in keys[chosen])

    def merge(self, other: PrototypeStatistics) -> PrototypeStatistics:
        """Statistics of both together, as if one had learned all prompts; the smaller sample size holds. Neither is changed.

        Raises:
            DataError: shapes differ.
        """
        mine, theirs = (self.layers, self.dim), (other.layers, other.dim)
        if mine != theirs:
            raise DataError(f"cannot merge statistics of (layers, dim) {mine} and {theirs}")
        result, added = copy.deepcopy(self), copy.deepcopy(other)
        result.sample_size = added.sample_size = min(self.sample_size, other.sample_size)
        result.categories = self.categories.merge(other.categories)
        for label in CLASSES:
            one, two = result.classes[label], added.classes[label]
            if one.complete and two.complete and len(one.rows.keys() | two.rows.keys()) <= result.capacity:
                one.rows.combine(two.rows)
                continue
            for owner, statistics in ((result, one), (added, two)):
                if statistics.complete:
                    owner._condense(statistics)
            result._shift(one, two.count, added.means(label))
            one.rows.combine(two.rows)
            one.prune(result.sample_size)
            one.ledger.add(two.ledger.keys())
        if added.upper is not None:
            result.upper = added.upper if result.upper is None else result.upper + added.upper
        return result

    def require_known(self, labels: npt.NDArray[np.int64], keys: Keys) -> None:
        """Check that all of these prompts were learned, as often as they are given.

        Raises:
            UnknownPromptError: some were not.
        """
        asked: dict[tuple[int, int], int] = {}
        unknown = []
        for index, (label, key) in enumerate(zip(labels.tolist(), keys.tolist(), strict=True)):
            asked[label, key] = asked.get((label, key), 0) + 1
            if asked[label, key] > self.classes[label].times(key):
                unknown.append(index)
        if unknown:
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise UnknownPromptError(
                f"{len(unknown)} of {len(labels)} prompts were never learned under that label (at positions {shown}); "
                "nothing was forgotten",
                unknown,
            )

    def _names(
        self, labels: npt.NDArray[np.int64], keys: Keys, categories: Sequence[str | None] | None
    ) -> Sequence[str | None]:
        if categories is None:
            known = self.categories.of(keys.tolist())
            return [name if label == 1 else None for name, label in zip(known, labels.tolist(), strict=True)]
        names = checked_categories(categories, labels)
        self.categories.require_known(names, keys)
        return names

    def _check(self, states: States, labels: npt.NDArray[np.int64], keys: Keys) -> npt.NDArray[np.float32]:
        if states.ndim != 3 or states.shape[1:] != (self.layers, self.dim):
            raise DataError(f"states have shape {states.shape}; expected (n, {self.layers}, {self.dim})")
        if labels.shape != (len(states),) or keys.shape != (len(states),):
            raise DataError(f"{len(states)} states, {labels.shape} labels and {keys.shape} keys do not match")
        if not np.isin(labels, CLASSES).all():
            raise DataError("labels must be 0 (safe) or 1 (unsafe)")
        # Kept rows are float32; sums of anything finer would not agree with them.
        with np.errstate(over="ignore"):
            states = np.asarray(states, np.float32)
        if not np.isfinite(states).all():
            bad = np.flatnonzero(~np.isfinite(states).all(axis=(1, 2)))
            raise NonFiniteError(f"{len(bad)} of {len(states)} states are NaN or infinite (first at position {bad[0]})")
        return states

    # -- the shared scatter -------------------------------------------------------------------------------------------------

    def _condense(self, statistics: ClassStatistics) -> None:
        """From rows to count, mean and scatter."""
        keys = statistics.sorted_keys()
        times = [statistics.rows[key].times for key in keys]
        statistics.mean = np.zeros((self.layers, self.dim))
        scatter = self._shared()
        for layer in range(self.layers if keys else 0):
            states, weights = statistics.layer(layer, keys)
            statistics.mean[layer] = weighted_sum(weights, states) / weights.sum()
            add_gram(scatter[layer], (states - statistics.mean[layer]) * np.sqrt(weights)[:, None])
        statistics.count = sum(times)
        statistics.ledger = KeyLedger(np.repeat(np.array(keys, np.uint64), times))
        statistics.complete = False
        statistics.prune(self.sample_size)

    def _add(self, blocks: list[tuple[ClassStatistics, States, Keys]]) -> None:
        """Add prompts of condensed classes; one matrix product a layer for all of them."""
        means = [states.mean(axis=0, dtype=np.float64) for _, states, _ in blocks]
        shifts = [
            (mean - statistics.mean) * np.sqrt(statistics.count * len(states) / (statistics.count + len(states)))
            for (statistics, states, _), mean in zip(blocks, means, strict=True)
        ]
        scatter = self._shared()
        for layer in range(self.layers):
            # The rank-one terms by which the classes' means move are rows like any other.
            parts = [states[:, layer] - mean[layer] for (_, states, _), mean in zip(blocks, means, strict=True)]
            add_gram(scatter[layer], np.concatenate([*parts, np.stack([shift[layer] for shift in shifts])]))
        for (statistics, states, keys), mean in zip(blocks, means, strict=True):
            assert statistics.mean is not None
            total = statistics.count + len(states)
            statistics.mean = statistics.mean + (mean - statistics.mean) * (len(states) / total)
            statistics.count = total
            statistics.ledger.add(keys)
            limit = max(statistics.rows) if len(statistics.rows) >= self.sample_size else None
            for index, key in enumerate(keys.tolist()):
                if limit is None or key <= limit:
                    statistics.rows.remember(key, states[index])
            statistics.prune(self.sample_size)

    def _shift(self, statistics: ClassStatistics, count: int, mean: Array) -> None:
        """Merge `count` prompts of that mean into a class, whose own scatter has been added already."""
        if count == 0:
            return
        assert statistics.mean is not None
        total = statistics.count + count
        delta = mean - statistics.mean
        scatter = self._shared()
        factor = statistics.count * count / total
        for layer in range(self.layers):
            add_gram(scatter[layer], np.sqrt(factor) * delta[layer, None])
        statistics.mean = statistics.mean + delta * (count / total)
        statistics.count = total

    def _subtract(self, statistics: ClassStatistics, states: States) -> None:
        assert statistics.mean is not None
        block = np.asarray(states, np.float64)
        mean = block.mean(axis=0)
        left = statistics.count - len(block)
        before = (statistics.mean * statistics.count - mean * len(block)) / left if left else np.zeros_like(mean)
        scatter = self._shared()
        factor = left * len(block) / statistics.count
        for layer in range(self.layers):
            shift = np.sqrt(factor) * (mean[layer] - before[layer])
            add_gram(scatter[layer], np.concatenate([block[:, layer] - mean[layer], shift[None]]), -1.0)
        statistics.mean, statistics.count = before, left

    def _shared(self) -> Array:
        if self.upper is None:
            self.upper = np.zeros((self.layers, self.dim, self.dim))
        return self.upper

    # -- tensors ------------------------------------------------------------------------------------------------------------

    @property
    def saved_sample_size(self) -> int:
        """Sampled prompts per class that are saved: fewer than are used for a fit, so that a bundle stays small.

        The smaller sample is what the larger one would have been with that size, since both keep the smallest keys.
        """
        fitting = _SAVED_SAMPLE_BYTES // (self.layers * self.dim * np.dtype(np.float16).itemsize)
        return min(self.sample_size, max(_LEAST_SAVED, fitting))

    def to_tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Arrays to save: the shared scatter as its upper triangle in float32, `saved_sample_size` sampled rows in float16."""
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for label, statistics in self.classes.items():
            keys = statistics.sorted_keys()
            if not statistics.complete:
                keys = keys[: self.saved_sample_size]
            rows = np.array([statistics.rows[key].states for key in keys], np.float32)
            rows = rows.reshape(-1, self.layers, self.dim)
            tensors[f"{label}.keys"] = np.array(keys, np.uint64)
            tensors[f"{label}.times"] = np.array([statistics.rows[key].times for key in keys], np.int64)
            if statistics.complete:
                tensors[f"{label}.rows"] = rows
                continue
            # float16 has five bits of exponent; rows of models with huge activations are scaled into its range.
            scale = np.maximum(np.abs(rows).max(axis=2, keepdims=True), 1e-30)
            tensors[f"{label}.sample"] = (rows / scale).astype(np.float16)
            tensors[f"{label}.scale"] = scale.astype(np.float32)
            tensors[f"{label}.mean"] = np.asarray(statistics.mean)
            tensors[f"{label}.ledger"] = statistics.ledger.keys()
        if self.upper is not None:
            upper = np.triu_indices(self.dim)
            tensors["scatter"] = np.stack([layer[upper] for layer in self.upper]).astype(np.float32)
        return tensors | self.categories.to_tensors()

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, npt.NDArray[np.generic]], *, layers: int, dim: int, sample_size: int
    ) -> PrototypeStatistics:
        """Read what `to_tensors` gave.

        Raises:
            BundleCorruptError: arrays are missing or have other shapes.
        """
        result = cls(layers, dim, sample_size=sample_size)
        try:
            for label in CLASSES:
                result.classes[label] = _read_class(tensors, label, layers, dim)
            if "scatter" in tensors:
                packed = np.asarray(tensors["scatter"], np.float64)
                upper = np.triu_indices(dim)
                if packed.shape != (layers, len(upper[0])) or not np.isfinite(packed).all():
                    raise ValueError(f"the scatter has shape {packed.shape} or is not finite")
                result.upper = np.zeros((layers, dim, dim))
                for layer in range(layers):
                    result.upper[layer][upper] = packed[layer]
                result.trimmed = not all(statistics.complete for statistics in result.classes.values())
            elif not all(statistics.complete for statistics in result.classes.values()):
                raise ValueError("the scatter is missing")
            result.categories = CategoryStatistics.from_tensors(tensors, layers, dim)
        except (KeyError, ValueError, IndexError, TypeError, CategoryError) as error:
            raise BundleCorruptError(f"the statistics do not fit together ({type(error).__name__}: {error})") from error
        return result


def checked_categories(categories: Sequence[str | None], labels: npt.NDArray[np.int64]) -> list[str | None]:
    """Categories to learn: None for a prompt whose category is None or unknown.

    Raises:
        DataError: there are more or fewer than prompts, or a safe prompt has one.
        CategoryError: a name cannot be used.
    """
    if len(categories) != len(labels):
        raise DataError(f"{len(labels)} prompts but {len(categories)} categories")
    names = [None if name is None or name == UNKNOWN else require_name(name) for name in categories]
    wrong = [index for index, (name, label) in enumerate(zip(names, labels.tolist(), strict=True)) if name and label == 0]
    if wrong:
        raise DataError(f"a safe prompt has no category, but one has at {len(wrong)} positions (first at {wrong[0]})")
    return names


def _read_class(tensors: Mapping[str, npt.NDArray[np.generic]], label: int, layers: int, dim: int) -> ClassStatistics:
    keys = np.asarray(tensors[f"{label}.keys"], np.uint64).tolist()
    times = np.asarray(tensors[f"{label}.times"], np.int64).tolist()
    complete = f"{label}.rows" in tensors
    if complete:
        rows = np.asarray(tensors[f"{label}.rows"], np.float32)
    else:
        rows = np.asarray(tensors[f"{label}.sample"], np.float32) * np.asarray(tensors[f"{label}.scale"], np.float32)
    if rows.shape != (len(keys), layers, dim) or not np.isfinite(rows).all():
        raise ValueError(f"rows of class {label} have shape {rows.shape} or are not finite")
    if len(set(keys)) != len(keys) or any(n < 1 for n in times):
        raise ValueError(f"keys of class {label} repeat, or were learned less than once")
    result = ClassStatistics(
        Rows({key: Row(row.copy(), n) for key, n, row in zip(keys, times, rows, strict=True)}), complete=complete
    )
    if not complete:
        result.mean = np.asarray(tensors[f"{label}.mean"], np.float64).reshape(layers, dim).copy()
        if not np.isfinite(result.mean).all():
            raise ValueError(f"the mean of class {label} is not finite")
        result.ledger = KeyLedger(np.asarray(tensors[f"{label}.ledger"], np.uint64))
        result.count = len(result.ledger)
    return result
