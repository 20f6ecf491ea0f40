"""Finds prompts that are given with both labels, in 16 bytes a prompt. Knows keys, never text; imports numpy only."""

from __future__ import annotations

import numpy as np

_LEAST_RECENT = 16_384


class LabelsSeen:
    """Which label every prompt of a stream had so far."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.uint64)
        # Row and label of each key, in one number.
        self._marks = np.empty(0, np.int64)
        self._recent: dict[int, int] = {}

    def add(self, key: int, row: int, label: int) -> int | None:
        """Note a prompt.

        Args:
            key: 64 bits that identify the prompt.
            row: where it stands, from 0.
            label: 0 or 1.

        Returns:
            The row where the same prompt stood first, if it had the other label there; None otherwise.
        """
        mark = self._find(key)
        if mark is None:
            self._recent[key] = 2 * row + label
            if len(self._recent) > max(_LEAST_RECENT, len(self._keys) // 16):
                self._settle()
            return None
        return None if mark % 2 == label else mark // 2

    def _find(self, key: int) -> int | None:
        mark = self._recent.get(key)
        if mark is None and len(self._keys):
            at = int(np.searchsorted(self._keys, np.uint64(key)))
            if at < len(self._keys) and int(self._keys[at]) == key:
                return int(self._marks[at])
        return mark

    def _settle(self) -> None:
        """Move what is recent into the arrays: a dictionary takes ten times as much."""
        count = len(self._recent)
        keys = np.concatenate([self._keys, np.fromiter(self._recent.keys(), np.uint64, count)])
        marks = np.concatenate([self._marks, np.fromiter(self._recent.values(), np.int64, count)])
        order = np.argsort(keys)
        self._keys, self._marks = keys[order], marks[order]
        self._recent = {}
