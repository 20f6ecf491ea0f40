"""Names and figures on a terminal. Nothing here shows text that was judged unless it is handed over to be shown."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """One line without control characters, so that a name from a file can neither break a line nor steer a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def show(renderable: RenderableType) -> None:
    """Print to standard output; a pipe gets the full width, so that no figure is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(renderable, soft_wrap=False, highlight=False)


def figures(first: str, *others: str) -> Table:
    """A table with a column of names and columns of figures."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def cells(*values: str) -> list[Text]:
    """Cells that show what they hold, whatever it looks like to rich."""
    return [Text(value) for value in values]


def figure(value: float | None) -> str:
    """Three decimals, or a dash where there is no figure."""
    return "-" if value is None else f"{value:.3f}"
