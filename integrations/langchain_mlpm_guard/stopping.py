"""Ending a chain within while it streams: no more tokens than one, whatever stands between its model and here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler


class _StoppedError(BaseException):
    """Ends a model whose answer was blocked. Not an `Exception`: no fallback or retry within takes over."""


class Stopper(BaseCallbackHandler):
    """Ends the model within at its next token. Closing the chain would not: a parser in it would read the model to the end."""

    raise_error = True
    run_inline = True

    def __init__(self) -> None:
        self.stopped = False

    def on_llm_new_token(self, *_: Any, **__: Any) -> None:
        """Raise where the answer was blocked."""
        if self.stopped:
            raise _StoppedError


def stoppable(chunks: Iterator[Any], stopper: Stopper) -> Iterator[Any]:
    """The same chunks; closing it ends the model that gives them."""
    whole = False
    try:
        for chunk in chunks:  # noqa: UP028  (a delegated close would reach the chain before the flag)
            yield chunk
        whole = True
    finally:
        if not whole:
            stopper.stopped = True
            try:
                next(chunks, None)
            except _StoppedError:
                pass
            finally:
                chunks.close()  # type: ignore[attr-defined]


async def astoppable(chunks: AsyncIterator[Any], stopper: Stopper) -> AsyncIterator[Any]:
    """`stoppable` for event loops."""
    whole = False
    try:
        async for chunk in chunks:
            yield chunk
        whole = True
    finally:
        if not whole:
            stopper.stopped = True
            try:
                await anext(chunks, None)
            except _StoppedError:
                pass
            finally:
                await chunks.aclose()  # type: ignore[attr-defined]
