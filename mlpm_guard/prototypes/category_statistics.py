"""Mergeable sufficient statistics of categories: how many prompts each has, and the sum of their layer states.

No scatter is kept. With the pooled scatter A of all training prompts about the means of safe and unsafe, the scatter about the
means of the categories is A - sum_c n_c (mu_c - mu_u)(mu_c - mu_u)^T, the unsafe prompts without a category being one more c.
numpy only; prompts are known by 64-bit keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mlpm_guard.errors import DataError, UnknownPromptError
from mlpm_guard.prototypes.categories import require_name
from mlpm_guard.prototypes.gram import Array
from mlpm_guard.prototypes.ledger import KeyLedger, Keys

States = npt.NDArray[np.floating]
_PREFIX = "category"


@dataclass
class CategorySum:
    """What is known of one category.

    Attributes:
        total: sum of the states, shape (layers, dim), float64.
        ledger: keys of its prompts.
    """

    total: Array
    ledger: KeyLedger = field(default_factory=KeyLedger)

    @property
    def count(self) -> int:
        """Prompts learned, repetitions included."""
        return len(self.ledger)

    @property
    def mean(self) -> Array:
        """The category's prototypes, shape (layers, dim)."""
        return self.total / self.count


class CategoryStatistics:
    """Counts and sums per category; they add, subtract and merge.

    Args:
        layers: number of layers.
        dim: numbers per layer state.
    """

    def __init__(self, layers: int, dim: int) -> None:
        self.layers = layers
        self.dim = dim
        self.sums: dict[str, CategorySum] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Categories with at least one prompt, in alphabetical order."""
        return tuple(sorted(self.sums))

    def update(self, states: States, names: Sequence[str | None], keys: Keys) -> None:
        """Add prompts.

        Args:
            states: shape (n, layers, dim).
            names: a category each, or None for a prompt without one, length n.
            keys: what identifies each prompt, shape (n,).
        """
        for name, chosen in _grouped(names).items():
            known = self.sums.get(name)
            if known is None:
                known = self.sums[require_name(name)] = CategorySum(np.zeros((self.layers, self.dim)))
            known.total = known.total + _sum(states[chosen])
            known.ledger.add(keys[chosen])

    def require_known(self, names: Sequence[str | None], keys: Keys) -> None:
        """Check that all of these prompts were learned in their category, as often as they are given.

        Raises:
            UnknownPromptError: some were not.
        """
        unknown: list[int] = []
        for name, chosen in _grouped(names).items():
            known = self.sums.get(name)
            asked: Counter[int] = Counter()
            for index in chosen.tolist():
                key = int(keys[index])
                asked[key] += 1
                if known is None or asked[key] > known.ledger.count(key):
                    unknown.append(index)
        if unknown:
            shown = ", ".join(map(str, sorted(unknown)[:10])) + (", ..." if len(unknown) > 10 else "")
            raise UnknownPromptError(
                f"{len(unknown)} of {len(names)} prompts were never learned in that category (at positions {shown}); nothing "
                "was forgotten",
                sorted(unknown),
            )

    def forget(self, states: States, names: Sequence[str | None], keys: Keys) -> None:
        """Take prompts out again, which `require_known` found; a category that is empty then is gone."""
        for name, chosen in _grouped(names).items():
            known = self.sums[name]
            known.ledger.remove(int(key) for key in keys[chosen])
            if known.count:
                known.total = known.total - _sum(states[chosen])
            else:
                del self.sums[name]

    def times(self, key: int) -> int:
        """How often a prompt was learned in any category."""
        return sum(known.ledger.count(key) for known in self.sums.values())

    def of(self, keys: Sequence[int]) -> list[str | None]:
        """The category that each prompt was learned in, or None."""
        wanted = np.asarray(keys, np.uint64)
        found: list[str | None] = [None] * len(wanted)
        for name in self.names:
            for index in np.flatnonzero(np.isin(wanted, self.sums[name].ledger.keys())).tolist():
                found[index] = name
        return found

    def merge(self, other: CategoryStatistics) -> CategoryStatistics:
        """Statistics of both together. Neither is changed.

        Raises:
            DataError: shapes differ.
        """
        mine, theirs = (self.layers, self.dim), (other.layers, other.dim)
        if mine != theirs:
            raise DataError(f"cannot merge statistics of (layers, dim) {mine} and {theirs}")
        result = CategoryStatistics(self.layers, self.dim)
        for name in sorted(self.sums.keys() | other.sums.keys()):
            parts = [each.sums[name] for each in (self, other) if name in each.sums]
            keys = np.concatenate([part.ledger.keys() for part in parts])
            result.sums[name] = CategorySum(np.sum([part.total for part in parts], axis=0), KeyLedger(keys))
        return result

    def to_tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Arrays to save; sums in float32, like the scatter that they belong to."""
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for name in self.names:
            tensors[f"{_PREFIX}.{name}.sum"] = self.sums[name].total.astype(np.float32)
            tensors[f"{_PREFIX}.{name}.ledger"] = self.sums[name].ledger.keys()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[np.generic]], layers: int, dim: int) -> CategoryStatistics:
        """Read what `to_tensors` gave; other arrays are ignored.

        Raises:
            ValueError: arrays are missing or have other shapes.
        """
        result = cls(layers, dim)
        for key in sorted(tensors):
            if key.startswith(f"{_PREFIX}.") and key.endswith(".sum"):
                name = key.removeprefix(f"{_PREFIX}.").removesuffix(".sum")
                total = np.asarray(tensors[key], np.float64)
                ledger = KeyLedger(np.asarray(tensors[f"{_PREFIX}.{name}.ledger"], np.uint64))
                if total.shape != (layers, dim) or not np.isfinite(total).all() or not len(ledger):
                    raise ValueError("a category's sum has another shape, is not finite, or has no prompts")
                result.sums[require_name(name)] = CategorySum(total.copy(), ledger)
        return result


def _grouped(names: Sequence[str | None]) -> dict[str, npt.NDArray[np.int64]]:
    """Positions of every category, in alphabetical order."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            found.setdefault(name, []).append(index)
    return {name: np.array(found[name]) for name in sorted(found)}


def _sum(states: States) -> Array:
    # The rows as the other statistics see them.
    found: Array = np.asarray(states, np.float32).sum(axis=0, dtype=np.float64)
    return found
