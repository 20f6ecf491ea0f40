"""Running judgements for callers that wait: at once, within a time-out, or beside an event loop. Knows no guard."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

from mlpm_guard.batching import MicroBatcher
from mlpm_guard.cancelling import Cancellation
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.errors import GuardTimeoutError, InvalidConversationError, MlpmGuardError

Result = TypeVar("Result")
Work: TypeAlias = "Callable[[Sequence[ConversationLike], threading.Event], Sequence[Result | MlpmGuardError]]"

_TIMED_SLICE = 512


class Runner(Generic[Result]):
    """Runs work on conversations; concurrent async callers share it.

    Args:
        work: takes conversations and an event, and returns as many results, or errors to raise, in order. Once the event is
            set, nobody waits for them.
        failed: the result of a conversation that was not judged, or an error to raise.
    """

    def __init__(self, work: Work[Result], failed: Callable[[MlpmGuardError], Result | MlpmGuardError]) -> None:
        self._work = work
        self._failed = failed
        self._batcher: MicroBatcher[ConversationLike, Result] = MicroBatcher(work)

    def run(self, conversations: Sequence[ConversationLike], timeout: float | None) -> list[Result]:
        """Results in order.

        Args:
            conversations: what to judge.
            timeout: seconds that it may take; what is not done by then has failed. None for no limit.

        Raises:
            MlpmGuardError: a result is one.
        """
        if timeout is None:
            return _raised(self._work(conversations, threading.Event()))
        results: list[Result | MlpmGuardError] = []
        cancelled = Cancellation()
        failure: list[BaseException] = []

        def work() -> None:
            try:
                for start in range(0, len(conversations), _TIMED_SLICE):
                    if cancelled.is_set():
                        return
                    results.extend(self._work(conversations[start : start + _TIMED_SLICE], cancelled))
            except BaseException as error:  # noqa: BLE001  (handed to the caller's thread)
                failure.append(error)

        thread = threading.Thread(target=work, name="mlpm-guard-check", daemon=False)
        thread.start()
        thread.join(timeout)
        cancelled.set()
        if failure:
            raise failure[0]
        done = list(results)
        return _raised([*done, *(self._late(timeout) for _ in conversations[len(done) :])])

    async def arun(self, conversations: Sequence[ConversationLike], timeout: float | None) -> list[Result]:
        """`run` without blocking the event loop."""
        submitted = [self._batcher.submit(each, len(each) if isinstance(each, str) else 1024) for each in conversations]
        futures = [asyncio.wrap_future(each) for each in submitted]
        try:
            if futures:
                await asyncio.wait(futures, timeout=timeout)
            return _raised([await future if future.done() else self._late(timeout) for future in futures])
        finally:
            for future, running in zip(futures, submitted, strict=True):
                if not future.cancel() and not future.cancelled():
                    future.exception()  # an error that nobody is going to read is marked as seen
                elif not running.done():
                    self._batcher.abandon(running)

    def _late(self, timeout: float | None) -> Result | MlpmGuardError:
        return self._failed(GuardTimeoutError(f"no verdict within {timeout} s"))


def as_batch(conversations: Iterable[ConversationLike]) -> list[ConversationLike]:
    """A batch as a list.

    Raises:
        InvalidConversationError: it is itself one conversation, or nothing to iterate over.
    """
    if isinstance(conversations, (str, bytes, Conversation, Mapping)):
        raise InvalidConversationError("a batch is a list of conversations; this is one: use check, or put it in a list")
    if not isinstance(conversations, Iterable):
        raise InvalidConversationError(f"a batch is a list of conversations, not {type(conversations).__name__}")
    found = list(conversations)
    if found and all(isinstance(each, Mapping) for each in found):
        raise InvalidConversationError(
            "a batch is a list of conversations; this is a list of messages: use check, or [messages]"
        )
    return found


def _raised(results: Iterable[Result | MlpmGuardError]) -> list[Result]:
    found = []
    for result in results:
        if isinstance(result, MlpmGuardError):
            raise result
        found.append(result)
    return found
