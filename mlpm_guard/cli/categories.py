"""Commands that give a guard a category of the user's own, or take one away: add-category, remove-category."""

from __future__ import annotations

import copy
from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpm_guard.cli import opening
from mlpm_guard.cli.comparing import compared, require_consistent
from mlpm_guard.cli.options import BundleArgument, Data, InPlace, Json, LabelColumn, Out, TextColumn
from mlpm_guard.cli.program import app, fail, say
from mlpm_guard.cli.rows import Rows
from mlpm_guard.errors import ContradictoryLabelsError

if TYPE_CHECKING:
    from mlpm_guard.comparing import Diff
    from mlpm_guard.conversation import Conversation
    from mlpm_guard.guard import Guard

CategoryName = Annotated[str, typer.Argument(metavar="NAME", help="The category's name.")]


class _Action(StrEnum):
    BLOCK = "block"
    REVIEW = "review"
    ALLOW = "allow"


@app.command("add-category")
def add_category(
    bundle: BundleArgument,
    name: CategoryName,
    files: Data,
    negatives: Annotated[
        list[Path] | None,
        typer.Option("--negatives", help="Texts that do not belong to it, such as harmless ones nearby. May be repeated."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="The category flags from this probability on, 0 to 1; by default 0.5.")
    ] = None,
    action: Annotated[_Action, typer.Option("--action", help="What a gate then does.")] = _Action.BLOCK,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Show what changes on these prompts, labelled or not. May be repeated."),
    ] = None,
    out: Out = None,
    in_place: InPlace = False,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    json: Json = False,
) -> None:
    """Add a category from 5 to 50 examples, and save that as a new version of the guard.

    Every row of DATA is an example, whatever its label; 20 are good, and --negatives help. A text that reaches the category's
    own threshold is flagged, whatever its score; everything else that the guard says stays as it is.
    """
    target = opening.destination(bundle, out, in_place)
    before = opening.load_guard(bundle)
    guard = copy.copy(before)
    others = Rows(opening.data_files(data or (), text_column, label_column), guard.target)
    require_consistent(others, guard.target)
    rows = Rows(opening.unlabelled_files(files, text_column), guard.target)
    apart = Rows(opening.unlabelled_files(negatives or (), text_column), guard.target)
    examples, opposed = _conversations(rows, guard), _conversations(apart, guard)
    try:
        guard.add_category(name, examples, negatives=opposed or None, threshold=threshold, action=action.value)
    except ContradictoryLabelsError as error:
        example, negative = error.rows
        fail(f"{apart.place(negative)}: the same text as the example in {rows.place(example)}; remove one")
    path = guard.save_pretrained(target)
    changes = compared(before, guard, others) if others.files else None
    found = {
        "category": name,
        "action": action.value,
        "threshold": guard.category_policy[name].threshold,
        "examples": len(examples),
        "examples_flagged": _flagged(guard, name, examples),
        "negatives": len(opposed),
        "negatives_flagged": _flagged(guard, name, opposed),
    }
    _tell(guard, before, path, found, changes, json)


@app.command("remove-category")
def remove_category(
    bundle: BundleArgument, name: CategoryName, out: Out = None, in_place: InPlace = False, json: Json = False
) -> None:
    """Remove a category, and what was to be done about it, and save that as a new version of the guard.

    Prompts that a fitted category was learned from stay learned, as unsafe prompts without one.
    """
    target = opening.destination(bundle, out, in_place)
    before = opening.load_guard(bundle)
    guard = copy.copy(before)
    guard.remove_category(name)
    path = guard.save_pretrained(target, statistics=opening.has_statistics(bundle))
    _tell(guard, before, path, {"category": name, "removed": True}, None, json)


def _conversations(rows: Rows, guard: Guard) -> list[Conversation]:
    found = []
    for row, (_, conversation) in enumerate(rows):
        if conversation.characters > guard.max_chars:
            fail(f"{rows.place(row)}: {conversation.characters} characters; this guard judges up to {guard.max_chars}")
        found.append(conversation)
    return found


def _flagged(guard: Guard, name: str, conversations: list[Conversation]) -> int:
    return sum(name in verdict.flagged_by for verdict in guard.check_batch(conversations))


def _tell(guard: Guard, before: Guard, path: Path, found: dict[str, Any], changes: Diff | None, json: bool) -> None:
    if json:
        told = {"bundle_id": guard.bundle_id, "path": str(path), **found, "categories": guard.list_categories()}
        typer.echo(dumps({**told, "diff": None if changes is None else changes.model_dump(mode="json")}))
    else:
        from mlpm_guard.rendering import category_report, diff_report, show

        show(category_report(found, guard.list_categories()))
        if changes is not None:
            show(diff_report(changes))
    if before.calibration is not None:
        say("no longer calibrated: the threshold stays, its promise does not; set it again with mlpm-guard calibrate")
    say(f"saved {guard.bundle_id} in {path}")
