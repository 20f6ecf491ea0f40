"""How differences, corrections and calibrations look in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from mlpm_guard.rendering.console import cells, figure, figures, printable

if TYPE_CHECKING:
    from mlpm_guard.bundle import Calibration
    from mlpm_guard.comparing import Change, Diff, Flip, Judgement, Side
    from mlpm_guard.correcting import Correction

_MOST_FLIPS = 50
_LONGEST_TEXT = 200
_NAMES = {
    "f1": "F1",
    "false_positive_rate": "false positives",
    "average_precision": "average precision",
    "recall@0.01": "recall at 1 % FP",
    "recall@0.05": "recall at 5 % FP",
}
_DIRECTIONS = {
    "newly_flagged": "newly flagged",
    "no_longer_flagged": "no longer flagged",
    "other_action": "other action",
}


def diff_report(diff: Diff, texts: Mapping[int, str] | None = None) -> RenderableType:
    """Which judgements flip, and with labels how the metrics move.

    Args:
        diff: what was compared.
        texts: text of the flipped prompts by their index, where it is to be shown.
    """
    parts: list[RenderableType] = [Text("\n".join([_side("before", diff.before), _side("after", diff.after)]))]
    if diff.changes:
        table = figures("metric", "before", "after", "change", "95 % interval")
        for name, change in diff.changes.items():
            table.add_row(*_change(_NAMES.get(name, name), change))
        parts += [Text(), table]
    if diff.flips:
        labelled = any(flip.label is not None for flip in diff.flips)
        table = figures("prompt", "flips", *(["labelled"] if labelled else []), "before", "after")
        if texts is not None:
            table.add_column("text", overflow="fold")
        for flip in diff.flips[:_MOST_FLIPS]:
            table.add_row(*_flip(flip, labelled, texts))
        parts += [Text(), table]
    parts += [Text(), Text("\n".join(_summary(diff)))]
    return Group(*parts)


def correction_report(corrections: Sequence[Correction], threshold: float, repeat: int) -> RenderableType:
    """What corrections did to their texts, and what else there is where they did not suffice."""
    table = figures("text", "labelled", "score before", "after", "threshold", "judged", "forgotten")
    for number, each in enumerate(corrections[:_MOST_FLIPS], 1):
        flagged = "flagged" if each.flagged_after else "passes"
        judged = f"{'still ' if each.flagged_before == each.flagged_after else 'now '}{flagged}"
        label = "unsafe" if each.label else "safe"
        row = (str(number), label, _score(each.before), _score(each.after), f"{threshold:.4f}", judged, str(each.forgotten))
        table.add_row(*cells(*row))
    lines = []
    if len(corrections) > _MOST_FLIPS:
        lines.append(f"{len(corrections) - _MOST_FLIPS} more are in the --json output")
    forgotten = sum(each.forgotten for each in corrections)
    if forgotten:
        lines.append(f"learned before under the other label, and forgotten: {forgotten}")
    ruled = sum(not each.settled and each.rule is not None for each in corrections)
    if ruled:
        lines.append(f"{ruled} decided by the guard's own allow or block list, whatever it learns: change that list")
    by_category = [each for each in corrections if not each.settled and each.flagged_by]
    if by_category:
        names = ", ".join(printable(name) for name in sorted({name for each in by_category for name in each.flagged_by}))
        lines.append(f"{len(by_category)} flagged by the threshold of a category: {names}; raise it, or remove the category")
    unsettled = sum(not (each.settled or each.rule is not None or each.flagged_by) for each in corrections)
    if unsettled:
        lines += [
            f"{unsettled} of {len(corrections)} still judged otherwise than labelled: one among many moves a guard little.",
            f"Learn it more often (--repeat {max(16, 4 * repeat)}; --data shows what else that changes), give more examples of",
            "the kind (--file), move the threshold (mlpm-guard calibrate), or decide it by the guard's own lists: in Python,",
            "guard.rules = Rules(allow=[...], block=[...]), and save.",
        ]
    if all(each.settled for each in corrections):
        lines.append("judged as labelled")
    return Group(table, Text("\n".join(lines)))


def category_report(found: Mapping[str, Any], names: Sequence[str]) -> RenderableType:
    """What became of a category, and which ones there are.

    Args:
        found: "category", and either "removed", or "action", "threshold" and how many "examples" and "negatives" there are, and
            are flagged ("examples_flagged", "negatives_flagged").
        names: of all categories.
    """
    name = printable(found["category"])
    if found.get("removed"):
        lines = [f"{name}: removed"]
    else:
        lines = [f"{name}: flags from {found['threshold']:.4f}, action: {found['action']}"]
        lines.append(f"flags {found['examples_flagged']} of its {found['examples']} examples, which it was learned from")
        if found["negatives"]:
            lines.append(f"and {found['negatives_flagged']} of {found['negatives']} negatives, likewise")
    lines.append(f"categories: {', '.join(map(printable, names)) or 'none'}")
    return Text("\n".join(lines))


def calibration_report(calibration: Calibration, before: float) -> RenderableType:
    """The threshold that was set, on what, and what is promised."""
    lines = [
        f"threshold {before:.4f} -> {calibration.threshold:.4f}",
        f"flags {calibration.flagged} of {calibration.benign} harmless prompts"
        + (f"; {calibration.unsafe} unsafe prompts were given too" if calibration.unsafe else ""),
    ]
    if calibration.repeated:
        lines.append(
            f"{calibration.repeated} of the harmless prompts repeat others; counted both with and without them, the stricter "
            "threshold holds"
        )
    if calibration.max_fpr is not None and calibration.confidence is not None:
        lines.append(
            f"promised: at most {calibration.max_fpr:.2%} of such traffic is flagged wrongly, with "
            f"{calibration.confidence:.0%} confidence"
        )
    if calibration.objective is not None:
        lines.append(f"best on these prompts for {calibration.objective}; nothing is promised for others")
    if calibration.calibration_error is not None:
        lines.append(
            f"log-odds mapped by {calibration.scale:.3f} x {'-' if calibration.offset < 0.0 else '+'} "
            f"{abs(calibration.offset):.3f}; expected calibration error {calibration.calibration_error:.3f}"
        )
    return Text("\n".join(lines))


def _side(name: str, side: Side) -> str:
    errors = f", {side.errors} of them not judged" if side.errors else ""
    which = printable(side.bundle_id or "not saved")
    return f"{name + ':':<8}{which}, threshold {side.threshold:.4f}, {side.flagged} flagged{errors}"


def _change(name: str, change: Change) -> list[Text]:
    moved = "-" if change.change is None else f"{change.change:+.3f}"
    ends = "-" if change.low is None or change.high is None else f"{change.low:+.3f} to {change.high:+.3f}"
    return cells(name, figure(change.before), figure(change.after), moved, ends)


def _flip(flip: Flip, labelled: bool, texts: Mapping[int, str] | None) -> list[Text]:
    label = {None: "-", 0: "safe", 1: "unsafe"}[flip.label]
    text = [] if texts is None else [_cut(texts.get(flip.index, ""))]
    return cells(
        printable(str(flip.index) if flip.id is None else flip.id),
        _DIRECTIONS[flip.direction],
        *([label] if labelled else []),
        _judgement(flip.before, flip),
        _judgement(flip.after, flip),
        *text,
    )


def _judgement(judgement: Judgement, flip: Flip) -> str:
    action = f" ({judgement.action.value})" if flip.direction == "other_action" else ""
    if judgement.rule is not None:
        return f"{judgement.rule.kind} list{action}"
    if judgement.flagged_by:
        action += f" ({', '.join(map(printable, judgement.flagged_by))})"
    return (_score(judgement.score) if judgement.error is None else judgement.error) + action


def _summary(diff: Diff) -> list[str]:
    if diff.same:
        return [f"all {diff.prompts} prompts are judged alike"]
    counts = [f"{diff.count(direction)} {title}" for direction, title in _DIRECTIONS.items() if diff.count(direction)]  # type: ignore[arg-type]
    lines = [f"{len(diff.flips)} of {diff.prompts} prompts are judged differently: {', '.join(counts)}"]
    told = [flip.better for flip in diff.flips if flip.better is not None]
    if told:
        lines.append(f"by the labels {sum(told)} for the better, {len(told) - sum(told)} for the worse")
    if len(diff.flips) > _MOST_FLIPS:
        lines.append(f"{len(diff.flips) - _MOST_FLIPS} more are in the --json output")
    return lines


def _score(score: float | None) -> str:
    return "not judged" if score is None else f"{score:.4f}"


def _cut(text: str) -> str:
    shown = printable(" ".join(text.split()))
    return shown if len(shown) <= _LONGEST_TEXT else f"{shown[: _LONGEST_TEXT - 1]}…"
