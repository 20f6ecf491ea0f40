import json

import pytest

from mlpm_guard.cli import opening
from mlpm_guard.comparing import Diff
from mlpm_guard.testing import MockGuard
from tests.cli_support import SECRET, error_line, jsonl, run

ROWS = [{"id": f"row-{i}", "text": f"{SECRET} {word} {i}"} for i, word in enumerate(["calm", "odd", "harsh", "odd"])]


@pytest.fixture(autouse=True)
def guards(monkeypatch):
    """Two guards: the new one also flags what is odd."""
    known = {
        "old": MockGuard(lambda text: 0.9 if "harsh" in text else 0.2),
        "new": MockGuard(lambda text: 0.9 if "harsh" in text else 0.7 if "odd" in text else 0.2),
        "answers": MockGuard(target="response"),
    }
    monkeypatch.setattr(opening, "load_guard", lambda name, threshold=None: known[name])


def test_the_exit_code_says_whether_anything_flips(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", ROWS)
    assert run("diff", "old", "old", source).exit_code == 0
    assert run("diff", "old", "new", source).exit_code == 1
    assert "cannot be compared" in error_line(run("diff", "old", "answers", source))


def test_flips_are_listed_by_id_without_their_text(tmp_path):
    output = run("diff", "old", "new", jsonl(tmp_path / "a.jsonl", ROWS)).stdout
    listed = [line.split() for line in output.splitlines() if line.startswith("row-")]
    assert listed == [["row-1", "newly", "flagged", "0.2000", "0.7000"], ["row-3", "newly", "flagged", "0.2000", "0.7000"]]
    assert "2 of 4 prompts are judged differently: 2 newly flagged" in output
    assert "precision" not in output


def test_labels_add_the_metrics_and_what_is_for_the_better(tmp_path):
    rows = [{**row, "label": label} for row, label in zip(ROWS, (0, 1, 1, 0), strict=True)]
    output = run("diff", "old", "new", jsonl(tmp_path / "a.jsonl", rows)).stdout
    cells = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.startswith(("precision", "recall "))}
    assert cells["precision"][:3] == ["1.000", "0.667", "-0.333"]
    assert "1 for the better, 1 for the worse" in output


def test_rows_without_an_id_are_named_by_their_line(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"text": row["text"]} for row in ROWS])
    assert "a, line 2" in run("diff", "old", "new", source).stdout


def test_text_is_shown_when_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.cli_support.SECRET", "never said")
    rows = [*ROWS, {"id": "turns", "text": "odd\x1b[2J\n[red]"}]
    output = run("diff", "old", "new", jsonl(tmp_path / "a.jsonl", rows), "--show-text").stdout
    assert f"{SECRET} odd 1" in output
    assert f"{SECRET} calm 0" not in output
    assert "\x1b" not in output
    assert "[red]" in output


def test_the_result_is_printed_as_json(tmp_path):
    found = Diff.model_validate_json(run("diff", "old", "new", jsonl(tmp_path / "a.jsonl", ROWS), "--json").stdout)
    assert [flip.id for flip in found.flips] == ["row-1", "row-3"]


def test_many_flips_are_cut_short_on_screen_and_whole_in_json(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"odd {i}"} for i in range(80)])
    output = run("diff", "old", "new", source).stdout
    assert sum("newly flagged" in line and "line" in line for line in output.splitlines()) == 50
    assert "30 more are in the --json output" in output
    assert len(json.loads(run("diff", "old", "new", source, "--json").stdout)["flips"]) == 80


def test_files_of_different_formats_are_compared_on_together(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", ROWS)
    second = tmp_path / "b.csv"
    second.write_text("prompt\nan odd one\n")
    assert "3 of 5 prompts" in run("diff", "old", "new", first, second).stdout


def test_a_file_where_only_some_rows_have_labels_is_refused_by_its_line(tmp_path):
    rows = [{**ROWS[0], "label": 0}, ROWS[1]]
    assert "line 2: no column 'label'" not in error_line(run("diff", "old", "new", jsonl(tmp_path / "a.jsonl", rows)))
    assert "line 2: no label, and the rows before have one" in error_line(run("diff", "old", "new", tmp_path / "a.jsonl"))
    rows = [ROWS[0], {**ROWS[1], "label": 0}]
    assert "line 2: a label, and the rows before have none" in error_line(
        run("diff", "old", "new", jsonl(tmp_path / "a.jsonl", rows))
    )


def test_the_same_prompt_with_both_labels_is_named_by_both_lines(tmp_path):
    rows = [{**row, "label": number % 2} for number, row in enumerate(ROWS)]
    source = jsonl(tmp_path / "a.jsonl", [*rows, {**rows[1], "label": 0}])
    line = error_line(run("diff", "old", "new", source))
    assert "a.jsonl, line 5: the same text as" in line
    assert "a.jsonl, line 2, with another label" in line
