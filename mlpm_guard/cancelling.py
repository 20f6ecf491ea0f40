"""Telling work on another thread that nobody waits for it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Cancellation(threading.Event):
    """An event that is also set once the program ends, or once a condition holds.

    Threads that run a model must not be daemons: torch aborts the process when it is torn down in the middle of a call. So the
    interpreter waits for them at exit, and they must find out by themselves that there is nothing left to work for.

    Args:
        when: a condition under which it counts as set.
    """

    def __init__(self, when: Callable[[], bool] | None = None) -> None:
        super().__init__()
        self._when = when

    def is_set(self) -> bool:
        """Whether to stop."""
        return super().is_set() or not threading.main_thread().is_alive() or (self._when is not None and self._when())
