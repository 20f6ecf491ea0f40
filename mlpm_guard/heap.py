"""Giving freed memory back to the system.

glibc keeps what lies between blocks that live longer. Over many batches of large arrays of all sizes, what it keeps grows, and
a long stream looks as if it leaked. Imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Return freed memory to the system; nothing where the C library is not glibc. Takes some milliseconds."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
