"""The evaluation report: one HTML file with curves, tables and mistakes of one or more guards on the same rows.

Shows ids, sources and categories of rows; their text only where it was kept on purpose (`collect(keep_text=True)`).
"""

from __future__ import annotations

from collections.abc import Sequence

from mlpm_guard.errors import ConfigurationError
from mlpm_guard.evaluation import plots
from mlpm_guard.evaluation.judged import Judged
from mlpm_guard.evaluation.page import Page
from mlpm_guard.evaluation.report import curves, details, groups, overview
from mlpm_guard.evaluation.report.cells import short
from mlpm_guard.evaluation.report.saving import check_writable, save_report

__all__ = ["check_writable", "report", "save_report"]


def report(results: Sequence[Judged], *, files: Sequence[str] = (), show_text: bool = False) -> str:
    """The report as an HTML document that needs nothing else.

    Args:
        results: what `collect` gave: one or more guards on the same rows.
        files: names of the files that the rows are from.
        show_text: show the text of mistakes, where it was kept.

    Raises:
        ConfigurationError: there are no results, they are of different rows, or matplotlib is not installed.
    """
    if not results:
        raise ConfigurationError("a report needs the results of at least one guard")
    if any(each.rows is not results[0].rows for each in results):
        raise ConfigurationError("these results are of different rows; collect them together")
    plots.require()
    page = Page(f"Guard evaluation: {', '.join(short(each.name) for each in results)}")
    overview.header(page, results, files)
    overview.overall(page, results)
    if len(results) > 1:
        overview.differences(page, results)
    curves.ranking(page, results)
    curves.distributions(page, results)
    curves.reliability(page, results)
    curves.layers(page, results)
    groups.sources(page, results)
    groups.categories(page, results)
    groups.named_categories(page, results)
    details.cost(page, results)
    details.mistakes(page, results, show_text)
    return page.html()
