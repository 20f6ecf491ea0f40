"""Work on a thread of its own, its results read as they come, by a loop or by an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")

Produce = Callable[[Callable[[T], None], threading.Event], None]
"""What the thread runs: it hands results to its first argument, and ends early when its second is set."""


class _End:
    """The last item: how the work ended."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _start(produce: Produce[T], put: Callable[[T | _End], None], cancelled: threading.Event) -> threading.Thread:
    def work() -> None:
        try:
            produce(put, cancelled)
        except BaseException as error:  # noqa: BLE001  (raised again where the results are read)
            put(_End(error))
        else:
            put(_End())

    thread = threading.Thread(target=copy_context().run, args=(work,), name="mlpm-guard-generate", daemon=False)
    thread.start()
    return thread


def iterate(produce: Produce[T], cancelled: threading.Event) -> Generator[T]:
    """Results of work on another thread. An error of the work is raised here; closing the generator cancels the work."""
    results: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    thread = _start(produce, results.put, cancelled)
    try:
        while not isinstance(item := results.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        cancelled.set()
        thread.join()


async def aiterate(produce: Produce[T], cancelled: threading.Event) -> AsyncGenerator[T]:
    """`iterate` for an event loop. Closing it cancels the work and does not wait for it."""
    results: asyncio.Queue[T | _End] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(item: T | _End) -> None:
        # A loop that was closed meanwhile has no more readers.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(results.put_nowait, item)

    _start(produce, put, cancelled)
    try:
        while not isinstance(item := await results.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        cancelled.set()
