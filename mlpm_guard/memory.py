"""Memory that passing batches leave behind: given back to the system while a long fit runs.

glibc's allocator takes blocks from a heap that shrinks only at its end, and, once blocks of some megabytes have been freed,
serves the next ones from there too. The activations of batches of many shapes then leave holes between what lives longer, and
the process grows with the number of batches though nothing is kept. Blocks that are mapped on their own have no such effect
(mallopt(3), M_MMAP_THRESHOLD).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3
_OWN_MAPPING = 4 * 2**20
# Where the allocator's own adjustment ends (DEFAULT_MMAP_THRESHOLD_MAX on 64 bits), which a process with batches of such
# sizes has reached before.
_USUAL = 32 * 2**20

_lock = threading.Lock()
_inside = 0


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """While it lasts, blocks of 4 MiB and more go back to the system as soon as they are freed.

    Counts for the whole process, may be nested and entered by several threads. Does nothing without glibc, and where the user
    has set MALLOC_MMAP_THRESHOLD_ or the tunable of that name.
    """
    global _inside
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                mallopt(_M_MMAP_THRESHOLD, _USUAL)


def _mallopt() -> Callable[[int, int], int] | None:
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        glibc = ctypes.CDLL(None)
        glibc.gnu_get_libc_version  # noqa: B018  (other C libraries have a mallopt that means something else)
        found: Callable[[int, int], int] = glibc.mallopt
    except (OSError, AttributeError, TypeError):
        return None
    return found
