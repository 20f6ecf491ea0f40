"""The micro-batcher behind `acheck`: concurrent requests share forward passes.

The first request starts at once; whatever arrives while it is scored goes into the next batch together. Nothing waits for a
batch to fill. Work runs on one thread that exists only while there is work.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from mlpm_guard.cancelling import Cancellation

Item = TypeVar("Item")
Result = TypeVar("Result")

_batchers: weakref.WeakSet[MicroBatcher[object, object]] = weakref.WeakSet()


class MicroBatcher(Generic[Item, Result]):
    """Runs `work` on batches of submitted items, one batch at a time.

    Args:
        work: takes a list of items and an event, and returns as many results, in order; a result that is an exception fails its
            item alone. Once the event is set, nobody waits for any of them.
        max_items: items of one batch at most.
        max_size: sum of the items' sizes in one batch at most; a larger item runs alone.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item], threading.Event], Sequence[Result | Exception]],
        *,
        max_items: int = 256,
        max_size: int = 65_536,
    ) -> None:
        self._work = work
        self._max_items = max_items
        self._max_size = max_size
        self.reset()
        _batchers.add(self)  # type: ignore[arg-type]

    def reset(self) -> None:
        """Forget pending work; for a forked child, where the thread that would do it does not exist."""
        self._lock = threading.Lock()
        self._pending: deque[tuple[Item, int, Future[Result]]] = deque()
        self._running = False

    def submit(self, item: Item, size: int = 1) -> Future[Result]:
        """Queue an item; its future can be cancelled until its batch starts."""
        future: Future[Result] = Future()
        with self._lock:
            self._pending.append((item, size, future))
            start = not self._running
            self._running = True
        if start:
            try:
                threading.Thread(target=self._drain, name="mlpm-guard-batcher", daemon=False).start()
            except RuntimeError:  # no more threads, or the interpreter is shutting down
                with self._lock:
                    self._running = False
                    self._pending = deque(entry for entry in self._pending if entry[2] is not future)
                raise
        return future

    @staticmethod
    def abandon(future: Future[Result]) -> None:
        """Say that nobody waits for a future any more, whether its batch has started or not."""
        if not future.cancel():
            future.abandoned = True  # type: ignore[attr-defined]

    def _take(self) -> list[tuple[Item, Future[Result]]] | None:
        with self._lock:
            batch: list[tuple[Item, Future[Result]]] = []
            total = 0
            while self._pending and len(batch) < self._max_items:
                item, size, future = self._pending[0]
                if batch and total + size > self._max_size:
                    break
                self._pending.popleft()
                if future.set_running_or_notify_cancel():
                    batch.append((item, future))
                    total += size
            if not batch:
                self._running = False
                return None
            return batch

    def _drain(self) -> None:
        while (batch := self._take()) is not None:
            try:
                futures = [future for _, future in batch]
                given_up = Cancellation(lambda futures=futures: all(getattr(each, "abandoned", False) for each in futures))  # type: ignore[misc]
                results = self._work([item for item, _ in batch], given_up)
            except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to the callers, not to this thread)
                results = [error] * len(batch)
            if len(results) != len(batch):
                results = [RuntimeError("the batch gave another number of results than items")] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            del batch, results, futures, given_up


def _after_fork() -> None:
    for batcher in list(_batchers):
        batcher.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
