"""A bar on standard error, by bytes read, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mlpm_guard.datafiles import DataFile


@contextmanager
def progress(what: str, data: Sequence[DataFile]) -> Iterator[Callable[[int], None]]:
    """A bar over the files. Yields a function to call with the rows done so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]} rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=sum(file.size for file in data) or None, rows=0)
        yield lambda rows: _advance(bar, task, data, rows)


@contextmanager
def counted(what: str, data: Sequence[DataFile]) -> Iterator[Callable[[int], None]]:
    """`progress` for a run that tells how many rows it did since it last told."""
    with progress(what, data) as advance:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done)

        yield count


def _advance(bar: Progress, task: TaskID, data: Sequence[DataFile], rows: int) -> None:
    bar.update(task, completed=sum(file.position for file in data), rows=rows)
