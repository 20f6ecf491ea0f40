"""Commands that make a guard, or a new version of one: fit, correct, calibrate."""

from __future__ import annotations

from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from mlpm_guard.cli import opening
from mlpm_guard.cli.comparing import compared, require_consistent
from mlpm_guard.cli.options import BundleArgument, CategoryColumn, Data, InPlace, Json, LabelColumn, Out, Target, TextColumn
from mlpm_guard.cli.program import DIFFERENT, app, fail, say
from mlpm_guard.cli.progress import progress
from mlpm_guard.cli.rows import Rows


class _Label(StrEnum):
    SAFE = "safe"
    UNSAFE = "unsafe"


@app.command()
def fit(
    files: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the guard. A guard that is there is replaced.")],
    encoder: Annotated[
        str, typer.Option("--encoder", help='"embedded", or a Hugging Face model\'s name or folder.')
    ] = "embedded",
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            help='Low-rank adapter to merge into the encoder: "default" (the embedded encoder\'s own, taken unless you say '
            'otherwise), "none", or a file.',
        ),
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    category_column: CategoryColumn = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Flag from this probability on, 0 to 1.")] = 0.5,
    target: Annotated[Target, typer.Option("--target", help="What the guard judges.")] = Target.PROMPT,
    no_statistics: Annotated[
        bool, typer.Option("--no-statistics", help="Smaller guard that can be neither extended nor corrected.")
    ] = False,
    categories: Annotated[
        bool,
        typer.Option("--categories/--no-categories", help="Learn the categories of unsafe rows, where there are any."),
    ] = True,
) -> None:
    """Fit a guard on labelled prompts and save it.

    The files may be of different formats. The same prompt with both labels, or in two categories, is an error that names both
    lines. A category that is blank, or "other", is an unknown one; that of a safe row is not read.
    """
    from mlpm_guard.guard import Guard

    if category_column is not None and not categories:
        fail("--category-column and --no-categories contradict each other")
    data = opening.labelled_files(files, text_column, label_column, category_column)
    opening.check_writable(out)
    guard = Guard(opening.load_encoder(encoder, adapter), target=target.value, threshold=threshold)
    rows = Rows(data, guard.target)
    rows.check(categories=categories)
    with progress("fitting", data) as advance:
        guard.fit(*rows.named(advance, categories=categories), progress=False)
    path = guard.save_pretrained(out, statistics=not no_statistics)
    typer.echo(f"{rows.counts[0]} safe and {rows.counts[1]} unsafe prompts")
    weights = zip(guard.encoder.layers, guard.classifier.layer_weights_.tolist(), strict=True)
    kept = ", ".join(f"{layer} ({weight:+.3g})" for layer, weight in weights if weight != 0)
    typer.echo(f"layers kept: {kept or 'none'}, of {len(guard.encoder.layers)}")
    if guard.list_categories():
        typer.echo(f"categories: {', '.join(guard.list_categories())}")
    typer.echo(f"saved {guard.bundle_id} in {path}")


@app.command()
def correct(
    bundle: BundleArgument,
    text: Annotated[str | None, typer.Option("--text", help="A prompt that is judged wrongly; - reads standard input.")] = None,
    label: Annotated[_Label | None, typer.Option("--label", help="With --text: what it is.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Instead of --text: rows with prompts and their right labels.")
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", help="With --label unsafe: the category that it belongs to.")
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", help="How often each is learned; more moves the guard further.")] = 1,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Show what else changes on these prompts, labelled or not. May be repeated."),
    ] = None,
    out: Out = None,
    in_place: InPlace = False,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    category_column: CategoryColumn = None,
    json: Json = False,
) -> None:
    """Correct a guard's judgement of a text, and save that as a new version of the guard.

    The guard learns the text under its right label and, where it had learned it under the other one, forgets that, exactly.
    One text among many thousands moves a guard little: the scores before and after are printed, and --data shows what the
    correction does to other prompts.

    Exit code 0: every text is now judged as labelled; 1: the new version is saved, and some are still not; 2: it failed.
    """
    from mlpm_guard.correcting import corrected

    if (text is None) == (file is None) or (text is None) != (label is None):
        fail("give either --text with --label, or --file")
    if category is not None and label is not _Label.UNSAFE:
        fail("--category: of a --text with --label unsafe; with --file, name the column with --category-column")
    if category_column is not None and file is None:
        fail("--category-column: a column of --file; with --text, say --category")
    target = opening.destination(bundle, out, in_place)
    before = opening.load_guard(bundle)
    others = Rows(opening.data_files(data or (), text_column, label_column))
    require_consistent(others, before.target)
    if file is not None:
        rows = Rows(opening.labelled_files([file], text_column, label_column, category_column), before.target)
        named = category_column is not None
        rows.check(categories=named)
        with progress("correcting", rows.files) as advance:
            after, corrections = corrected(before, *rows.named(advance, categories=named), repeat=repeat)
    else:
        assert text is not None
        assert label is not None
        prompt = opening.standard_input() if text == "-" else text
        categories = None if category is None else [category]
        after, corrections = corrected(before, [prompt], [label.value], categories, repeat=repeat)
    path = after.save_pretrained(target)
    changes = compared(before, after, others) if others.files else None
    if json:
        found = {
            "bundle_id": after.bundle_id,
            "path": str(path),
            "threshold": after.threshold,
            "corrections": [each.model_dump(mode="json") for each in corrections],
            "diff": None if changes is None else changes.model_dump(mode="json"),
        }
        typer.echo(dumps(found))
    else:
        from mlpm_guard.rendering import correction_report, diff_report, show

        show(correction_report(corrections, after.threshold, repeat))
        if changes is not None:
            show(diff_report(changes))
    if before.calibration is not None:
        say("no longer calibrated: the threshold stays, its promise does not; set it again with mlpm-guard calibrate")
    say(f"saved {after.bundle_id} in {path}")
    if not all(each.settled for each in corrections):
        raise typer.Exit(DIFFERENT)


@app.command()
def calibrate(
    bundle: BundleArgument,
    files: Data,
    max_fpr: Annotated[
        float | None, typer.Option("--max-fpr", help="Largest acceptable share of harmless prompts flagged; by default 0.01.")
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="How sure that must be.")] = 0.95,
    objective: Annotated[
        str | None, typer.Option("--objective", help="Instead of --max-fpr: f1, or recall@fpr=0.05. Needs labels.")
    ] = None,
    out: Out = None,
    in_place: InPlace = False,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    json: Json = False,
) -> None:
    """Set a guard's threshold from prompts that it was not fitted on, and save it as a new version.

    Rows without labels are harmless traffic. The threshold then flags at most --max-fpr of such traffic, with that confidence;
    too few rows are refused, naming how many are needed. Where rows are labelled both ways, probabilities are calibrated too.
    """
    target = opening.destination(bundle, out, in_place)
    guard = opening.load_guard(bundle)
    rows = Rows(opening.data_files(files, text_column, label_column), guard.target)
    labels = rows.labels()
    # Labels that are all "safe" say what no labels say.
    both = labels is not None and (1 in labels or objective is not None)
    if both:
        rows.check()
    threshold = guard.threshold
    with progress("calibrating", rows.files) as advance:
        guard.calibrate(
            (conversation for _, conversation in rows.told(advance)),
            labels if both else None,
            max_fpr=max_fpr,
            confidence=confidence,
            objective=objective,
        )
    path = guard.save_pretrained(target, statistics=opening.has_statistics(bundle))
    assert guard.calibration is not None
    if json:
        typer.echo(guard.calibration.model_dump_json())
    else:
        from mlpm_guard.rendering import calibration_report, show

        show(calibration_report(guard.calibration, threshold))
    say(f"saved {guard.bundle_id} in {path}")
