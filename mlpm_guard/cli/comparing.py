"""The command that compares two guards: diff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlpm_guard.cli import opening
from mlpm_guard.cli.options import Data, Json, LabelColumn, TextColumn
from mlpm_guard.cli.program import DIFFERENT, app
from mlpm_guard.cli.progress import progress
from mlpm_guard.cli.rows import Rows

if TYPE_CHECKING:
    from mlpm_guard.comparing import Diff
    from mlpm_guard.guard import Guard
    from mlpm_guard.verdict import Target


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A guard: a shipped one's name, or a folder.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The guard to compare it with.")],
    files: Data,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    json: Json = False,
    show_text: Annotated[bool, typer.Option("--show-text", help="Show the text of prompts that flip, not only ids.")] = False,
) -> None:
    """Show what changes from guard A to guard B: which prompts flip and, with labels, how the metrics move.

    Both judge at their own thresholds. Labels are used where every row has one. Exit code, as diff has it, 0: all prompts are
    judged alike; 1: some are not; 2: it failed.
    """
    rows = Rows(opening.data_files(files, text_column, label_column))
    first, second = opening.load_guard(before), opening.load_guard(after)
    found = compared(first, second, rows)
    if json:
        typer.echo(found.model_dump_json())
    else:
        from mlpm_guard.rendering import diff_report, show

        show(diff_report(found, rows.texts({flip.index for flip in found.flips}) if show_text else None))
    if not found.same:
        raise typer.Exit(DIFFERENT)


def require_consistent(rows: Rows, target: Target) -> None:
    """Find rows that guards cannot be compared on before the work.

    Raises:
        DataError: a row cannot be read, only some have a label, or a prompt is there with both.
    """
    from mlpm_guard.comparing import Row, consistent

    rows.labels()
    with rows.located():
        for _ in consistent((Row(each.conversation, each.label) for each in rows.records(lambda _rows: None)), target):
            pass


def compared(before: Guard, after: Guard, rows: Rows) -> Diff:
    """What changes between two guards on rows of files, with or without labels."""
    from mlpm_guard.comparing import Row, compare

    rows.labels()
    with rows.located(), progress("comparing", rows.files) as advance:
        return compare(
            before,
            after,
            (
                Row(record.conversation, record.label, record.id or f"{record.source}, line {record.line}")
                for record in rows.records(advance)
            ),
        )
