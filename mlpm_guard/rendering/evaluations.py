"""How evaluations look in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from mlpm_guard.rendering.console import cells, figure, figures, printable

if TYPE_CHECKING:
    from mlpm_guard.evaluation.benchmark import SuiteResult
    from mlpm_guard.evaluation.metrics import Metrics
    from mlpm_guard.evaluation.pipeline import Flow, PipelineEvaluation
    from mlpm_guard.evaluation.runner import Evaluation

_MAX_SOURCES = 50
_FIGURES = (
    "rows",
    "unsafe",
    "precision",
    "recall",
    "F1",
    "avg. precision",
    "recall @1% FP",
    "recall @5% FP",
    "FP rate",
    "errors",
)


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """Metrics overall and by source."""
    table = figures("source", *_FIGURES)
    shown = list(evaluation.sources.items())[:_MAX_SOURCES] if len(evaluation.sources) > 1 else []
    for source, metrics in shown:
        table.add_row(*_cells(printable(source), metrics))
    if shown:
        table.add_section()
    table.add_row(*_cells("all", evaluation.overall))
    hidden = len(evaluation.sources) - _MAX_SOURCES
    lines = [f"threshold {evaluation.threshold:.4f}, guard {printable(evaluation.bundle_id or 'not saved')}"]
    if hidden > 0:
        lines.append(f"{hidden} more sources are in the --json output")
    if evaluation.overall.errors:
        lines.append(f"{evaluation.overall.errors} rows could not be judged; they count as flagged")
    return Group(table, Text("\n".join(lines)))


def pipeline_table(evaluation: PipelineEvaluation) -> RenderableType:
    """What reaches the user with each chain, overall and by source."""
    table = figures("source", "chain", "harmful reaching", "share", "harmless lost", "share")
    shown = list(evaluation.sources.items())[:_MAX_SOURCES] if len(evaluation.sources) > 1 else []
    for source, flow in [*shown, ("all", evaluation.overall)]:
        for row in _chain_rows(printable(source), flow):
            table.add_row(*row)
        table.add_section()
    hidden = len(evaluation.sources) - _MAX_SOURCES
    lines = [
        f"input gate: threshold {evaluation.guard_threshold:.4f}, guard {printable(evaluation.guard_id or 'not saved')}",
        f"output moderation: threshold {evaluation.moderator_threshold:.4f}, guard "
        f"{printable(evaluation.moderator_id or 'not saved')}",
    ]
    if hidden > 0:
        lines.append(f"{hidden} more sources are in the --json output")
    if evaluation.overall.errors:
        lines.append(f"{evaluation.overall.errors} rows could not be judged; what happens to them follows on_error")
    return Group(table, Text("\n".join(lines)))


def suite_table(result: SuiteResult) -> RenderableType:
    """F1 and average precision on every set, with published F1 beside them, marked as published."""
    others = list(dict.fromkeys(name for each in result.sets.values() for name in each.published))
    columns = ("rows", "unsafe", "F1", "95 % interval", "AP", "recall", "FP rate")
    # A name would be wider than its figures; it stands below, with what the figures are.
    table = figures("set", *columns, *(f"[{number}]" for number in range(1, len(others) + 1)))
    for each in result.sets.values():
        ends = each.f1_interval
        measured = (each.metrics.average_precision, each.metrics.recall, each.metrics.false_positive_rate)
        row = cells(
            each.title,
            str(each.metrics.n),
            str(each.metrics.unsafe),
            f"{each.f1:.3f}",
            "-" if ends is None else f"{ends[0]:.3f} - {ends[1]:.3f}",
            *map(figure, measured),
            *(figure(each.published.get(name)) for name in others),
        )
        table.add_row(*row)
    lines = [f"threshold {result.threshold:.4f}, guard {printable(result.bundle_id or 'not saved')}"]
    if others:
        names = ", ".join(f"[{number}] {name}" for number, name in enumerate(others, 1))
        lines.append(f"published: F1 of {names}")
        lines.append(f"           as given in {result.source}, at thresholds of their own; not measured by this project")
    lines.append("where all rows are unsafe nothing can be flagged wrongly, so that F1 follows from the recall alone")
    lines += [f"not found: {key} ({' or '.join(names)})" for key, names in result.not_found.items()]
    if result.other_target:
        what = "answers" if result.target == "prompt" else "prompts"
        lines.append(f"left out, for a guard of {what}: {', '.join(result.other_target)}")
    return Group(table, Text("\n".join(lines)))


def _cells(source: str, metrics: Metrics) -> list[Text]:
    measured = (
        metrics.precision,
        metrics.recall,
        metrics.f1,
        metrics.average_precision,
        metrics.recall_at_fpr["0.01"],
        metrics.recall_at_fpr["0.05"],
        metrics.false_positive_rate,
    )
    return cells(source, str(metrics.n), str(metrics.unsafe), *map(figure, measured), str(metrics.errors))


def _chain_rows(source: str, flow: Flow) -> list[list[Text]]:
    rows = []
    for index, (chain, outcome) in enumerate(flow.chains.items()):
        row = cells(
            "" if index else source,
            chain.replace("_", " "),
            f"{outcome.harmful_reaching} of {flow.harmful}",
            figure(outcome.harmful_share),
            f"{outcome.harmless_lost} of {flow.harmless}",
            figure(outcome.harmless_share),
        )
        rows.append(row)
    return rows
