import json

import pytest

from mlpm_guard.cli import opening
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder
from tests.cli_support import SECRET, error_line, jsonl, prompts, run

TEXT = f"a very unsafe {SECRET}"


def loaded(path):
    return Guard.from_pretrained(path, encoder=MockEncoder())


def counts(path):
    return [loaded(path).classifier.statistics_.count(label) for label in (0, 1)]


def test_a_correction_makes_a_new_version_that_knows_what_it_was_made_from(tmp_path, bundle):
    before = (bundle / "bundle.json").read_bytes()
    result = run("correct", bundle, "--text", TEXT, "--label", "safe", "--repeat", 200, "--out", tmp_path / "new")
    assert result.exit_code == 0
    assert (bundle / "bundle.json").read_bytes() == before
    assert (counts(bundle), counts(tmp_path / "new")) == ([40, 20], [240, 20])
    assert not loaded(tmp_path / "new").check(TEXT).flagged
    assert "now passes" in result.stdout
    assert "judged as labelled" in result.stdout
    made_from = json.loads((tmp_path / "new" / "bundle.json").read_text())["lineage"]
    assert made_from[-1]["bundle_id"] == loaded(bundle).bundle_id
    assert [change["kind"] for change in made_from[-1]["changes"]] == ["partial_fit"]


def test_scores_before_and_after_are_printed(tmp_path, bundle):
    result = run("correct", bundle, "--text", TEXT, "--label", "safe", "--out", tmp_path / "new")
    assert f"{loaded(bundle).check(TEXT).score:.4f}" in result.stdout
    assert f"{loaded(tmp_path / 'new').check(TEXT).score:.4f}" in result.stdout


def test_a_correction_that_does_not_suffice_is_saved_and_says_what_else_there_is(tmp_path, bundle):
    result = run("correct", bundle, "--text", TEXT, "--label", "safe", "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert loaded(tmp_path / "new").check(TEXT).flagged
    for said in ("still flagged", "1 of 1 still judged otherwise", "--repeat 16", "calibrate", "Rules(allow="):
        assert said in result.stdout


def test_what_was_learned_under_the_other_label_is_forgotten(tmp_path, bundle):
    learned = prompts(60)[3]["text"]
    result = run("correct", bundle, "--text", learned, "--label", "safe", "--out", tmp_path / "new")
    assert "learned before under the other label, and forgotten: 1" in result.stdout
    assert counts(tmp_path / "new") == [41, 19]
    kinds = json.loads((tmp_path / "new" / "bundle.json").read_text())["lineage"][-1]["changes"]
    assert [change["kind"] for change in kinds] == ["forget", "partial_fit"]


def test_corrections_come_from_a_file_too(tmp_path, bundle):
    rows = [{"text": f"new kind {SECRET} {i}", "label": "unsafe"} for i in range(3)]
    source = jsonl(tmp_path / "c.jsonl", rows)
    result = run("correct", bundle, "--file", source, "--out", tmp_path / "new", "--json")
    shown = json.loads(result.stdout)
    assert [each["label"] for each in shown["corrections"]] == [1, 1, 1]
    assert shown["bundle_id"] == loaded(tmp_path / "new").bundle_id
    assert shown["diff"] is None
    assert counts(tmp_path / "new") == [40, 23]


def test_text_comes_from_standard_input(tmp_path, bundle):
    run("correct", bundle, "--text", "-", "--label", "safe", "--repeat", 200, "--out", tmp_path / "new", stdin=TEXT + "\n")
    assert not loaded(tmp_path / "new").check(TEXT).flagged


def test_data_show_the_side_effects(tmp_path, bundle):
    source = jsonl(tmp_path / "a.jsonl", prompts(30))
    wrong = jsonl(tmp_path / "c.jsonl", [{"text": f"very unsafe {i} indeed", "label": "safe"} for i in range(40)])
    options = ("--file", wrong, "--repeat", 5, "--data", source)
    shown = json.loads(run("correct", bundle, *options, "--out", tmp_path / "a", "--json").stdout)["diff"]
    assert shown["prompts"] == 30
    assert {flip["direction"] for flip in shown["flips"]} == {"newly_flagged"}
    assert shown["changes"]["false_positive_rate"]["change"] > 0
    assert shown["after"]["bundle_id"] == loaded(tmp_path / "a").bundle_id
    printed = run("correct", bundle, *options, "--out", tmp_path / "b").stdout
    assert f"{len(shown['flips'])} of 30 prompts are judged differently" in printed
    assert f"0 for the better, {len(shown['flips'])} for the worse" in printed


def test_the_guard_itself_is_replaced_only_where_that_is_said(tmp_path, bundle):
    options = ("--text", TEXT, "--label", "safe")
    before = counts(bundle)
    assert "choose another folder, or say --in-place" in error_line(run("correct", bundle, *options, "--out", bundle))
    assert "either --out FOLDER, or --in-place" in error_line(run("correct", bundle, *options))
    assert "either --out FOLDER" in error_line(run("correct", bundle, *options, "--in-place", "--out", tmp_path / "new"))
    assert counts(bundle) == before
    run("correct", bundle, *options, "--in-place")
    assert counts(bundle) == [41, 20]


def test_a_guard_that_ships_is_never_replaced(monkeypatch):
    monkeypatch.setattr(opening, "load_guard", lambda *_: pytest.fail("loaded"))
    assert "ships with the library" in error_line(run("correct", "default", "--text", "a", "--label", "safe", "--in-place"))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--text", SECRET),
        ("--label", "safe"),
        ("--file", "a.jsonl", "--label", "safe"),
        ("--text", SECRET, "--label", "safe", "--file", "a.jsonl"),
    ],
)
def test_a_text_needs_a_label_and_takes_the_place_of_a_file(tmp_path, bundle, options):
    assert "either --text with --label, or --file" in error_line(run("correct", bundle, *options, "--out", tmp_path / "new"))


def test_a_correction_may_name_a_category(tmp_path, bundle):
    rows = [{"text": f"new unsafe {i}", "label": "unsafe", "topic": "drugs" if i % 2 else "fraud"} for i in range(20)]
    source = jsonl(tmp_path / "c.jsonl", [*rows, {"text": "calm", "label": "safe", "topic": None}])
    run("correct", bundle, "--file", source, "--category-column", "topic", "--out", tmp_path / "a")
    assert loaded(tmp_path / "a").list_categories() == ["drugs", "fraud"]
    options = ("--text", "another unsafe one", "--label", "unsafe", "--repeat", 6)
    run("correct", bundle, *options, "--category", "crime", "--out", tmp_path / "b")
    learned = loaded(tmp_path / "b").classifier.statistics_.categories.sums
    assert learned["crime"].count == 6
    assert "--label unsafe" in error_line(
        run("correct", bundle, "--text", "a", "--label", "safe", "--category", "crime", "--out", tmp_path / "c")
    )
    assert "--category-column" in error_line(
        run("correct", bundle, *options, "--category-column", "x", "--out", tmp_path / "c")
    )
    assert "a category's name is" in error_line(run("correct", bundle, *options, "--category", "?!", "--out", tmp_path / "c"))


def test_a_label_that_is_none_is_refused(tmp_path, bundle):
    assert "--label" in error_line(run("correct", bundle, "--text", SECRET, "--label", "fine", "--out", tmp_path / "new"))


def test_bad_corrections_and_bad_data_leave_nothing_behind(tmp_path, bundle):
    both = jsonl(tmp_path / "c.jsonl", [{"text": SECRET, "label": 0}, {"text": "b", "label": 0}, {"text": SECRET, "label": 1}])
    line = error_line(run("correct", bundle, "--file", both, "--out", tmp_path / "new"))
    assert "c.jsonl, line 3: the same text as" in line
    assert "c.jsonl, line 1, with another label" in line
    broken = tmp_path / "d.jsonl"
    broken.write_text('{"text": "a"}\n{"text": ')
    options = ("--text", TEXT, "--label", "safe", "--data", broken, "--out", tmp_path / "new")
    assert "d.jsonl, line 2: not JSON" in error_line(run("correct", bundle, *options))
    both = jsonl(tmp_path / "e.jsonl", [{"text": SECRET, "label": 0}, {"text": SECRET, "label": 1}])
    options = ("--text", TEXT, "--label", "safe", "--data", both, "--out", tmp_path / "new")
    assert "e.jsonl, line 2: the same text as" in error_line(run("correct", bundle, *options))
    assert "repeat=0" in error_line(
        run("correct", bundle, "--text", TEXT, "--label", "safe", "--repeat", 0, "--out", tmp_path / "new")
    )
    assert not (tmp_path / "new").exists()


def test_a_correction_ends_a_calibration_and_says_so(tmp_path, bundle):
    calm = jsonl(tmp_path / "calm.jsonl", [{"text": f"kind {i} indeed"} for i in range(320)])
    run("calibrate", bundle, calm, "--out", tmp_path / "calibrated")
    result = run("correct", tmp_path / "calibrated", "--text", TEXT, "--label", "safe", "--out", tmp_path / "new")
    assert "no longer calibrated" in result.stderr
    assert loaded(tmp_path / "new").calibration is None
    assert loaded(tmp_path / "new").threshold == loaded(tmp_path / "calibrated").threshold
