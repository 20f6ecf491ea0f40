"""How the command line shows verdicts, bundles and evaluations. Shows numbers and names, never text that was judged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mlpm_guard.bundle import Bundle
    from mlpm_guard.evaluation.benchmark import SuiteResult
    from mlpm_guard.evaluation.metrics import Metrics
    from mlpm_guard.evaluation.pipeline import Flow, PipelineEvaluation
    from mlpm_guard.evaluation.runner import Evaluation
    from mlpm_guard.verdict import Verdict

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


def printable(text: str) -> str:
    """One line without control characters, so that a name from a file can neither break a line nor steer a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def verdict_panel(verdict: Verdict) -> RenderableType:
    """The judgement, its score against the threshold, and what every layer adds."""
    if verdict.error is not None:
        return Panel(
            Text(f"could not be judged: {verdict.error}; action: {verdict.action.value}"),
            title="not judged",
            border_style="yellow",
            expand=False,
        )
    assert verdict.score is not None
    assert verdict.intercept is not None
    sign = ">=" if verdict.flagged else "<"
    lines = [f"score {verdict.score:.4f} {sign} threshold {verdict.threshold:.4f}; action: {verdict.action.value}"]
    if verdict.category is not None:
        lines.append(f"category: {printable(verdict.category)}")
    if verdict.window is not None:
        where = verdict.window
        lines.append(f"decided by: {where.view}, {where.form}, {where.kind} {where.index + 1} of {where.count}")
    if verdict.not_judged:
        lines.append(f"not judged: {', '.join(verdict.not_judged)}")
    if verdict.bundle_id is not None:
        lines.append(f"guard: {printable(verdict.bundle_id)}")
    table = _table("layer", "probability", "weight", "contribution (nats)")
    for layer in verdict.layers:
        table.add_row(str(layer.layer), f"{layer.probability:.4f}", f"{layer.weight:+.3f}", f"{layer.contribution:+.3f}")
    table.add_row("intercept", "", "", f"{verdict.intercept:+.3f}")
    table.add_row("log-odds", "", "", f"{verdict.log_odds:+.3f}")
    title, style = ("FLAGGED", "red") if verdict.flagged else ("allowed", "green")
    return Panel(Group(Text("\n".join(lines)), table), title=title, border_style=style, expand=False)


def bundle_report(bundle: Bundle) -> RenderableType:
    """What a bundle is bound to, what it uses, and its files."""
    manifest = bundle.manifest
    encoder = manifest.encoder
    grid = Table.grid(padding=(0, 2))
    model = encoder.model or "a model that was passed in loaded"
    if encoder.revision:
        model += f" at {encoder.revision}"
    for name, value in (
        ("bundle", bundle.bundle_id),
        ("folder", str(bundle.path)),
        ("schema", f"{manifest.schema_version}, written by mlpm-guard {manifest.library_version}"),
        ("judges", f"the {manifest.target}"),
        ("threshold", f"{manifest.threshold:.4f}"),
        ("encoder", model),
        ("architecture", f"{encoder.architecture}, {encoder.pooling} pooling, {encoder.dim} numbers, {encoder.dtype}"),
        ("weights", encoder.weights),
        ("layers used", used_layers(bundle)),
        ("window", f"{manifest.window} tokens, fragment margin {manifest.fragment_margin:g}"),
        ("examples", ", ".join(f"{count} {label}" for label, count in sorted(manifest.examples.items()))),
    ):
        grid.add_row(Text(name, style="bold"), Text(printable(value)))
    for name, entry in sorted(manifest.files.items()):
        grid.add_row(Text("file", style="bold"), Text(printable(f"{name}, {entry.bytes} bytes, SHA-256 {entry.sha256}")))
    if manifest.notes:
        grid.add_row(Text("notes", style="bold"), Text(json.dumps(manifest.notes, indent=1)))
    return grid


def bundle_json(bundle: Bundle) -> str:
    """The manifest with the bundle's name, folder and used layers, as JSON."""
    layers = [bundle.manifest.encoder.layers[position] for position in bundle.scorer.positions]
    return json.dumps(
        {
            "bundle_id": bundle.bundle_id,
            "path": str(bundle.path),
            "layers_used": layers,
            **bundle.manifest.model_dump(mode="json"),
        }
    )


def used_layers(bundle: Bundle) -> str:
    """Layers that scoring needs, out of those that the encoder has."""
    known = bundle.manifest.encoder.layers
    return f"{', '.join(str(known[position]) for position in bundle.scorer.positions)} (of {len(known)})"


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """Metrics overall and by source."""
    table = _table("source", *_FIGURES)
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
    table = _table("source", "chain", "harmful reaching", "share", "harmless lost", "share")
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
    table = _table("set", *columns, *(f"[{number}]" for number in range(1, len(others) + 1)))
    for each in result.sets.values():
        ends = each.f1_interval
        figures = (each.metrics.average_precision, each.metrics.recall, each.metrics.false_positive_rate)
        cells = (
            each.title,
            str(each.metrics.n),
            str(each.metrics.unsafe),
            f"{each.f1:.3f}",
            "-" if ends is None else f"{ends[0]:.3f} - {ends[1]:.3f}",
            *(_figure(figure) for figure in figures),
            *(_figure(each.published.get(name)) for name in others),
        )
        table.add_row(*(Text(cell) for cell in cells))
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


def show(renderable: RenderableType) -> None:
    """Print to standard output; a pipe gets the full width, so that no figure is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(renderable, soft_wrap=False, highlight=False)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _cells(source: str, metrics: Metrics) -> list[Text]:
    figures = (
        metrics.precision,
        metrics.recall,
        metrics.f1,
        metrics.average_precision,
        metrics.recall_at_fpr["0.01"],
        metrics.recall_at_fpr["0.05"],
        metrics.false_positive_rate,
    )
    shown = [_figure(figure) for figure in figures]
    return [Text(cell) for cell in (source, str(metrics.n), str(metrics.unsafe), *shown, str(metrics.errors))]


def _figure(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"


def _chain_rows(source: str, flow: Flow) -> list[list[Text]]:
    rows = []
    for index, (chain, outcome) in enumerate(flow.chains.items()):
        shares = ["-" if share is None else f"{share:.3f}" for share in (outcome.harmful_share, outcome.harmless_share)]
        cells = (
            "" if index else source,
            chain.replace("_", " "),
            f"{outcome.harmful_reaching} of {flow.harmful}",
            shares[0],
            f"{outcome.harmless_lost} of {flow.harmless}",
            shares[1],
        )
        rows.append([Text(cell) for cell in cells])
    return rows
