"""Prompts whose states are kept, by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

States = npt.NDArray[np.floating]

_BLOCK_BYTES = 4 * 2**20
_BLOCK_ROWS = 256


@dataclass
class Row:
    """One prompt's states, shape (layers, dim), float32, and how often it was learned."""

    states: npt.NDArray[np.float32]
    times: int


class Rows(dict[int, Row]):
    """Rows by key. What a deleted row occupied is used again.

    A sample changes all the time. Were every row allocated for itself, the long-lived ones would end up between the large
    arrays of passing batches, and keep the heap from shrinking.
    """

    def __init__(self, rows: Mapping[int, Row] | None = None) -> None:
        super().__init__(rows or {})
        self._free: list[npt.NDArray[np.float32]] = []

    def __delitem__(self, key: int) -> None:
        self._free.append(self[key].states)
        super().__delitem__(key)

    def remember(self, key: int, states: States) -> None:
        """Learn a prompt once more; its states, shape (layers, dim), are copied."""
        row = self.get(key)
        if row is not None:
            row.times += 1
            return
        if not self._free:
            number = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // (states.size * np.dtype(np.float32).itemsize)))
            self._free.extend(np.empty((number, *states.shape), np.float32))
        place = self._free.pop()
        place[...] = states
        self[key] = Row(place, 1)

    def combine(self, others: Mapping[int, Row]) -> None:
        """Learn all of these too; their states are shared, not copied."""
        for key, other in others.items():
            row = self.get(key)
            if row is None:
                self[key] = other
            else:
                row.times += other.times
