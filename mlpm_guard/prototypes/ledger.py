"""Which prompts were learned, known by 64-bit keys."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


class KeyLedger:
    """A multiset of 64-bit keys in 8 bytes each: which prompts were learned, so that only those can be forgotten."""

    def __init__(self, keys: Keys | None = None) -> None:
        self._sorted: Keys = np.sort(keys) if keys is not None else np.empty(0, np.uint64)
        self._pending: list[Keys] = []

    def __len__(self) -> int:
        return len(self._sorted) + sum(map(len, self._pending))

    def add(self, keys: Keys) -> None:
        """Add keys, repetitions included."""
        self._pending.append(np.asarray(keys, np.uint64))
        if sum(map(len, self._pending)) > max(4096, len(self._sorted) // 4):
            self.keys()

    def keys(self) -> Keys:
        """All keys, ascending, with repetitions."""
        if self._pending:
            self._sorted = np.sort(np.concatenate([self._sorted, *self._pending]))
            self._pending = []
        return self._sorted

    def count(self, key: int) -> int:
        """How often a key is in it."""
        keys = self.keys()
        value = np.uint64(key)
        return int(np.searchsorted(keys, value, "right") - np.searchsorted(keys, value, "left"))

    def remove(self, keys: Iterable[int]) -> None:
        """Take keys out, each as often as it is given; all must be there."""
        present = self.keys()
        wanted, times = np.unique(np.asarray(list(keys), np.uint64), return_counts=True)
        first = np.searchsorted(present, wanted)
        gone = np.concatenate([np.arange(at, at + n) for at, n in zip(first, times, strict=True)])
        self._sorted = np.delete(present, gone)
