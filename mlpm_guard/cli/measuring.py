"""Commands that measure guards: evaluate, benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mlpm_guard.cli import opening
from mlpm_guard.cli.options import BundleArgument, Data, Json, LabelColumn, TextColumn, Threshold
from mlpm_guard.cli.program import app, fail, say
from mlpm_guard.cli.progress import counted

if TYPE_CHECKING:
    from mlpm_guard.datafiles import DataFile, Pair
    from mlpm_guard.guard import Guard

_MODERATOR = "default-response"


@app.command()
def evaluate(
    bundle: BundleArgument,
    files: Data,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    threshold: Threshold = None,
    json: Json = False,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Rows are prompts with answers: count what reaches the user.")
    ] = False,
    moderator: Annotated[
        str, typer.Option("--moderator", help="With --pipeline: the guard that judges the answers.")
    ] = _MODERATOR,
    moderator_threshold: Annotated[
        float | None, typer.Option("--moderator-threshold", help="With --pipeline: its threshold, 0 to 1.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option("--prompt-column", help="With --pipeline: column with the prompts; by default prompt.")
    ] = None,
    response_column: Annotated[
        str | None, typer.Option("--response-column", help="With --pipeline: column with the answers; response, else text.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write a page with curves, intervals and mistakes: out.html.")
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", help="With --report: another guard, side by side. May be repeated.")
    ] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="With --report: show the text of mistakes, not only their ids.")
    ] = False,
) -> None:
    """Measure a guard on labelled prompts: overall, and for each source.

    With --pipeline the rows are prompts with answers, label 1 for a harmful answer. Printed is how many harmful answers reach
    the user and how many harmless ones are lost: with BUNDLE before the model, with the moderator behind it, with both.

    With --report the figures, with confidence intervals, also go into a page of their own; it holds no text of a prompt unless
    --show-text asks for it. A guard that is compared judges the same rows at its own threshold.
    """
    if pipeline and (report is not None or compare or show_text):
        fail("--report, --compare and --show-text: not with --pipeline")
    if report is None and (compare or show_text):
        fail("--compare and --show-text need --report")
    if pipeline:
        if text_column is not None:
            fail("--text-column: with --pipeline the columns are named by --prompt-column and --response-column")
        pairs = _Pairs(opening.labelled_files(files, None, label_column), prompt_column, response_column)
        _pipeline(opening.load_guard(bundle, threshold), opening.load_guard(moderator, moderator_threshold), pairs, json)
        return
    if moderator != _MODERATOR or {moderator_threshold, prompt_column, response_column} != {None}:
        fail("--moderator, --moderator-threshold, --prompt-column and --response-column need --pipeline")
    data = opening.labelled_files(files, text_column, label_column)
    if report is not None:
        _report([(bundle, threshold), *((other, None) for other in compare or ())], data, report, show_text, json)
        return
    from mlpm_guard.evaluation.runner import evaluate as run

    guard = opening.load_guard(bundle, threshold)
    with counted("evaluating", data) as count:
        evaluation = run(guard, (record for each in data for record in each), progress=count)
    if json:
        typer.echo(evaluation.model_dump_json())
    else:
        from mlpm_guard.rendering import evaluation_table, show

        show(evaluation_table(evaluation))


def _report(
    bundles: Sequence[tuple[str, float | None]], data: Sequence[DataFile], out: Path, show_text: bool, json: bool
) -> None:
    from mlpm_guard.evaluation.judged import collect
    from mlpm_guard.evaluation.plots import require
    from mlpm_guard.evaluation.report import check_writable, report, save_report

    check_writable(out)
    require()
    names = [Path(bundle).name or bundle for bundle, _ in bundles]
    guards = [
        # Two guards of one name are told apart by their order.
        (name if names.count(name) == 1 else f"{name} ({position + 1})", opening.load_guard(bundle, threshold))
        for position, (name, (bundle, threshold)) in enumerate(zip(names, bundles, strict=True))
    ]
    with counted("evaluating", data) as count:
        results = collect(guards, (record for each in data for record in each), keep_text=show_text, progress=count)
    path = save_report(out, report(results, files=[each.path.name for each in data], show_text=show_text))
    for result in results:
        if json:
            typer.echo(result.evaluation().model_dump_json())
        else:
            from mlpm_guard.rendering import evaluation_table, show

            show(evaluation_table(result.evaluation()))
    say(f"report in {path}")


class _Pairs(NamedTuple):
    """Files of prompts with answers, and where in a row both stand."""

    files: list[DataFile]
    prompt_column: str | None
    response_column: str | None

    def rows(self) -> Iterator[Pair]:
        for file in self.files:
            yield from file.pairs(prompt_column=self.prompt_column, response_column=self.response_column)


def _pipeline(guard: Guard, moderator: Guard, pairs: _Pairs, json: bool) -> None:
    from mlpm_guard.evaluation.pipeline import evaluate_pipeline

    with counted("evaluating", pairs.files) as count:
        evaluation = evaluate_pipeline(guard, moderator, pairs.rows(), progress=count)
    if json:
        typer.echo(evaluation.model_dump_json())
    else:
        from mlpm_guard.rendering import pipeline_table, show

        show(pipeline_table(evaluation))


class _Suite(StrEnum):
    PAPER = "paper"


@app.command()
def benchmark(
    bundle: BundleArgument,
    data: Annotated[Path, typer.Option("--data", help="Folder with the test sets' files, as their publishers ship them.")],
    suite: Annotated[_Suite, typer.Option("--suite", help="Which test sets.")] = _Suite.PAPER,
    threshold: Threshold = None,
    json: Json = False,
) -> None:
    """Measure a guard on public test sets, with the figures that others published beside it.

    Nothing is downloaded: the sets whose files are in the folder are measured, the others are named. A guard of prompts is
    measured on prompts, a guard of answers on answers.

    A file is found under its publisher's name, or as KEY.csv, KEY.jsonl or KEY.parquet of the publisher's format, KEY being
    aegis, harmbench, openai_mod, simple_safety_tests, toxicchat, wildguardtest, xstest or beavertails.
    """
    from mlpm_guard.evaluation.benchmark import run_suite

    guard = opening.load_guard(bundle, threshold)
    with counted("measuring", []) as count:
        result = run_suite(guard, data, suite=suite.value, progress=count)
    if json:
        typer.echo(result.model_dump_json())
    else:
        from mlpm_guard.rendering import show, suite_table

        show(suite_table(result))
