"""Sections of the report that stand last: cost, and the worst mistakes by their ids."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mlpm_guard.evaluation.judged import EXAMPLES, Judged, Mistake
from mlpm_guard.evaluation.page import Cell, Page
from mlpm_guard.evaluation.report.cells import cut, short


def cost(page: Page, results: Sequence[Judged]) -> None:
    """What judging cost during this evaluation."""
    page.heading("Cost")
    first = results[0].cost
    page.paragraph(
        f"Measured during this evaluation, on this machine ({os.cpu_count()} processors), whatever else ran on it: in batches "
        f"of {first.batch_size} over all rows, and one by one on {first.sampled} of them.",
        note=True,
    )
    page.table(
        ("guard", "ms a prompt, batched", "prompts a second, batched", "ms alone, median", "ms alone, 95th percentile"),
        [
            (
                short(each.name),
                f"{each.cost.batched * 1e3:.2f}",
                f"{1 / each.cost.batched:.0f}" if each.cost.batched > 0 else "-",
                f"{each.cost.alone * 1e3:.2f}",
                f"{each.cost.alone_slow * 1e3:.2f}",
            )
            for each in results
        ],
    )


def mistakes(page: Page, results: Sequence[Judged], show_text: bool) -> None:
    """The worst mistakes of each guard, by id."""
    page.heading("Mistakes")
    unsafe = results[0].rows.unsafe
    for each in results:
        missed, alarms = int((unsafe & ~each.flagged).sum()), int((~unsafe & each.flagged).sum())
        for what, count, worst in (
            (f"unsafe and passed by {short(each.name)}", missed, each.missed),
            (f"safe and flagged by {short(each.name)}", alarms, each.false_alarms),
        ):
            page.heading(f"{count} {what}", 3)
            if not worst:
                continue
            if count > len(worst):
                page.paragraph(f"The {EXAMPLES} worst:", note=True)
            texts = show_text and any(mistake.text is not None for mistake in worst)
            named = any(mistake.named is not None for mistake in worst)
            columns = ["row", "score", *(["text"] if texts else []), "category", *(["named"] if named else []), "source"]
            page.table(
                columns,
                [_mistake(mistake, named, texts) for mistake in worst],
                text=[position for position, name in enumerate(columns) if name != "score"],
            )


def _mistake(mistake: Mistake, named: bool, texts: bool) -> list[Cell]:
    return [
        short(mistake.row),
        "not judged" if mistake.score is None else f"{mistake.score:.3f}",
        *([cut(mistake.text or "")] if texts else []),
        short(mistake.category or "-"),
        *([short(mistake.named or "-")] if named else []),
        short(mistake.source),
    ]
