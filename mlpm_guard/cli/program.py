"""The program around the commands: one line for every failure, and exit codes that say what happened."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mlpm_guard.errors import MlpmGuardError

FLAGGED, DIFFERENT, ERROR, REVIEW, INTERRUPTED = 1, 1, 2, 3, 130
"""Exit codes: flagged, guards differ, it could not be done, to be reviewed, the user stopped it. 0 is everything else."""

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
                say(f"error: {_usage(error)}")
            code = ERROR
        except typer.Abort:
            code = INTERRUPTED
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (_UsageError, typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except MlpmGuardError as error:
            fail(str(error))
        except BrokenPipeError:
            # What is still buffered would fail again, with a traceback, when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ERROR) from None
        except SystemExit:
            # rich leaves with 1 when a pipe is closed; from `check` that would read as "flagged".
            raise typer.Exit(ERROR) from None
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            fail(f"{error.strerror or type(error).__name__}{where}")
        except Exception as error:
            if os.environ.get("MLPM_GUARD_DEBUG"):
                raise
            # A foreign exception's message may quote the text.
            fail(f"unexpected {type(error).__name__}; set MLPM_GUARD_DEBUG=1 to see where, and please report it")


app = typer.Typer(
    name="mlpm-guard",
    cls=_Commands,
    help="Prompt safety that reads a language model's own hidden states.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit with its code."""
    app(prog_name="mlpm-guard")


def say(message: str) -> None:
    """One line on standard error, whatever the message holds."""
    typer.echo("".join(char if char.isprintable() else " " for char in message), err=True)


def fail(message: str) -> NoReturn:
    """Say what went wrong, and end with exit code 2."""
    say(f"error: {message}")
    raise typer.Exit(ERROR)


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
