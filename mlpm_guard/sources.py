"""Where the chunks of an answer come from: plain and async iterators, read one chunk at a time and closed once."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterable, Iterable
from typing import Any, Final, Protocol

from mlpm_guard.errors import ConfigurationError

END: Final = object()
"""What a pull gives when there are no more chunks."""

_log = logging.getLogger("mlpm_guard")


class AsyncSource(Protocol):
    """Chunks, one at a time."""

    async def pull(self) -> object:
        """The next chunk, or `END`."""

    async def aclose(self) -> None:
        """Close what gives the chunks, unless it has come to its end or is closed already."""


class Source:
    """Chunks of a plain iterable.

    Args:
        chunks: anything to iterate over, except one text.

    Raises:
        ConfigurationError: it is one text, an async iterator, or nothing to iterate over.
    """

    def __init__(self, chunks: object) -> None:
        _not_one_text(chunks)
        if not isinstance(chunks, Iterable):
            hint = "; use astream for an async iterator" if isinstance(chunks, AsyncIterable) else ""
            raise ConfigurationError(f"chunks is {type(chunks).__name__}: pass an iterator over the answer's text{hint}")
        self._iterator = iter(chunks)
        self._owners = _owners(self._iterator, chunks)
        self._open = True

    def pull(self) -> object:
        """The next chunk, or `END`."""
        if not self._open:
            return END
        try:
            return next(self._iterator)
        except StopIteration:
            self._open = False
            return END

    def close(self) -> None:
        """Close what gives the chunks, unless it has come to its end or is closed already."""
        if not self._open:
            return
        self._open = False
        for owner in self._owners:
            close = getattr(owner, "close", None)
            if callable(close):
                try:
                    close()
                except Exception as error:  # noqa: BLE001  (the verdict must reach the consumer all the same)
                    _closing_failed(error)


def async_source(chunks: object) -> AsyncSource:
    """Chunks of an async iterable, or of a plain one, read on worker threads.

    Raises:
        ConfigurationError: it is one text, or nothing to iterate over.
    """
    _not_one_text(chunks)
    return _Async(chunks) if isinstance(chunks, AsyncIterable) else _Threaded(Source(chunks))


class _Async:
    def __init__(self, chunks: AsyncIterable[object]) -> None:
        self._iterator = aiter(chunks)
        self._owners = _owners(self._iterator, chunks)
        self._open = True

    async def pull(self) -> object:
        try:
            return await anext(self._iterator)
        except StopAsyncIteration:
            self._open = False
            return END

    async def aclose(self) -> None:
        if not self._open:
            return
        self._open = False
        for owner in self._owners:
            close = getattr(owner, "aclose", None) or getattr(owner, "close", None)
            if callable(close):
                try:
                    closing = close()
                    if inspect.isawaitable(closing):
                        await closing
                except Exception as error:  # noqa: BLE001  (the verdict must reach the consumer all the same)
                    _closing_failed(error)


class _Threaded:
    """A plain source, each pull on a worker thread; a close waits there for a pull that is under way."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()

    async def pull(self) -> object:
        return await asyncio.to_thread(self._pull)

    async def aclose(self) -> None:
        if self._lock.locked():
            # Left behind by a cancelled task. How long it takes is up to the source; nobody waits for it.
            asyncio.get_running_loop().run_in_executor(None, self._close)
        else:
            await asyncio.to_thread(self._close)

    def _pull(self) -> object:
        with self._lock:
            return self._source.pull()

    def _close(self) -> None:
        with self._lock:
            self._source.close()


def _owners(iterator: object, chunks: object) -> list[Any]:
    """The iterator, and the object that it came from, which may hold a connection of its own."""
    return [iterator] if iterator is chunks else [iterator, chunks]


def _not_one_text(chunks: object) -> None:
    if isinstance(chunks, (str, bytes, bytearray)):
        raise ConfigurationError(
            f"chunks is one {type(chunks).__name__}, which would be read letter by letter: put the text in a list"
        )


def _closing_failed(error: Exception) -> None:
    _log.warning("closing the source of an answer failed: %s", type(error).__name__)
