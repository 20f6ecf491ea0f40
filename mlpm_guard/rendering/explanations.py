"""How an explanation looks in the terminal: bars of what every layer adds, judged pieces, distances, categories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from mlpm_guard.rendering.console import cells, figures, printable
from mlpm_guard.rendering.verdicts import verdict_heading, verdict_panel

if TYPE_CHECKING:
    from mlpm_guard.explanation import CategoryEvidence, Explanation, PrototypeDistance, WindowExplanation
    from mlpm_guard.verdict import Verdict

_MOST = 15
_HALF, _WHOLE = 18, 28
_AGAINST, _FOR, _NEUTRAL = "green", "red", "cyan"


def explanation_report(explanation: Explanation) -> RenderableType:
    """Everything behind a verdict. A verdict without a score, or one by a rule, has nothing more to it than the verdict."""
    verdict = explanation.verdict
    if verdict.error is not None or verdict.rule is not None:
        return verdict_panel(verdict)
    parts: list[RenderableType] = [verdict_heading(verdict), *_layers(verdict)]
    if len(explanation.windows) > 1:
        parts += _windows(explanation.windows)
    if explanation.prototypes:
        parts += _prototypes(explanation.prototypes)
    if explanation.categories:
        parts += _categories(explanation.categories)
    return Group(*parts)


def _layers(verdict: Verdict) -> Iterator[RenderableType]:
    """Contributions and intercept as bars from a middle line: to the left for safe, to the right for unsafe."""
    assert verdict.intercept is not None
    assert verdict.log_odds is not None
    largest = max(abs(verdict.intercept), abs(verdict.log_odds), *(abs(layer.contribution) for layer in verdict.layers))
    yield Text("\nwhat adds up to the score, in nats (left: safe, right: unsafe)", style="bold")
    table = figures("layer", "own log-odds", "weight", "adds")
    table.add_column("")
    for layer in verdict.layers:
        numbers = (str(layer.layer), f"{layer.log_odds:+.3f}", f"{layer.weight:+.3f}", f"{layer.contribution:+.3f}")
        table.add_row(*cells(*numbers), _from_middle(layer.contribution, largest))
    table.add_row(*cells("intercept", "", "", f"{verdict.intercept:+.3f}"), _from_middle(verdict.intercept, largest))
    table.add_section()
    total = cells("sum = log-odds", "", "", f"{verdict.log_odds:+.3f}")
    table.add_row(*total, _from_middle(verdict.log_odds, largest), style="bold")
    yield table


def _windows(windows: tuple[WindowExplanation, ...]) -> Iterator[RenderableType]:
    yield Text(f"\n{len(windows)} pieces were judged; the highest score decides", style="bold")
    table = figures("piece", "score", "margin", "novelty")
    table.add_column("")
    shown = sorted(windows, key=lambda each: each.score, reverse=True)[:_MOST]
    for each in shown:
        where = each.where
        name = f"{where.view}, {where.form}, {where.kind} {where.index + 1} of {where.count}"
        novelty = "-" if each.novelty is None else f"{each.novelty:.3f}"
        row = cells(name, f"{each.score:.4f}", f"{each.margin:.3f}", novelty)
        mark = Text("  decides", style="bold") if each.decides else Text()
        table.add_row(*row, _bar(each.score, 1.0, _FOR) + mark)
    yield table
    if len(windows) > len(shown):
        yield Text(f"{len(windows) - len(shown)} with lower scores are in the --json output")


def _prototypes(prototypes: tuple[PrototypeDistance, ...]) -> Iterator[RenderableType]:
    yield Text("\nhow far from the training prompts (squared Mahalanobis distance, no unit), the nearest first", style="bold")
    table = figures("prototype", "distance")
    table.add_column("")
    farthest = max(each.distance for each in prototypes)
    for each in prototypes[:_MOST]:
        table.add_row(*cells(printable(each.name), f"{each.distance:.1f}"), _bar(each.distance, farthest, _NEUTRAL))
    yield table


def _categories(categories: tuple[CategoryEvidence, ...]) -> Iterator[RenderableType]:
    yield Text("\ncategories, the likeliest first", style="bold")
    table = figures("category", "probability", "flags from")
    table.add_column("")
    for each in categories[:_MOST]:
        threshold = "-" if each.threshold is None else f"{each.threshold:.4f}"
        over = each.threshold is not None and each.probability >= each.threshold
        row = cells(printable(each.name), f"{each.probability:.4f}", threshold)
        table.add_row(*row, _bar(each.probability, 1.0, _FOR if over else _NEUTRAL))
    yield table
    if len(categories) > _MOST:
        yield Text(f"{len(categories) - _MOST} less likely ones are in the --json output")


def _from_middle(value: float, largest: float) -> Text:
    length = round(_HALF * abs(value) / largest) if largest > 0.0 else 0
    if value < 0.0:
        return Text(" " * (_HALF - length)) + Text("█" * length, style=_AGAINST) + Text("│" + " " * _HALF)
    return Text(" " * _HALF + "│") + Text("█" * length, style=_FOR) + Text(" " * (_HALF - length))


def _bar(value: float, largest: float, style: str) -> Text:
    length = round(_WHOLE * value / largest) if largest > 0.0 else 0
    return Text("█" * length, style=style) + Text("░" * (_WHOLE - length), style="dim")
