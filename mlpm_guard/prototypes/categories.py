"""What scoring categories needs, and nothing else: linear functions of layer states, and a logistic curve.

Every category is judged for itself, so that adding or removing one does not change what is said of another; what an added one
knows of the fitted ones (`rivals`) is its own. Needs numpy only, so that a loaded guard stays light.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mlpm_guard.errors import BundleCorruptError, CategoryError
from mlpm_guard.prototypes.rivals import Rivals
from mlpm_guard.prototypes.scorer import Array, sigmoid

UNKNOWN = "other"
"""A training row of this category trains safe against unsafe only."""
RESERVED = (UNKNOWN, "safe", "unsafe")
_NAME = re.compile(r"\w(?:[\w .:/+-]{0,62}\w)?")
_TENSORS = ("positions", "weights", "biases", "center")
_RIVALS = ("weights", "biases", "scale")


def require_name(name: object) -> str:
    """A category's name, checked.

    Raises:
        CategoryError: it is empty, too long, holds unusual characters, or means something else.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CategoryError(
            "a category's name is 1 to 64 letters, digits, spaces or any of _ . : / + -, and begins and ends with a letter, "
            "a digit or _"
        )
    if name in RESERVED:
        raise CategoryError(f"a category cannot be named {name!r}: {', '.join(map(repr, RESERVED))} mean something else")
    return name


def same_name(one: str, other: str) -> bool:
    """Whether two names are told apart by case or Unicode form only, which people would take for one category."""
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


@dataclass(frozen=True)
class CategoryBlock:
    """Categories that were learned together: one linear function of the states of the same layers each.

    Attributes:
        names: of the categories, shape (k,).
        positions: which of the encoder's layers they read, shape (used,), ascending.
        weights: float32, shape (k, used, dim).
        biases: log-odds that no layer explains, shape (k,).
        center: float32, shape (used, dim): taken off every state, which is then scaled to unit length. None where states are
            read as they are.
        rivals: what tells the one category of this block from fitted ones; None where nothing does.
    """

    names: tuple[str, ...]
    positions: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    biases: Array
    center: npt.NDArray[np.float32] | None = None
    rivals: Rivals | None = None

    def contributions(self, states: npt.NDArray[np.floating]) -> Array:
        """What every layer adds to the log-odds, in nats.

        Args:
            states: of this block's layers, shape (n, used, dim).

        Returns:
            Shape (n, k, used); the sum over layers plus `biases` are the log-odds.
        """
        read = self._read(states)
        found: Array = np.matmul(read.swapaxes(0, 1), self._by_layer).transpose(1, 2, 0)
        if self.rivals is not None:
            found = self.rivals.lowered(read, found[:, 0], float(self.biases[0]))[:, None]
        return found

    def log_odds(self, states: npt.NDArray[np.floating]) -> Array:
        """Log-odds of every category in nats, shape (n, k), from states of shape (n, used, dim)."""
        found: Array = self.contributions(states).sum(axis=2) + self.biases
        return found

    @cached_property
    def _by_layer(self) -> Array:
        """Weights, shape (used, dim, k)."""
        return np.ascontiguousarray(self.weights.transpose(1, 2, 0), np.float64)

    def _read(self, states: npt.NDArray[np.floating]) -> Array:
        if self.center is None:
            return np.asarray(states, np.float64)
        return unit_states(states, self.center)

    def without(self, name: str) -> CategoryBlock | None:
        """The others of this block; None where there are none."""
        kept = [index for index, each in enumerate(self.names) if each != name]
        if not kept:
            return None
        names = tuple(self.names[index] for index in kept)
        return replace(self, names=names, weights=self.weights[kept], biases=self.biases[kept])


def deeper_half(used: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The layers that fitted categories and rivals read: the deeper half of those that the score uses."""
    return used[len(used) // 2 :]


def unit_states(states: npt.NDArray[np.floating], center: npt.NDArray[np.floating]) -> Array:
    """States seen from a centre, at unit length; one in the centre stays there. Any shape that ends in (used, dim)."""
    moved = np.asarray(states, np.float64) - center
    lengths = np.linalg.norm(moved, axis=-1, keepdims=True)
    found: Array = moved / np.where(lengths > 0.0, lengths, 1.0)
    return found


@dataclass(frozen=True)
class Categories:
    """Every category that a guard knows. Immutable.

    Attributes:
        fitted: those learned from labelled training prompts; None where there are none.
        added: those added from a few examples, one block each.
    """

    fitted: CategoryBlock | None = None
    added: tuple[CategoryBlock, ...] = ()

    @property
    def blocks(self) -> tuple[CategoryBlock, ...]:
        """All blocks, the fitted one first."""
        return self.added if self.fitted is None else (self.fitted, *self.added)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names: the fitted ones, then the added ones, each in alphabetical order."""
        return tuple(name for block in self.blocks for name in block.names)

    @property
    def added_names(self) -> tuple[str, ...]:
        """Names of categories added from a few examples."""
        return tuple(name for block in self.added for name in block.names)

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """Which of the encoder's layers any category reads, ascending."""
        found = [block.positions for block in self.blocks]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @cached_property
    def biases(self) -> Array:
        """Log-odds of every category that no layer explains, in nats, shape (k,)."""
        return np.concatenate([block.biases for block in self.blocks]) if len(self) else np.empty(0)

    def contributions(self, states: npt.NDArray[np.floating], positions: npt.NDArray[np.int64]) -> Array:
        """What every layer adds to each category's log-odds, in nats, shape (n, k, len(positions)).

        The sum over the layers plus `biases` are the log-odds.

        Args:
            states: shape (n, len(positions), dim).
            positions: which of the encoder's layers those are, ascending; all that any category reads are among them.
        """
        found = np.zeros((len(states), len(self), len(positions)))
        start = 0
        for block in self.blocks:
            columns = np.searchsorted(positions, block.positions)
            found[:, start : start + len(block.names), columns] = block.contributions(states[:, columns])
            start += len(block.names)
        return found

    def log_odds(self, states: npt.NDArray[np.floating], positions: npt.NDArray[np.int64]) -> Array:
        """Log-odds of every category in nats, shape (n, k); arguments as in `contributions`."""
        found: Array = self.contributions(states, positions).sum(axis=2) + self.biases
        return found

    def probabilities(self, log_odds: Array) -> dict[str, float]:
        """Probability of every category by name, from its log-odds, shape (k,)."""
        return dict(zip(self.names, sigmoid(log_odds).tolist(), strict=True))

    def require_free(self, name: str) -> None:
        """Check that no category has this name, nor one that differs in case or Unicode form only.

        Raises:
            CategoryError: one has, or it means something else in that form.
        """
        for taken in self:
            if same_name(name, taken):
                raise CategoryError(f"there is a category {taken!r} already; remove it first, or choose another name")
        if any(same_name(name, each) for each in RESERVED):
            raise CategoryError(f"a category cannot be named {name!r}: {', '.join(map(repr, RESERVED))} mean something else")

    def adding(self, block: CategoryBlock) -> Categories:
        """With another category; the order in which categories were added does not matter.

        Raises:
            CategoryError: its name is in use.
        """
        for name in block.names:
            self.require_free(name)
        return replace(self, added=tuple(sorted((*self.added, block), key=lambda each: each.names)))

    def without(self, name: str) -> Categories:
        """Without a category; the others stay exactly what they are.

        Raises:
            CategoryError: there is no such category.
        """
        if name not in self:
            raise CategoryError(f"there is no category {name!r}; there are: {', '.join(self.names) or 'none'}")
        kept = tuple(left for block in self.added if (left := block.without(name)) is not None)
        return Categories(None if self.fitted is None else self.fitted.without(name), kept)

    def to_tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """Arrays to save; `layout` says whose they are."""
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for index, block in enumerate(self.blocks):
            for field in _TENSORS:
                value = getattr(block, field)
                if value is not None:
                    tensors[f"categories.{index}.{field}"] = value
            if block.rivals is not None:
                tensors |= {f"categories.{index}.rivals.{field}": getattr(block.rivals, field) for field in _RIVALS}
        return tensors

    def layout(self) -> list[tuple[bool, list[str]]]:
        """For every block, whether it was fitted, and its names."""
        return [(block is self.fitted, list(block.names)) for block in self.blocks]

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, npt.NDArray[np.generic]],
        layout: Sequence[tuple[bool, Sequence[str]]],
        *,
        layers: int,
        dim: int,
    ) -> Categories:
        """Read what `to_tensors` and `layout` gave.

        Raises:
            BundleCorruptError: arrays are missing, have other shapes or impossible values.
        """
        try:
            blocks = [(fitted, _block(tensors, index, names, layers, dim)) for index, (fitted, names) in enumerate(layout)]
            first = [block for fitted, block in blocks if fitted]
            result = cls(first[0] if first else None, tuple(block for fitted, block in blocks if not fitted))
            fields = (*_TENSORS, *(f"rivals.{field}" for field in _RIVALS))
            expected = {f"categories.{index}.{field}" for index in range(len(layout)) for field in fields}
            if len(first) > 1 or len(set(result.names)) != len(result) or not set(tensors) <= expected:
                raise ValueError("names repeat, or there are more arrays than categories")
        except (KeyError, ValueError, IndexError, TypeError, CategoryError) as error:
            raise BundleCorruptError(f"the categories do not fit together ({type(error).__name__}: {error})") from error
        return result


def with_added(fitted: CategoryBlock | None, added: Iterable[CategoryBlock]) -> Categories:
    """Fitted categories and added ones together.

    Raises:
        CategoryError: a name is among both.
    """
    categories = Categories(fitted)
    for block in added:
        categories = categories.adding(block)
    return categories


def _block(
    tensors: Mapping[str, npt.NDArray[np.generic]], index: int, names: Iterable[str], layers: int, dim: int
) -> CategoryBlock:
    of_block = {field: tensors.get(f"categories.{index}.{field}") for field in _TENSORS}
    positions, weights, biases, center = (of_block[field] for field in _TENSORS)
    if positions is None or weights is None or biases is None:
        raise ValueError(f"arrays of block {index} are missing")
    block = CategoryBlock(
        tuple(require_name(name) for name in names),
        np.asarray(positions, np.int64),
        np.asarray(weights, np.float32),
        np.asarray(biases, np.float64),
        None if center is None else np.asarray(center, np.float32),
        _rivals(tensors, index),
    )
    k, used = len(block.names), len(block.positions)
    if (
        not (k and used)
        or not (block.positions[0] >= 0 and block.positions[-1] < layers and (np.diff(block.positions) > 0).all())
        or block.weights.shape != (k, used, dim)
        or block.biases.shape != (k,)
        or (block.center is not None and block.center.shape != (used, dim))
        or not all(np.isfinite(each).all() for each in (block.weights, block.biases, block.center) if each is not None)
        or not (block.rivals is None or (k == 1 and _fit(block.rivals, used, dim)))
    ):
        raise ValueError(f"arrays of block {index} have other shapes or impossible values")
    return block


def _rivals(tensors: Mapping[str, npt.NDArray[np.generic]], index: int) -> Rivals | None:
    weights, biases, scale = (tensors.get(f"categories.{index}.rivals.{field}") for field in _RIVALS)
    if weights is None and biases is None and scale is None:
        return None
    if weights is None or biases is None or scale is None:
        raise ValueError(f"arrays of the rivals of block {index} are missing")
    return Rivals(np.asarray(weights, np.float32), np.asarray(biases, np.float64), np.asarray(scale, np.float64))


def _fit(rivals: Rivals, used: int, dim: int) -> bool:
    count = len(rivals.biases)
    return (
        count > 0
        and rivals.weights.shape == (count, used, dim)
        and rivals.biases.shape == (count,)
        and rivals.scale.shape == (2,)
        and float(rivals.scale[0]) > 0.0
        and all(bool(np.isfinite(each).all()) for each in (rivals.weights, rivals.biases, rivals.scale))
    )
