"""Sections of the report by group: sources, categories as labelled, categories as named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlpm_guard.evaluation.judged import Flags, Judged
from mlpm_guard.evaluation.page import Cell, Page
from mlpm_guard.evaluation.report.cells import number, share, short
from mlpm_guard.evaluation.report.figures import COLUMNS, figures, flags, ranking_precision

_MOST_GROUPS = 60


def sources(page: Page, results: Sequence[Judged]) -> None:
    """Figures of every source."""
    rows = results[0].rows
    groups, hidden = _by_name(rows.sources)
    if len(groups) + hidden < 2:
        return
    page.heading("Sources")
    several = len(results) > 1
    lines: list[list[Cell]] = []
    for name, which in groups:
        counts = [str(int(which.sum())), str(int(rows.unsafe[which].sum()))]
        for each in results:
            # A source's name and counts stand once, before the first guard.
            first = each is results[0]
            lines.append(
                [
                    short(name) if first else "",
                    *([short(each.name)] if several else []),
                    *(counts if first else ("", "")),
                    *figures(each, which),
                ]
            )
    page.table(("source", *(["guard"] if several else []), "rows", "unsafe", *COLUMNS), lines, text=(0, 1) if several else (0,))
    _more(page, hidden)


def categories(page: Page, results: Sequence[Judged]) -> None:
    """Recall and false positives by labelled category; its rows are mostly of one class, where nothing else is defined."""
    rows = results[0].rows
    groups, hidden = _by_name(rows.categories)
    if not groups:
        return
    page.heading("Categories as labelled")
    lines: list[list[Cell]] = []
    for name, which in groups:
        unsafe, safe = which & rows.unsafe, which & ~rows.unsafe
        line: list[Cell] = [short(name), str(int(which.sum())), str(int(unsafe.sum()))]
        for each in results:
            flagged = flags(each)
            line += [share(int(flagged[part].sum()), int(part.sum())) for part in (unsafe, safe)]
        lines.append(line)
    behind = [f", {short(each.name)}" if len(results) > 1 else "" for each in results]
    titles = [title + name for name in behind for title in ("recall", "false positives")]
    page.table(("category", "rows", "unsafe", *titles), lines)
    _more(page, hidden)


def _by_name(column: npt.NDArray[np.object_]) -> tuple[list[tuple[str, Flags]], int]:
    """The rows of every name in a column, and how many further names there are."""
    names = sorted({str(name) for name in column.tolist() if name is not None})
    positions = {name: position for position, name in enumerate(names)}
    codes = np.array([-1 if name is None else positions[str(name)] for name in column.tolist()])
    return [(name, codes == positions[name]) for name in names[:_MOST_GROUPS]], max(0, len(names) - _MOST_GROUPS)


def _more(page: Page, hidden: int) -> None:
    if hidden:
        page.paragraph(f"{hidden} more are not shown.", note=True)


def named_categories(page: Page, results: Sequence[Judged]) -> None:
    """How well verdicts name categories, where they do."""
    rows = results[0].rows
    for each in results:
        labelled = sorted({str(name) for name in rows.categories.tolist() if name is not None} & set(each.categories))
        if not labelled:
            continue
        page.heading(f"Categories as named by {short(each.name)}")
        page.paragraph(
            "Of the unsafe rows of a category: how many verdicts name it, and how well its probability ranks its rows above "
            "all other rows, and above the other unsafe rows.",
            note=True,
        )
        lines: list[list[Cell]] = []
        for name in labelled:
            truth = (rows.categories == name) & rows.unsafe
            if not truth.any():
                continue
            probability = each.category_probabilities[:, each.categories.index(name)]
            known = ~np.isnan(probability)
            right = int((truth & (each.named == name)).sum())
            lines.append(
                [
                    short(name),
                    str(int(truth.sum())),
                    share(right, int(truth.sum())),
                    number(ranking_precision(truth[known], probability[known])),
                    number(ranking_precision(truth[known & rows.unsafe], probability[known & rows.unsafe])),
                ]
            )
        page.table(("category", "unsafe rows", "named", "AP over all", "AP over unsafe"), lines)
