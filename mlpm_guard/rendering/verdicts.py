"""How a verdict looks in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from mlpm_guard.category_policy import NAMES_FROM
from mlpm_guard.rendering.console import figures, printable

if TYPE_CHECKING:
    from mlpm_guard.verdict import Verdict

_MOST_OTHERS = 3


def verdict_panel(verdict: Verdict) -> RenderableType:
    """The judgement, its score against the threshold, and what every layer adds."""
    if verdict.error is not None:
        return Panel(
            Text(f"could not be judged: {verdict.error}; action: {verdict.action.value}"),
            title="not judged",
            border_style="yellow",
            expand=False,
        )
    title, style = _title(verdict)
    if verdict.rule is not None:
        return Panel(verdict_heading(verdict), title=title, border_style=style, expand=False)
    assert verdict.intercept is not None
    table = figures("layer", "log-odds", "weight", "contribution (nats)")
    for layer in verdict.layers:
        table.add_row(str(layer.layer), f"{layer.log_odds:+.3f}", f"{layer.weight:+.3f}", f"{layer.contribution:+.3f}")
    table.add_row("intercept", "", "", f"{verdict.intercept:+.3f}")
    table.add_row("log-odds", "", "", f"{verdict.log_odds:+.3f}")
    return Panel(Group(verdict_heading(verdict), table), title=title, border_style=style, expand=False)


def verdict_heading(verdict: Verdict) -> Text:
    """What was judged by what, and the score against the threshold, line by line. Only for verdicts with a score."""
    assert verdict.score is not None
    if verdict.rule is not None:
        rule = f"{verdict.rule.kind} entry {printable(str(verdict.rule.entry))} ({verdict.rule.form})"
        return Text(f"by the guard's own rules: {rule}; action: {verdict.action.value}")
    sign = ">=" if verdict.score >= verdict.threshold else "<"
    lines = [f"score {verdict.score:.4f} {sign} threshold {verdict.threshold:.4f}; action: {verdict.action.value}"]
    lines += _categories(verdict)
    if verdict.novelty is not None:
        lines.append(f"novelty: farther from the training prompts than {verdict.novelty:.1%} of them")
    if verdict.window is not None:
        where = verdict.window
        lines.append(f"decided by: {where.view}, {where.form}, {where.kind} {where.index + 1} of {where.count}")
    if verdict.not_judged:
        lines.append(f"not judged: {', '.join(verdict.not_judged)}")
    if verdict.bundle_id is not None:
        lines.append(f"guard: {printable(verdict.bundle_id)}")
    return Text("\n".join(lines))


def _categories(verdict: Verdict) -> list[str]:
    """What categories say of a flagged text, and where they decide instead of the score."""
    if not verdict.flagged:
        return []
    lines = []
    if verdict.flagged_by:
        lines.append(f"flagged by the threshold of: {', '.join(map(printable, verdict.flagged_by))}")
    if verdict.category is not None:
        lines.append(f"category: {_likely(verdict, verdict.category)}")
        others = [name for name, chance in verdict.categories.items() if chance >= NAMES_FROM and name != verdict.category]
        if others:
            others.sort(key=verdict.categories.__getitem__, reverse=True)
            lines.append(f"also likely: {', '.join(_likely(verdict, name) for name in others[:_MOST_OTHERS])}")
        if verdict.mode == "enforce" and not verdict.blocked:
            lines.append("not blocked, because the guard's policy on its categories says so")
    return lines


def _likely(verdict: Verdict, name: str) -> str:
    return f"{printable(name)} ({verdict.categories[name]:.4f})"


def _title(verdict: Verdict) -> tuple[str, str]:
    if verdict.action == "review":
        return "to be reviewed", "yellow"
    return ("FLAGGED", "red") if verdict.flagged else ("allowed", "green")
