import gzip
import os
import signal
import subprocess
import sys
import time

import pytest

from mlpm_guard import scoring
from mlpm_guard.testing import MockGuard
from tests.cli_support import KEYS, SECRET, error_line, jsonl, prompts, rows_of, run


@pytest.fixture
def guard(keyword_guard, monkeypatch):
    """The commands' guard, fed four rows at a time."""
    monkeypatch.setattr(scoring, "_BATCH_ROWS", 4)
    return keyword_guard


def test_score_writes_one_row_per_input_row_and_never_its_text(guard, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", prompts(10))
    result = run("score", source, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    assert "10 rows" in result.stderr
    assert "4 flagged" in result.stderr
    rows = rows_of(tmp_path / "out.jsonl")
    assert [list(row) for row in rows] == [KEYS] * 10
    assert [row["line"] for row in rows] == list(range(1, 11))
    assert [row["id"] for row in rows] == [str(i) for i in range(10)]
    assert [row["flagged"] for row in rows] == [i % 3 == 0 for i in range(10)]
    assert {row["action"] for row in rows} == {"allow", "block"}
    assert SECRET not in (tmp_path / "out.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert guard.calls == [4, 4, 2]


def test_the_score_of_a_row_is_the_score_of_check(guard, tmp_path):
    run("score", jsonl(tmp_path / "in.jsonl", prompts(4)), "--out", tmp_path / "out.jsonl")
    expected = [guard.check(row["text"]).score for row in prompts(4)]
    assert [row["score"] for row in rows_of(tmp_path / "out.jsonl")] == expected


def test_every_kind_of_file_gives_the_same_scores(guard, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = prompts(9)
    csv = "id,text,label\n" + "".join(f"{row['id']},{row['text']},{row['label']}\n" for row in rows)
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(csv.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    jsonl(tmp_path / "in.jsonl", rows)
    scored = []
    for name in ("in.jsonl", "in.csv.gz", "in.parquet"):
        assert run("score", tmp_path / name, "--out", tmp_path / f"{name}.out").exit_code == 0
        scored.append([{**row, "line": None} for row in rows_of(tmp_path / f"{name}.out")])
    assert scored[0] == scored[1] == scored[2]
    assert [row["flagged"] for row in scored[0]] == [row["label"] == 1 for row in rows]


def test_a_row_that_cannot_be_judged_is_an_error_row_and_stops_nothing(guard, tmp_path):
    guard.max_chars = 50
    rows = [
        {"text": "kind"},
        {"text": ""},
        {"text": "a" * 51},
        {"text": [{"role": "king", "content": SECRET}]},
        {"text": "unsafe"},
    ]
    result = run("score", jsonl(tmp_path / "in.jsonl", rows), "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    assert "3 could not be judged" in result.stderr.replace("of which ", "")
    written = rows_of(tmp_path / "out.jsonl")
    assert [row["error"] for row in written] == [None, "empty_input", "too_long", "invalid_input", None]
    assert [row["flagged"] for row in written] == [False, True, True, True, True]
    assert written[1]["score"] is None


def interrupted_after(guard, monkeypatch, judged):
    """From the row with this number on, judging is interrupted, as Ctrl-C does."""
    count = 0

    def flag(text):
        nonlocal count
        count += 1
        if count > judged:
            raise KeyboardInterrupt
        return 0.9 if "unsafe" in text else 0.1

    monkeypatch.setattr(guard, "_flag", flag)


@pytest.fixture
def stopped(guard, tmp_path, monkeypatch):
    """A run over 22 rows that was interrupted in its third batch of four."""
    source, out = jsonl(tmp_path / "in.jsonl", prompts(22)), tmp_path / "out.jsonl"
    run("score", source, "--out", tmp_path / "whole.jsonl")
    with monkeypatch.context() as patch:
        interrupted_after(guard, patch, 10)
        result = run("score", source, "--out", out)
    assert result.exit_code == 130
    assert "interrupted after 8 rows; run the same command again" in result.stderr
    guard.calls.clear()
    return source, out


def test_an_interrupted_run_leaves_its_rows_and_no_output(stopped):
    _, out = stopped
    assert not out.exists()
    assert len(rows_of(out.with_name("out.jsonl.partial"))) == 8
    assert SECRET not in out.with_name("out.jsonl.partial.json").read_text()


def test_a_second_run_continues_and_its_output_is_that_of_an_uninterrupted_one(guard, stopped, tmp_path):
    source, out = stopped
    result = run("score", source, "--out", out)
    assert result.exit_code == 0
    assert "8 of them by an earlier run" in result.stderr
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sum(guard.calls) == 22 - 8
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_line_that_was_cut_is_scored_again(guard, stopped, tmp_path, cut):
    source, out = stopped
    partial = out.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-cut])
    left = partial.read_bytes().count(b"\n")
    assert run("score", source, "--out", out).exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sum(guard.calls) == 22 - left


def test_whatever_a_power_cut_left_behind_the_last_line_is_dropped(guard, stopped, tmp_path):
    source, out = stopped
    partial = out.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes() + b"\0" * 10_000)
    assert run("score", source, "--out", out).exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_partial_file_of_several_chunks_is_continued_where_it_ends(guard, stopped, tmp_path, monkeypatch):
    source, out = stopped
    partial = out.with_name("out.jsonl.partial")
    partial.write_bytes(partial.read_bytes() + b'{"line": 9, "id"')
    for size in (7, 64, 1000):
        monkeypatch.setattr(scoring, "_CHUNK", size)
        with partial.open("r+b") as file:
            assert scoring._complete_lines(file, partial) == (8, 8)
    run("score", source, "--out", out)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_that_had_scored_everything_but_the_renaming_is_completed(guard, stopped, tmp_path):
    source, out = stopped
    out.with_name("out.jsonl.partial").write_bytes((tmp_path / "whole.jsonl").read_bytes())
    assert run("score", source, "--out", out).exit_code == 0
    assert guard.calls == []
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("change", ["content", "time", "threshold", "column", "bundle"])
def test_a_run_with_something_else_does_not_continue_and_restart_starts_over(guard, stopped, change, monkeypatch):
    source, out = stopped
    options = []
    if change == "content":
        jsonl(source, prompts(23))
    elif change == "time":
        os.utime(source, (1, 1))
    elif change == "threshold":
        options = ["--threshold", "0.3"]
    elif change == "column":
        options = ["--text-column", "text"]
    else:
        monkeypatch.setattr(MockGuard, "bundle_id", "another")
    kept = out.with_name("out.jsonl.partial").read_bytes()
    assert "--restart" in error_line(run("score", source, "--out", out, *options))
    assert guard.calls == []
    assert out.with_name("out.jsonl.partial").read_bytes() == kept
    assert run("score", source, "--out", out, *options, "--restart").exit_code == 0
    assert sum(guard.calls) == len(rows_of(out)) >= 22
    assert not list(out.parent.glob("*.partial*"))


@pytest.mark.parametrize("damage", ["sidecar", "no sidecar", "rows", "another line"])
def test_damaged_leftovers_are_refused_and_kept(guard, stopped, damage):
    source, out = stopped
    partial, sidecar = out.with_name("out.jsonl.partial"), out.with_name("out.jsonl.partial.json")
    if damage == "sidecar":
        sidecar.write_text("{")
    elif damage == "no sidecar":
        sidecar.unlink()
    elif damage == "rows":
        partial.write_bytes(partial.read_bytes() + b"\0\0\0\n")
    else:
        partial.write_bytes(partial.read_bytes() + b'{"line": 99}\n')
    assert "start over with --restart" in error_line(run("score", source, "--out", out))
    assert partial.stat().st_size > 0
    assert not out.exists()


def test_an_output_that_exists_is_replaced_only_by_restart_and_only_when_all_is_done(guard, tmp_path, monkeypatch):
    source, out = jsonl(tmp_path / "in.jsonl", prompts(10)), tmp_path / "out.jsonl"
    out.write_text("precious")
    assert "exists" in error_line(run("score", source, "--out", out))
    with monkeypatch.context() as patch:
        interrupted_after(guard, patch, 6)
        assert run("score", source, "--out", out, "--restart").exit_code == 130
    assert out.read_text() == "precious"
    guard.calls.clear()
    assert run("score", source, "--out", out).exit_code == 0
    assert len(rows_of(out)) == 10
    assert sum(guard.calls) == 6


def test_a_malformed_row_is_named_and_what_was_scored_is_kept(guard, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    jsonl(source, [*prompts(9), {"text": None, "id": SECRET}, *prompts(3)])
    assert "in.jsonl, line 10: 'text' is null" in error_line(run("score", source, "--out", out))
    assert len(rows_of(out.with_name("out.jsonl.partial"))) == 8
    assert not out.exists()
    jsonl(source, prompts(9))
    assert "--restart" in error_line(run("score", source, "--out", out))
    assert run("score", source, "--out", out, "--restart").exit_code == 0
    assert len(rows_of(out)) == 9


def test_a_run_that_scored_nothing_leaves_nothing(guard, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"body": SECRET}])
    assert "there is 'body'" in error_line(run("score", source, "--out", tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert run("score", source, "--out", tmp_path / "out.jsonl", "--text-column", "body").exit_code == 0


def test_bad_labels_do_not_disturb_scoring(guard, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [{"text": "a", "label": "toxic"}])
    assert run("score", source, "--out", tmp_path / "out.jsonl").exit_code == 0


def test_the_input_is_never_overwritten(guard, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", prompts(3))
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    for out in (source, tmp_path / "link.jsonl"):
        assert "is the input itself" in error_line(run("score", source, "--out", out, "--restart"))
    assert source.read_bytes() == before


def test_an_output_that_cannot_be_written_is_one_line(guard, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", prompts(3))
    assert "there is no folder" in error_line(run("score", source, "--out", tmp_path / "nowhere" / "out.jsonl"))
    assert "is a folder" in error_line(run("score", source, "--out", tmp_path))
    assert error_line(run("score", source, "--out", "/proc/out.jsonl")).startswith("error: ")


def test_a_full_disk_is_one_line_and_keeps_what_was_scored(guard, stopped, monkeypatch):
    source, out = stopped
    monkeypatch.setattr(scoring, "_row", lambda record, verdict: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert error_line(run("score", source, "--out", out)) == "error: No space left on device"
    assert len(rows_of(out.with_name("out.jsonl.partial"))) == 8
    monkeypatch.undo()


def test_an_input_that_changes_while_it_is_scored_is_not_passed_off_as_done(guard, tmp_path, monkeypatch):
    source, out = jsonl(tmp_path / "in.jsonl", prompts(6)), tmp_path / "out.jsonl"

    def flag(text):
        if text.endswith("kind 5"):
            os.utime(source, (1, 1))
        return False

    monkeypatch.setattr(guard, "_flag", flag)
    assert "changed while it was scored" in error_line(run("score", source, "--out", out))
    assert not out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
@pytest.mark.parametrize("restart", [[], ["--restart"]])
def test_two_runs_do_not_write_into_the_same_file(guard, stopped, restart):
    import fcntl

    source, out = stopped
    partial = out.with_name("out.jsonl.partial")
    before = partial.read_bytes()
    with partial.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another run is writing" in error_line(run("score", source, "--out", out, *restart))
    assert partial.read_bytes() == before


def test_long_rows_make_smaller_batches(guard, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_BATCH_CHARACTERS", 100)
    rows = [
        {"text": "a" * 60},
        {"text": "b" * 60},
        {"text": "c"},
        {"text": [{"role": "user", "content": "d" * 99}]},
        {"text": "e"},
    ]
    run("score", jsonl(tmp_path / "in.jsonl", rows), "--out", tmp_path / "out.jsonl")
    assert guard.calls == [2, 2, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_or_killed_is_continued_with_nothing_lost_or_doubled(tmp_path, stop):
    source, out = jsonl(tmp_path / "in.jsonl", prompts(100)), tmp_path / "out.jsonl"
    program = (
        # Whoever starts the tests in the background may have had the signal ignored, which children inherit.
        "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mlpm_guard import cli, scoring; from mlpm_guard.cli import opening\n"
        "from mlpm_guard.testing import MockGuard\n"
        "scoring._BATCH_ROWS = 2\n"
        "opening.load_guard = lambda b, t: MockGuard(lambda text: 'unsafe' in text, delay=float(os.environ['DELAY']))\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", program, "score", str(source), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "DELAY": "0.05"})
    partial = out.with_name("out.jsonl.partial")
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(stop)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in said
    assert not out.exists()
    assert 4 <= partial.read_bytes().count(b"\n") < 100
    subprocess.run(command, capture_output=True, timeout=60, check=True, env={**os.environ, "DELAY": "0"})
    assert [row["line"] for row in rows_of(out)] == list(range(1, 101))


def test_scores_go_beside_the_file_unless_told_otherwise(guard, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", prompts(3))
    assert run("score", source).exit_code == 0
    assert len(rows_of(tmp_path / "in.jsonl.scores.jsonl")) == 3
