"""The command line: check, score, fit, info, evaluate, benchmark.

Only what `--help` needs is imported here; everything heavier is imported by the command that uses it. No message repeats an
argument of `check`, because that is a prompt.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from mlpm_guard.errors import BundleSaveError, DataError, InputError, InputTooLongError, MlpmGuardError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mlpm_guard.conversation import Conversation
    from mlpm_guard.datafiles import DataFile, Pair, Record
    from mlpm_guard.encoders.base import Encoder
    from mlpm_guard.guard import Guard

_FLAGGED, _ERROR, _INTERRUPTED = 1, 2, 130
_MAX_STDIN = 16 * 2**20
_MODERATOR = "default-response"
# typer's exceptions come from click or from its own copy of it, depending on its version; this is the right one either way.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class _Commands(TyperGroup):
    """Turns every failure into one line on standard error and exit code 2."""

    def main(self, args: Sequence[str] | None = None, *_: Any, standalone_mode: bool = True, **options: Any) -> Any:
        try:
            code = super().main(args, standalone_mode=False, **options)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                _say(f"error: {_usage(error)}")
            code = _ERROR
        except typer.Abort:
            code = _INTERRUPTED
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (_UsageError, typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(_INTERRUPTED) from None
        except MlpmGuardError as error:
            _fail(str(error))
        except BrokenPipeError:
            # What is still buffered would fail again, with a traceback, when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_ERROR) from None
        except SystemExit:
            # rich leaves with 1 when a pipe is closed; from `check` that would read as "flagged".
            raise typer.Exit(_ERROR) from None
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            _fail(f"{error.strerror or type(error).__name__}{where}")
        except Exception as error:
            if os.environ.get("MLPM_GUARD_DEBUG"):
                raise
            # A foreign exception's message may quote the text.
            _fail(f"unexpected {type(error).__name__}; set MLPM_GUARD_DEBUG=1 to see where, and please report it")


class _Target(StrEnum):
    PROMPT = "prompt"
    RESPONSE = "response"


app = typer.Typer(
    name="mlpm-guard",
    cls=_Commands,
    help="Prompt safety that reads a language model's own hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Bundle = Annotated[str, typer.Option("--bundle", help="A shipped guard's name, or a folder (./my-guard).")]
_Threshold = Annotated[float | None, typer.Option("--threshold", help="Flag from this probability on, 0 to 1.")]
_TextColumn = Annotated[
    str | None, typer.Option("--text-column", help="Column with the prompts; by default the first of text, prompt, ...")
]
_LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column with 0/1 or safe/unsafe; by default label.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Data = Annotated[list[Path], typer.Argument(metavar="DATA...", help="JSONL, CSV (each also .gz) or Parquet.")]


def _version(wanted: bool) -> None:
    if wanted:
        from mlpm_guard import __version__

        typer.echo(f"mlpm-guard {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Prompt safety that reads a language model's own hidden states."""


@app.command()
def check(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", show_default=False, help="The prompt; - reads standard input.")],
    bundle: _Bundle = "default",
    threshold: _Threshold = None,
    json: _Json = False,
) -> None:
    """Judge one prompt. Exit code 0: allowed; 1: flagged; 2: it could not be judged.

    A prompt that starts with - goes behind --: mlpm-guard check -- "-rf, what does it do?"
    """
    prompt = _standard_input() if text == "-" else text
    verdict = _load_guard(bundle, threshold).check(prompt)
    if json:
        typer.echo(verdict.model_dump_json())
    else:
        from mlpm_guard.rendering import show, verdict_panel

        show(verdict_panel(verdict))
    if verdict.error is not None:
        _fail(f"the text could not be judged ({verdict.error})")
    if verdict.flagged:
        raise typer.Exit(_FLAGGED)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, CSV (each also .gz) or Parquet, of any size.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where the scores go, as JSONL; by default FILE.scores.jsonl.")
    ] = None,
    bundle: _Bundle = "default",
    text_column: _TextColumn = None,
    threshold: _Threshold = None,
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
    scorer = FileScorer(_load_guard(bundle, threshold), data, out, restart=restart)
    try:
        with _progress("scoring", [data]) as advance:
            summary = scorer.run(advance)
    except KeyboardInterrupt:
        hint = "run the same command again, without --restart, to continue" if scorer.rows else "nothing was scored"
        _say(f"interrupted after {scorer.rows} rows; {hint}")
        raise typer.Exit(_INTERRUPTED) from None
    earlier = f", {summary.continued} of them by an earlier run" if summary.continued else ""
    _say(f"{summary.rows} rows in {out}{earlier}; now {summary.flagged} flagged, of which {summary.errors} could not be judged")


@app.command()
def fit(
    files: _Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the guard. A guard that is there is replaced.")],
    encoder: Annotated[
        str, typer.Option("--encoder", help='"embedded", or a Hugging Face model\'s name or folder.')
    ] = "embedded",
    text_column: _TextColumn = None,
    label_column: _LabelColumn = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Flag from this probability on, 0 to 1.")] = 0.5,
    target: Annotated[_Target, typer.Option("--target", help="What the guard judges.")] = _Target.PROMPT,
    no_statistics: Annotated[
        bool, typer.Option("--no-statistics", help="Smaller guard that can be neither extended nor corrected.")
    ] = False,
) -> None:
    """Fit a guard on labelled prompts and save it."""
    from mlpm_guard.guard import Guard

    data = _open(files, text_column, label_column)
    _check_writable(out)
    guard = Guard(_encoder(encoder), target=target.value, threshold=threshold)
    counts: Counter[int] = Counter()
    with _progress("fitting", data) as advance:
        rows, again = tee(_training_rows(guard, data, counts, advance))
        guard.fit((conversation for conversation, _ in rows), (label for _, label in again), progress=False)
    path = guard.save_pretrained(out, statistics=not no_statistics)
    typer.echo(f"{counts[0]} safe and {counts[1]} unsafe prompts")
    weights = zip(guard.encoder.layers, guard.classifier.layer_weights_.tolist(), strict=True)
    kept = ", ".join(f"{layer} ({weight:+.3f})" for layer, weight in weights if weight != 0)
    typer.echo(f"layers kept: {kept or 'none'}, of {len(guard.encoder.layers)}")
    typer.echo(f"saved {guard.bundle_id} in {path}")


@app.command()
def info(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A shipped guard's name, or a folder (./my-guard).")],
    json: _Json = False,
) -> None:
    """Show what a guard is made of. Checks its files; loads no encoder."""
    from mlpm_guard import bundle as bundles
    from mlpm_guard.rendering import bundle_json, bundle_report, show

    found = bundles.load(bundle)
    if json:
        typer.echo(bundle_json(found))
    else:
        show(bundle_report(found))


@app.command()
def evaluate(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A shipped guard's name, or a folder (./my-guard).")],
    files: _Data,
    text_column: _TextColumn = None,
    label_column: _LabelColumn = None,
    threshold: _Threshold = None,
    json: _Json = False,
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
        _fail("--report, --compare and --show-text: not with --pipeline")
    if report is None and (compare or show_text):
        _fail("--compare and --show-text need --report")
    if pipeline:
        if text_column is not None:
            _fail("--text-column: with --pipeline the columns are named by --prompt-column and --response-column")
        pairs = _Pairs(_open(files, None, label_column), prompt_column, response_column)
        _evaluate_pipeline(_load_guard(bundle, threshold), _load_guard(moderator, moderator_threshold), pairs, json)
        return
    if moderator != _MODERATOR or {moderator_threshold, prompt_column, response_column} != {None}:
        _fail("--moderator, --moderator-threshold, --prompt-column and --response-column need --pipeline")
    data = _open(files, text_column, label_column)
    if report is not None:
        _evaluate_report([(bundle, threshold), *((other, None) for other in compare or ())], data, report, show_text, json)
        return
    from mlpm_guard.evaluation.runner import evaluate as run

    guard = _load_guard(bundle, threshold)
    with _counted("evaluating", data) as count:
        evaluation = run(guard, (record for each in data for record in each), progress=count)
    if json:
        typer.echo(evaluation.model_dump_json())
    else:
        from mlpm_guard.rendering import evaluation_table, show

        show(evaluation_table(evaluation))


def _evaluate_report(
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
        (name if names.count(name) == 1 else f"{name} ({position + 1})", _load_guard(bundle, threshold))
        for position, (name, (bundle, threshold)) in enumerate(zip(names, bundles, strict=True))
    ]
    with _counted("evaluating", data) as count:
        results = collect(guards, (record for each in data for record in each), keep_text=show_text, progress=count)
    path = save_report(out, report(results, files=[each.path.name for each in data], show_text=show_text))
    for result in results:
        if json:
            typer.echo(result.evaluation().model_dump_json())
        else:
            from mlpm_guard.rendering import evaluation_table, show

            show(evaluation_table(result.evaluation()))
    _say(f"report in {path}")


class _Suite(StrEnum):
    PAPER = "paper"


@app.command()
def benchmark(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A shipped guard's name, or a folder (./my-guard).")],
    data: Annotated[Path, typer.Option("--data", help="Folder with the test sets' files, as their publishers ship them.")],
    suite: Annotated[_Suite, typer.Option("--suite", help="Which test sets.")] = _Suite.PAPER,
    threshold: _Threshold = None,
    json: _Json = False,
) -> None:
    """Measure a guard on public test sets, with the figures that others published beside it.

    Nothing is downloaded: the sets whose files are in the folder are measured, the others are named. A guard of prompts is
    measured on prompts, a guard of answers on answers.

    A file is found under its publisher's name, or as KEY.csv, KEY.jsonl or KEY.parquet of the publisher's format, KEY being
    aegis, harmbench, openai_mod, simple_safety_tests, toxicchat, wildguardtest, xstest or beavertails.
    """
    from mlpm_guard.evaluation.benchmark import run_suite

    guard = _load_guard(bundle, threshold)
    with _counted("measuring", []) as count:
        result = run_suite(guard, data, suite=suite.value, progress=count)
    if json:
        typer.echo(result.model_dump_json())
    else:
        from mlpm_guard.rendering import show, suite_table

        show(suite_table(result))


class _Pairs(NamedTuple):
    """Files of prompts with answers, and where in a row both stand."""

    files: list[DataFile]
    prompt_column: str | None
    response_column: str | None

    def rows(self) -> Iterator[Pair]:
        for file in self.files:
            yield from file.pairs(prompt_column=self.prompt_column, response_column=self.response_column)


def _evaluate_pipeline(guard: Guard, moderator: Guard, pairs: _Pairs, json: bool) -> None:
    from mlpm_guard.evaluation.pipeline import evaluate_pipeline

    with _counted("evaluating", pairs.files) as count:
        evaluation = evaluate_pipeline(guard, moderator, pairs.rows(), progress=count)
    if json:
        typer.echo(evaluation.model_dump_json())
    else:
        from mlpm_guard.rendering import pipeline_table, show

        show(pipeline_table(evaluation))


def main() -> None:
    """Run the command line and exit with its code."""
    app(prog_name="mlpm-guard")


def _load_guard(bundle: str, threshold: float | None) -> Guard:
    from mlpm_guard.guard import Guard

    return Guard.from_pretrained(bundle, threshold=threshold)


def _encoder(name: str) -> Encoder:
    if name == "embedded":
        from mlpm_guard.encoders.embedded import EmbeddedEncoder

        return EmbeddedEncoder()
    from mlpm_guard.encoders.transformer import TransformerEncoder

    return TransformerEncoder(name)


def _open(files: Sequence[Path], text_column: str | None, label_column: str | None) -> list[DataFile]:
    from mlpm_guard.datafiles import DataFile

    return [DataFile(path, text_column=text_column, label_column=label_column, require_label=True) for path in files]


def _training_rows(
    guard: Guard, data: Sequence[DataFile], counts: Counter[int], advance: Any
) -> Iterator[tuple[Conversation, Any]]:
    """Parsed here, because only here is the line known that a bad conversation stands on."""
    from mlpm_guard.conversation import Conversation

    for file in data:
        for record in file:
            try:
                conversation = Conversation.parse(record.conversation, target=guard.target)
                conversation.turn_index(guard.target)
            except InputError as error:
                raise DataError(f"{file.path}, line {record.line}: {error}") from None
            yield conversation, _label(record)
            counts[_label(record)] += 1
            advance(counts.total())


def _label(record: Record) -> int:
    assert record.label is not None
    return record.label


def _check_writable(out: Path) -> None:
    """Found out before the fit, not after it."""
    from mlpm_guard.bundle import MANIFEST

    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleSaveError(f"{out} exists and is not a guard; choose another path", out)
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BundleSaveError(f"cannot write to {parent}; choose another path", out)


def _standard_input() -> str:
    content = sys.stdin.buffer.read(_MAX_STDIN + 1)
    if len(content) > _MAX_STDIN:
        raise InputTooLongError(f"standard input is longer than {_MAX_STDIN // 2**20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 (byte {error.start + 1}); convert it first") from None
    # The line break that echo adds is not part of the prompt.
    return text.removesuffix("\n").removesuffix("\r")


@contextmanager
def _counted(what: str, data: Sequence[DataFile]) -> Iterator[Callable[[int], None]]:
    """`_progress` for a run that tells how many rows it did since it last told."""
    with _progress(what, data) as advance:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            advance(done)

        yield count


@contextmanager
def _progress(what: str, data: Sequence[DataFile]) -> Iterator[Any]:
    """A bar on standard error, by bytes read, where that is a terminal. Yields a function to call with the rows done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]} rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=sum(file.size for file in data) or None, rows=0)
        yield lambda rows: _advance(bar, task, data, rows)


def _advance(bar: Progress, task: TaskID, data: Sequence[DataFile], rows: int) -> None:
    bar.update(task, completed=sum(file.position for file in data), rows=rows)


def _usage(error: Exception) -> str:
    """What is wrong with the command line. Of an unknown word only what it could have been is told: it may be a prompt."""
    kind = type(error).__name__
    context = getattr(error, "ctx", None)
    see = f"see: {context.command_path if context is not None else 'mlpm-guard'} --help"
    if kind == "NoSuchOption":
        likely = ", ".join(getattr(error, "possibilities", None) or ())
        return (
            f"no such option{f' (did you mean {likely}?)' if likely else ''}; a text that starts with - goes behind --; {see}"
        )
    if kind in {"MissingParameter", "BadParameter", "BadOptionUsage"}:
        return f"{error.format_message().rstrip('.')}; {see}"  # type: ignore[attr-defined]
    if getattr(getattr(context, "command", None), "commands", None):
        return f"no such command; {see}"
    return f"more arguments than the command takes; a text with spaces goes in quotes; {see}"


def _say(message: str) -> None:
    """One line on standard error, whatever the message holds."""
    typer.echo("".join(char if char.isprintable() else " " for char in message), err=True)


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}")
    raise typer.Exit(_ERROR)
