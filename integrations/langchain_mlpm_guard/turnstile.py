"""Many calls that begin at once, spread over turns of the event loop, so that everything else in it gets its turn too."""

from __future__ import annotations

import asyncio
import weakref

AT_ONCE = 16
"""Calls that may begin in one turn: LangChain's own work to begin one takes a tenth of a millisecond or more."""

_begun: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[int]] = weakref.WeakKeyDictionary()


async def turn() -> None:
    """Wait until this call may begin; at once, unless many begin together."""
    loop = asyncio.get_running_loop()
    begun = _begun.get(loop)
    if begun is None:
        begun = _begun[loop] = [0]
    while begun[0] >= AT_ONCE:
        await asyncio.sleep(0)
    if begun[0] == 0:
        loop.call_soon(_next_turn, begun)
    begun[0] += 1


def _next_turn(begun: list[int]) -> None:
    begun[0] = 0
