"""Running something inner so that nothing of it is seen: no callback, tracer or stream of an outer run hears it.

What an inner model says is raw. It may be recorded only after it was judged, by the run around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Self, TypeAlias, TypeVar

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as tracing

T = TypeVar("T")
_END: Any = object()
_Write: TypeAlias = tuple[BaseCache, str, str, RETURN_VAL_TYPE]
_held: ContextVar[list[_Write] | None] = ContextVar("mlpm_guard_held", default=None)


class Silence:
    """A context in which one inner call runs, step by step. One per call.

    Args:
        mute: whether callbacks and tracers of outer runs are cut off.
    """

    def __init__(self, *, mute: bool = True) -> None:
        self._context: Context = copy_context()
        self._mute = mute
        self._writes: list[_Write] = []
        self._context.run(self._enter)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in it."""
        return self._context.run(self._traced, function)

    async def arun(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await what a function returns in it."""

        async def work() -> T:
            if not self._mute:
                return await function()
            with _untraced():
                return await function()

        return await asyncio.create_task(work(), context=self._context)

    def iterate(self, make: Callable[[], Iterator[T]]) -> Iterator[T]:
        """Iterate in it. Closing the iterator closes the inner one."""
        source = self.run(make)
        try:
            while (item := self.run(lambda: next(source, _END))) is not _END:
                yield item
        finally:
            close = getattr(source, "close", None)
            if callable(close):
                self.run(close)

    async def aiterate(self, make: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """`iterate` for event loops."""
        source = self.run(make)

        async def step() -> T:
            return await anext(source, _END)

        try:
            while (item := await self.arun(step)) is not _END:
                yield item
        finally:
            close = getattr(source, "aclose", None)
            if callable(close):
                await self.arun(close)

    def release(self) -> None:
        """Give LLM caches what the inner call wrote: its answer was let through."""
        for cache, prompt, key, value in self._writes:
            cache.update(prompt, key, value)
        self._writes.clear()

    async def arelease(self) -> None:
        """`release` for event loops."""
        for cache, prompt, key, value in self._writes:
            await cache.aupdate(prompt, key, value)
        self._writes.clear()

    def _enter(self) -> None:
        hold_cache()
        _held.set(self._writes)
        if not self._mute:
            return
        var_child_runnable_config.set(None)
        tracing.tracing_v2_callback_var.set(None)
        for variable, *_ in getattr(tracing, "_configure_hooks", ()):
            variable.set(None)

    def _traced(self, function: Callable[[], T]) -> T:
        if not self._mute:
            return function()
        with _untraced():
            return function()


class HeldCache(BaseCache):
    """An LLM cache that takes what a guarded chain's models write only once their answer was let through.

    It stands around the process's cache from the first guarded call on, and is transparent otherwise.
    """

    def __init__(self, cache: BaseCache) -> None:
        self.cache = cache

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """See `BaseCache`."""
        return self.cache.lookup(prompt, llm_string)

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """See `BaseCache`."""
        return await self.cache.alookup(prompt, llm_string)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """See `BaseCache`; waits for the verdict inside a guarded call."""
        if (held := _held.get()) is None:
            self.cache.update(prompt, llm_string, return_val)
        else:
            held.append((self.cache, prompt, llm_string, return_val))

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """See `update`."""
        if (held := _held.get()) is None:
            await self.cache.aupdate(prompt, llm_string, return_val)
        else:
            held.append((self.cache, prompt, llm_string, return_val))

    def clear(self, **kwargs: Any) -> None:
        """See `BaseCache`."""
        self.cache.clear(**kwargs)

    async def aclear(self, **kwargs: Any) -> None:
        """See `BaseCache`."""
        await self.cache.aclear(**kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "cache":
            raise AttributeError(name)
        return getattr(self.cache, name)


class Holding:
    """Holds what is written to LLM caches in a block of code, until it is known whether it may be kept."""

    def __init__(self) -> None:
        self._writes: list[_Write] = []

    def __enter__(self) -> Self:
        hold_cache()
        self._outer = _held.get()
        self._token = _held.set(self._writes)
        return self

    def __exit__(self, *_: object) -> None:
        _held.reset(self._token)

    def release(self) -> None:
        """Write it; inside a guarded chain that is up to the chain."""
        for write in self._let_go():
            write[0].update(*write[1:])

    async def arelease(self) -> None:
        """`release` for event loops."""
        for write in self._let_go():
            await write[0].aupdate(*write[1:])

    def _let_go(self) -> list[_Write]:
        if self._outer is None:
            return self._writes
        self._outer += self._writes
        return []


def hold_cache() -> None:
    """Put a `HeldCache` around the process's LLM cache, where there is one."""
    cache = get_llm_cache()
    if cache is not None and not isinstance(cache, HeldCache):
        set_llm_cache(HeldCache(cache))


def _untraced() -> Any:
    from langsmith.run_helpers import tracing_context

    return tracing_context(enabled=False, parent=False)
