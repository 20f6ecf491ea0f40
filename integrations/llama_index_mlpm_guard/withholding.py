"""Keeps answers that nobody has judged yet from LlamaIndex's observers.

A wrapped engine or model reports its answer to event, span and callback handlers before its wrapper has seen it, and no handler
can veto. While `withheld()` is active in the current context, these reports go out without what may quote an answer: model and
query events are left out, spans keep their times and lose arguments and results, callbacks lose their payload. Retrieval and
embedding are reported as ever, and so is what the wrapper itself reports, which holds released text only.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index_instrumentation.dispatcher import Dispatcher

from llama_index_mlpm_guard.events import GuardDecisionEvent

T = TypeVar("T")

_HARMLESS_EVENTS = (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
    GuardDecisionEvent,
    ReRankEndEvent,
    ReRankStartEvent,
    RetrievalEndEvent,
    RetrievalStartEvent,
)
_HARMLESS_CALLBACKS = frozenset({CBEventType.RETRIEVE, CBEventType.EMBEDDING, CBEventType.RERANKING})
_NO_ARGUMENTS = inspect.signature(lambda: None).bind()

_active: ContextVar[bool] = ContextVar("mlpm_guard_withheld", default=False)
_lock = threading.Lock()
_installed = False


@contextmanager
def withheld(active: bool = True) -> Iterator[None]:
    """Withhold answers from observers of this thread or task, where `active`."""
    if not active:
        yield
        return
    _install()
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def quietly(source: Iterable[T]) -> Generator[T, None, None]:
    """What a stream gives, each item produced with answers withheld. Closes the stream, where it can be closed."""
    items, nothing = iter(source), object()
    try:
        while True:
            with withheld():
                item: Any = next(items, nothing)
            if item is nothing:
                return
            yield item
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


async def aquietly(source: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """`quietly` for an async stream."""
    items, nothing = aiter(source), object()
    try:
        while True:
            with withheld():
                item: Any = await anext(items, nothing)
            if item is nothing:
                return
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


def _install() -> None:
    """Put the filter between LlamaIndex and its handlers, once a process. Outside of `withheld` it changes nothing."""
    global _installed
    with _lock:
        if _installed:
            return
        for name in ("event", "aevent"):
            setattr(Dispatcher, name, _filtered_event(getattr(Dispatcher, name)))
        for name in ("span_enter", "span_exit", "span_drop"):
            setattr(Dispatcher, name, _emptied_span(getattr(Dispatcher, name)))
        for name in ("on_event_start", "on_event_end"):
            setattr(CallbackManager, name, _emptied_callback(getattr(CallbackManager, name)))
        _installed = True


def _filtered_event(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(method):

        async def aevent(self: Dispatcher, event: Any, **kwargs: Any) -> None:
            if not _active.get() or isinstance(event, _HARMLESS_EVENTS):
                await method(self, event, **kwargs)

        return aevent

    def event(self: Dispatcher, event: Any, **kwargs: Any) -> None:
        if not _active.get() or isinstance(event, _HARMLESS_EVENTS):
            method(self, event, **kwargs)

    return event


def _emptied_span(method: Callable[..., Any]) -> Callable[..., Any]:
    def span(self: Dispatcher, id_: str, bound_args: Any, *args: Any, **kwargs: Any) -> None:
        if _active.get():
            bound_args = _NO_ARGUMENTS
            if kwargs.get("result") is not None:
                kwargs["result"] = None
            if kwargs.get("err") is not None:
                # Parsers and validators quote what they could not read.
                kwargs["err"] = RuntimeError(type(kwargs["err"]).__name__)
        method(self, id_, bound_args, *args, **kwargs)

    return span


def _emptied_callback(method: Callable[..., Any]) -> Callable[..., Any]:
    def callback(self: CallbackManager, event_type: CBEventType, payload: Any = None, *args: Any, **kwargs: Any) -> Any:
        if _active.get() and event_type not in _HARMLESS_CALLBACKS:
            payload = None
        return method(self, event_type, payload, *args, **kwargs)

    return callback
