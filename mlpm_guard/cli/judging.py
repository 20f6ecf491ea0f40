"""Commands that judge texts: check, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlpm_guard.cli import opening
from mlpm_guard.cli.options import BundleOption, Json, Text, TextColumn, Threshold
from mlpm_guard.cli.program import FLAGGED, INTERRUPTED, REVIEW, app, fail, say
from mlpm_guard.cli.progress import progress


@app.command()
def check(text: Text, bundle: BundleOption = "default", threshold: Threshold = None, json: Json = False) -> None:
    """Judge one prompt. Exit code 0: allowed; 1: flagged; 2: it could not be judged; 3: to be reviewed.

    A prompt that starts with - goes behind --: mlpm-guard check -- "-rf, what does it do?"
    """
    prompt = opening.standard_input() if text == "-" else text
    verdict = opening.load_guard(bundle, threshold).check(prompt)
    if json:
        typer.echo(verdict.model_dump_json())
    else:
        from mlpm_guard.rendering import show, verdict_panel

        show(verdict_panel(verdict))
    if verdict.error is not None:
        fail(f"the text could not be judged ({verdict.error})")
    if verdict.flagged:
        raise typer.Exit(FLAGGED)
    if verdict.action == "review":
        raise typer.Exit(REVIEW)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, CSV (each also .gz) or Parquet, of any size.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the scores go, as JSONL; by default FILE.scores.jsonl.")
    ] = None,
    bundle: BundleOption = "default",
    text_column: TextColumn = None,
    threshold: Threshold = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start over, and replace OUT.")] = False,
) -> None:
    """Score a file. Run the same command again to continue one that was interrupted.

    A malformed row stops the run and names its line; what was scored stays in OUT.partial. After correcting the file, start
    over with --restart. A text that cannot be judged (empty, too long) gives a row with an error and stops nothing.
    """
    from mlpm_guard.datafiles import DataFile
    from mlpm_guard.scoring import FileScorer

    data = DataFile(file, text_column=text_column, ignore_label=True)
    out = file.with_name(f"{file.name}.scores.jsonl") if out is None else out
    scorer = FileScorer(opening.load_guard(bundle, threshold), data, out, restart=restart)
    try:
        with progress("scoring", [data]) as advance:
            summary = scorer.run(advance)
    except KeyboardInterrupt:
        hint = "run the same command again, without --restart, to continue" if scorer.rows else "nothing was scored"
        say(f"interrupted after {scorer.rows} rows; {hint}")
        raise typer.Exit(INTERRUPTED) from None
    earlier = f", {summary.continued} of them by an earlier run" if summary.continued else ""
    say(f"{summary.rows} rows in {out}{earlier}; now {summary.flagged} flagged, of which {summary.errors} could not be judged")
