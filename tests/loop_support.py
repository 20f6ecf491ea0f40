"""Whether the event loop runs while something else works, told by a handshake and not by a clock."""

from __future__ import annotations

import asyncio
import threading

_PATIENCE = 20.0


class Meeting:
    """Called by the work, wherever it runs: asks the event loop for a sign of life and waits for it.

    Work that holds the loop up waits in vain, and `held` says that the loop was always free. Make it inside a running loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._met: list[bool] = []

    def __call__(self, *_: object) -> bool:
        """Meet the loop. Returns False, so that it can be a guard's `flag`."""
        if not all(self._met):
            return False  # once in vain is enough to know
        came = threading.Event()
        self._loop.call_soon_threadsafe(came.set)
        self._met.append(came.wait(_PATIENCE))
        return False

    def hook(self, *_: object) -> None:
        """Meet the loop, as a forward pre-hook of a model."""
        self()

    @property
    def held(self) -> bool:
        """Whether there was a meeting, and the loop came to every one."""
        return bool(self._met) and all(self._met)
