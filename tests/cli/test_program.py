import os
import subprocess
import sys

import pytest

from mlpm_guard.cli import opening
from tests.cli_support import SECRET, error_line, run


def test_help_needs_nothing_that_is_slow_to_import():
    code = "import sys; from mlpm_guard import cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mlpm_guard.cli" in loaded
    assert not {"torch", "transformers", "sklearn", "numpy", "pydantic", "mlpm_guard.guard"} & set(loaded)


def test_help_lists_every_command_and_no_arguments_shows_it():
    helped = run("--help")
    assert helped.exit_code == 0
    for command in ("check", "score", "explain", "info", "fit", "correct", "calibrate", "diff", "evaluate", "benchmark"):
        assert command in helped.stdout
    assert "Commands" in run().output


def test_version_is_printed():
    from mlpm_guard import __version__

    result = run("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"mlpm-guard {__version__}")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("check", "what", "is", SECRET), "goes in quotes"),
        (("check", f"--{SECRET}", "a"), "no such option"),
        (("check", f"-{SECRET}"), "goes behind --"),
        (("check", "a", "--treshold", "0.1"), "did you mean --threshold"),
        ((f"tell me about {SECRET}",), "no such command"),
        ((f"-{SECRET}",), "no such option"),
        (("check",), "Missing argument"),
        (("check", "a", "--threshold", "high"), "--threshold"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_repeats_no_text(args, said):
    assert said in error_line(run(*args))


def test_an_unexpected_failure_is_one_line_without_its_message(monkeypatch):
    def broken(bundle, threshold):
        raise RuntimeError(f"about {SECRET}")

    monkeypatch.setattr(opening, "load_guard", broken)
    assert "unexpected RuntimeError" in error_line(run("check", "a"))


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_reader_that_is_gone_is_an_error_and_not_a_judgement(bundle, json_too):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from mlpm_guard.cli import main; main()", "info", str(bundle), *json_too]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "")
