"""Sections of the report that stand first: what was measured, overall figures, differences between guards."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from mlpm_guard.evaluation.intervals import CONFIDENCE, NAMES, REPEATS, SEED, percentile, replicates
from mlpm_guard.evaluation.judged import Judged
from mlpm_guard.evaluation.page import Cell, Page
from mlpm_guard.evaluation.report.cells import short, signed
from mlpm_guard.evaluation.report.figures import COLUMNS, both, figures, flags


def header(page: Page, results: Sequence[Judged], files: Sequence[str]) -> None:
    """What was measured, and how to read it."""
    from mlpm_guard import __version__

    rows = results[0].rows
    unsafe = int(rows.unsafe.sum())
    data = f" From {', '.join(short(name) for name in files)}." if files else ""
    page.paragraph(f"{len(rows.unsafe)} rows, {unsafe} labelled unsafe and {len(rows.unsafe) - unsafe} safe.{data}")
    page.table(
        ("guard", "bundle", "encoder", "judges", "threshold", "not judged"),
        [
            (
                short(each.name),
                short(each.bundle_id or "not saved"),
                short(each.encoder),
                each.target,
                f"{each.threshold:.4f}",
                str(int(np.isnan(each.scores).sum())),
            )
            for each in results
        ],
        text=(0, 1, 2, 3),
    )
    page.paragraph(
        f"Written by mlpm-guard {__version__} on {datetime.now(UTC):%Y-%m-%d}. Rows that could not be judged count as flagged, "
        f"and rank above all others. Small figures are {CONFIDENCE:.0%} confidence intervals: exact ones (Clopper-Pearson) for "
        f"recall and false positives, the percentile bootstrap for the rest ({REPEATS} resamples within each class, seed "
        f"{SEED}). They cover chance in the choice of rows, not a change of traffic.",
        note=True,
    )


def overall(page: Page, results: Sequence[Judged]) -> None:
    """Figures over all rows."""
    page.heading("Overall")
    page.table(("guard", *COLUMNS), [(short(each.name), *figures(each)) for each in results])


def differences(page: Page, results: Sequence[Judged]) -> None:
    """How the other guards differ from the first, on the same resamples of the rows."""
    first = results[0]
    unsafe = first.rows.unsafe
    if not both(unsafe):
        return
    page.heading(f"Difference from {short(first.name)}")
    page.paragraph(
        "The same rows are drawn for both guards, so an interval that does not hold 0 is no chance of the rows.", note=True
    )
    base = replicates(unsafe, first.ranks, flags(first))
    base_metrics = first.metrics()
    rows: list[list[Cell]] = []
    for each in results[1:]:
        drawn, metrics = replicates(unsafe, each.ranks, flags(each)), each.metrics()
        cells: list[Cell] = [short(each.name)]
        for name in NAMES:
            one, other = metrics.figure(name), base_metrics.figure(name)
            change = None if one is None or other is None else one - other
            cells.append(signed(change, percentile(drawn[name] - base[name])))
        changed = int((each.flagged != first.flagged).sum())
        rows.append([*cells, f"{changed} of {len(unsafe)}"])
    page.table(("guard", *COLUMNS, "judged differently"), rows)
