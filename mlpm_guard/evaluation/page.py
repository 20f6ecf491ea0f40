"""Pieces of a self-contained HTML page: text is escaped here and nowhere else, and nothing is fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple, TypeAlias

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f5f6f8; --ink: #1c2430; --faint: #6b7482; --rule: #d9dde3;
  --safe: #1f77b4; --unsafe: #c8452b; --series-0: #2563a8; --series-1: #c2570c; --series-2: #2f7d4f; --series-3: #8a3fa0;
  --series-4: #8c6d1f; --series-5: #b02a62; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --panel: #1b212a; --ink: #e4e8ee; --faint: #98a2b1;
  --rule: #343c48; --safe: #6cb4ee; --unsafe: #ff8a6b; --series-0: #7db3f2; --series-1: #ffa657; --series-2: #6fce97;
  --series-3: #d59bea; --series-4: #e0c163; --series-5: #ff8fb8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 15px; margin: 20px 0 6px; overflow-wrap: anywhere; }
p { margin: 6px 0 10px; max-width: 75ch; overflow-wrap: anywhere; }
.note { color: var(--faint); font-size: 13.5px; }
.wide { overflow-x: auto; margin: 8px 0 16px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; background: var(--panel); white-space: normal; vertical-align: bottom; }
th.text, td.text { text-align: left; }
td.words { white-space: normal; overflow-wrap: anywhere; min-width: 14em; max-width: 34em; }
td.long { white-space: pre-wrap; min-width: 20em; }
td small { display: block; color: var(--faint); font-size: 12px; }
.plots { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
figure { margin: 0; padding: 12px; background: var(--panel); border-radius: 8px; min-width: 0; max-width: 640px; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 6px; overflow-wrap: anywhere; }
figcaption span { display: block; font-weight: 400; color: var(--faint); font-size: 13px; }
.plot { display: block; width: 100%; height: auto; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
@media (max-width: 640px) { main { padding: 16px 10px 48px; } table { font-size: 13px; } th, td { padding: 4px 6px; }
  td.text { white-space: normal; overflow-wrap: break-word; max-width: 10em; } td.words { min-width: 9em; max-width: 16em; }
  td.long { min-width: 16em; white-space: pre-wrap; } td small { font-size: 11px; } }
@media print { main { max-width: none; } figure { break-inside: avoid; } }
"""


_WORDS, _LONG = 28, 80


class Value(NamedTuple):
    """A figure with what stands small below it."""

    figure: str
    below: str | None = None


Cell: TypeAlias = "str | Value"


@dataclass
class Page:
    """A page that grows from top to bottom.

    Args:
        title: its title.
    """

    title: str
    _parts: list[str] = field(default_factory=list, init=False, repr=False)

    def heading(self, text: str, level: int = 2) -> None:
        """A heading."""
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def paragraph(self, text: str, *, note: bool = False) -> None:
        """A paragraph; a note is smaller."""
        kind = ' class="note"' if note else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, text: Sequence[int] = (0,)) -> None:
        """A table, which scrolls on its own where the window is narrow.

        Args:
            columns: their headings.
            rows: cells, as many in each row as there are columns.
            text: positions of the columns that hold words rather than figures.
        """
        head = "".join(f"<th{_kind(position in text)}>{escape(name)}</th>" for position, name in enumerate(columns))
        body = "".join(
            f"<tr>{''.join(_cell(cell, position in text) for position, cell in enumerate(row))}</tr>\n" for row in rows
        )
        self._parts.append(
            f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        )

    def plots(self, plots: Sequence[tuple[str, str, str]]) -> None:
        """Plots side by side, each a caption, a line below it, and SVG (which is not escaped)."""
        figures = "".join(
            f"<figure><figcaption>{escape(caption)}<span>{escape(below)}</span></figcaption>{svg}</figure>\n"
            for caption, below, svg in plots
        )
        self._parts.append(f'<div class="plots">{figures}</div>')

    def html(self) -> str:
        """The whole document."""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # Nothing may be fetched and nothing may run, whatever a name in the data holds.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{escape(self.title)}</h1>\n" + "\n".join(self._parts) + "\n</main>\n</body>\n</html>\n"
        )


def _kind(text: bool) -> str:
    return ' class="text"' if text else ""


def _cell(cell: Cell, text: bool) -> str:
    value = cell if isinstance(cell, Value) else Value(cell)
    below = f"<small>{escape(value.below)}</small>" if value.below else ""
    kind = _kind(text)
    if text and ("\n" in value.figure or len(value.figure) > _LONG):
        kind = ' class="text words long"'
    elif text and len(value.figure) > _WORDS:
        kind = ' class="text words"'
    figure = escape(value.figure)
    # Names hold no spaces; they break behind their separators.
    figure = re.sub(r"([_/])(?=\w)", r"\1<wbr>", figure) if text else figure
    return f"<td{kind}>{figure}{below}</td>"
