"""What all benchmarks share: interleaved timing, figures with targets, the report.

Machines are noisy, so two things are only ever compared inside one process, in turns (A B, B A, A B, ...), and what counts is
the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numpy", "transformers", "tokenizers")


@dataclass
class Figure:
    """One row of a report.

    Attributes:
        name: what was measured.
        median: the figure itself.
        minimum: lowest of all runs.
        maximum: highest of all runs.
        runs: how many runs (or rows, for a share).
        unit: "s", "ms", "ratio", ...
        target: the bound, or None for a figure that only informs.
        at_least: whether the figure must not be below the target; otherwise it must not be above it.
        passed: None without a target.
    """

    name: str
    median: float
    minimum: float
    maximum: float
    runs: int
    unit: str
    target: float | None = None
    at_least: bool = False
    passed: bool | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            self.passed = self.median >= self.target if self.at_least else self.median <= self.target


def figure(
    name: str, values: Sequence[float], unit: str, *, at_most: float | None = None, at_least: float | None = None
) -> Figure:
    """A figure from the values of several runs."""
    target = at_most if at_most is not None else at_least
    runs = len(values)
    return Figure(name, statistics.median(values), min(values), max(values), runs, unit, target, at_least is not None)


def share(name: str, value: float, rows: int, *, at_most: float | None = None, at_least: float | None = None) -> Figure:
    """A figure from one computation over `rows` rows."""
    target = at_most if at_most is not None else at_least
    return Figure(name, value, value, value, rows, "share", target, at_least is not None)


class Timing(NamedTuple):
    """Seconds that one call took: on the wall, and of all cores together (time in which other programs ran left out)."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Timing:
    """Time of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def interleaved(pairs: Sequence[tuple[Callable[[], object], Callable[[], object]]]) -> tuple[list[Timing], list[Timing]]:
    """Times of the first and of the second callable of every pair, run in turns; every other pair runs its second first."""
    first: list[Timing] = []
    second: list[Timing] = []
    for index, (one, two) in enumerate(pairs):
        if index % 2:
            second.append(timed(two))
            first.append(timed(one))
        else:
            first.append(timed(one))
            second.append(timed(two))
    return first, second


def ratios(numerators: Sequence[Timing], denominators: Sequence[Timing]) -> list[float]:
    """Ratios of the wall times of neighbours."""
    return [one.wall / two.wall for one, two in zip(numerators, denominators, strict=True)]


def cpu_ratios(numerators: Sequence[Timing], denominators: Sequence[Timing]) -> list[float]:
    """Ratios of the processor times of neighbours: steadier than `ratios` while other programs run."""
    return [one.cpu / two.cpu for one, two in zip(numerators, denominators, strict=True)]


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--quick`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs and smaller inputs, for a look; not for the record")
    return parser


def machine() -> dict[str, Any]:
    """What the figures depend on: no names, no paths."""
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def report(name: str, figures: Sequence[Figure], *, quick: bool, **details: Any) -> int:
    """Print a table, write `results/<name>.json` (quick runs: `results/<name>-quick.json`), and return the exit status."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", *(_right(each) for each in ("median", "min", "max", "runs", "target", "")), title=name)
    for each in figures:
        bound = "" if each.target is None else f"{'>=' if each.at_least else '<='} {each.target:g}"
        verdict = {None: "", True: "[green]met", False: "[red]missed"}[each.passed]
        values = [_shown(value, each.unit) for value in (each.median, each.minimum, each.maximum)]
        table.add_row(each.name, *values, str(each.runs), bound, verdict)
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    for key, value in details.items():
        console.print(f"{key}: {value}", highlight=False)
    RESULTS.mkdir(exist_ok=True)
    passed = all(each.passed is not False for each in figures)
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "quick": quick,
        "passed": passed,
        "machine": machine(),
        "details": details,
        "figures": [asdict(each) for each in figures],
    }
    path = RESULTS / f"{name}{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


def _right(header: str) -> Any:
    from rich.table import Column

    return Column(header, justify="right", no_wrap=True)


def _shown(value: float, unit: str) -> str:
    return f"{value:.3f}" if unit in {"ratio", "share"} else f"{value:.3g} {unit}"
