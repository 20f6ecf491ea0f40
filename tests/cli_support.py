"""What the tests of the commands share."""

import json

from typer.testing import CliRunner

from mlpm_guard import cli

SECRET = "xyzzy"
KEYS = ["line", "id", "flagged", "score", "action", "category", "error", "bundle_id"]


def run(*args, stdin=None):
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], input=stdin)
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def error_line(result):
    """The one line of a failure."""
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(count):
    return [
        {"id": i, "text": f"{SECRET} {'unsafe' if i % 3 == 0 else 'kind'} {i}", "label": int(i % 3 == 0)} for i in range(count)
    ]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
