"""What a gate costs in a LangChain chain, and what 200 concurrent calls of one gate cost the scorer and the event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from _bench import figure, options, report

CONCURRENT = 200


class ConstantGuard:
    """Answers at once, so that what is left is the gate's own cost."""

    def __init__(self) -> None:
        from mlpm_guard.testing import MockGuard

        self._verdict = MockGuard().check("hello")

    def check(self, _: Any) -> Any:
        """The same verdict."""
        return self._verdict

    async def acheck(self, _: Any) -> Any:
        """The same verdict."""
        return self._verdict


def chains() -> tuple[Any, Any]:
    """A chain without and with a gate."""
    from langchain_core.runnables import RunnableLambda
    from langchain_mlpm_guard import PromptGate

    async def same(value: str) -> str:
        return value

    one = RunnableLambda(lambda value: value, afunc=same)
    return one | one, one | PromptGate(guard=ConstantGuard()) | one


def cost_sync(plain: Any, gated: Any, rounds: int, calls: int) -> list[float]:
    """Milliseconds that the gate adds to a call, one value a round."""
    return [1e3 * (_seconds(gated, calls) - _seconds(plain, calls)) / calls for _ in range(rounds)]


def _seconds(chain: Any, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        chain.invoke("hello")
    return time.perf_counter() - start


async def cost_async(plain: Any, gated: Any, rounds: int, calls: int) -> list[float]:
    """`cost_sync` in an event loop."""
    return [1e3 * (await _aseconds(gated, calls) - await _aseconds(plain, calls)) / calls for _ in range(rounds)]


async def _aseconds(chain: Any, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        await chain.ainvoke("hello")
    return time.perf_counter() - start


class Counting:
    """An encoder that counts its forward passes."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, conversations: Sequence[Any], **arguments: Any) -> Any:
        """States, and one pass more."""
        self.passes += 1
        return self._encoder.encode(conversations, **arguments)


class Load(NamedTuple):
    """One value a round of concurrent calls: scorer passes per call, and the event loop's longest stall in ms."""

    shares: list[float]
    stalls: list[float]
    stalls_without: list[float]


async def load(rounds: int) -> Load:
    """Concurrent calls of one gate, in turns with as many of a step that does nothing: LangChain's own part of the stall."""
    from langchain_mlpm_guard import PromptGate

    from mlpm_guard import Guard

    guard = Guard.from_pretrained().load()
    gate = PromptGate(guard=guard)
    guard._encoder = counting = Counting(guard.encoder)
    nothing, _ = chains()
    found = Load([], [], [])
    for index in range(rounds + 1):
        counting.passes = 0
        stall, stall_without = await _stall(gate, index), await _stall(nothing.first, index)
        if index:  # the first round warms up
            found.shares.append(counting.passes / CONCURRENT)
            found.stalls.append(stall)
            found.stalls_without.append(stall_without)
    return found


async def _stall(step: Any, index: int) -> float:
    longest, last = 0.0, time.perf_counter()
    task = asyncio.gather(*(step.ainvoke(f"What is {index} times {item}?") for item in range(CONCURRENT)))
    while not task.done():
        await asyncio.sleep(0)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    await task
    return 1e3 * longest


def main() -> int:
    """Measure and report."""
    arguments = options(__doc__).parse_args()
    rounds, calls = (5, 50) if arguments.quick else (30, 300)
    plain, gated = chains()
    cost_sync(plain, gated, 1, calls)
    sync = cost_sync(plain, gated, rounds, calls)
    asynchronous = asyncio.run(cost_async(plain, gated, rounds, calls))
    under_load = asyncio.run(load(2 if arguments.quick else 20))
    figures = [
        figure("PromptGate in a chain, guard mocked: added to invoke", sync, "ms", at_most=0.3),
        figure("PromptGate in a chain, guard mocked: added to ainvoke", asynchronous, "ms", at_most=0.3),
        figure(f"{CONCURRENT} concurrent ainvoke: scorer passes per call", under_load.shares, "ratio", at_most=0.2),
        figure(f"{CONCURRENT} concurrent ainvoke: longest stall of the event loop", under_load.stalls, "ms", at_most=20.0),
        figure(f"{CONCURRENT} concurrent ainvoke of a RunnableLambda: longest stall", under_load.stalls_without, "ms"),
    ]
    return report("langchain", figures, quick=arguments.quick, langchain_core=version("langchain-core"))


if __name__ == "__main__":
    sys.exit(main())
