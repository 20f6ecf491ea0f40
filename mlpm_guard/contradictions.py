"""Finds prompts that are given with two labels, or in two categories. Knows keys, never text; imports numpy only.

Takes 16 bytes a prompt.
"""

from __future__ import annotations

import numpy as np

_LEAST_RECENT = 16_384


class LabelsSeen:
    """Which label every prompt of a stream had so far.

    Args:
        labels: how many labels there are.
    """

    def __init__(self, labels: int = 2) -> None:
        self._labels = labels
        self._keys = np.empty(0, np.uint64)
        # Row and label of each key, in one number.
        self._marks = np.empty(0, np.int64)
        self._recent: dict[int, int] = {}

    def add(self, key: int, row: int, label: int) -> int | None:
        """Note a prompt.

        Args:
            key: 64 bits that identify the prompt.
            row: where it stands, from 0.
            label: from 0, below the number of labels.

        Returns:
            The row where the same prompt stood first, if it had another label there; None otherwise.
        """
        mark = self._find(key)
        if mark is None:
            self._recent[key] = self._labels * row + label
            if len(self._recent) > max(_LEAST_RECENT, len(self._keys) // 16):
                self._settle()
            return None
        return None if mark % self._labels == label else mark // self._labels

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
