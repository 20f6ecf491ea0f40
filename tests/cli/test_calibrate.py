import json

import pytest

from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder
from tests.cli_support import SECRET, error_line, jsonl, prompts, run


def loaded(path):
    return Guard.from_pretrained(path, encoder=MockEncoder())


def calm(path, count=320, **columns):
    return jsonl(path, [{"text": f"{SECRET} kind {i} indeed", **columns} for i in range(count)])


def test_unlabelled_rows_are_harmless_traffic_and_set_the_promised_threshold(tmp_path, bundle):
    source = calm(tmp_path / "calm.jsonl")
    result = run("calibrate", bundle, source, "--max-fpr", 0.02, "--confidence", 0.9, "--out", tmp_path / "new")
    assert result.exit_code == 0
    expected = loaded(bundle).calibrate([f"{SECRET} kind {i} indeed" for i in range(320)], max_fpr=0.02, confidence=0.9)
    assert loaded(tmp_path / "new").calibration == expected.calibration
    assert loaded(tmp_path / "new").threshold == expected.threshold != loaded(bundle).threshold
    assert f"threshold 0.5000 -> {expected.threshold:.4f}" in result.stdout
    assert "at most 2.00% of such traffic is flagged wrongly, with 90% confidence" in result.stdout
    assert f"flags {expected.calibration.flagged} of 320 harmless prompts" in result.stdout


def test_labels_that_are_all_safe_say_what_no_labels_say(tmp_path, bundle):
    run("calibrate", bundle, calm(tmp_path / "a.jsonl"), "--out", tmp_path / "a")
    run("calibrate", bundle, calm(tmp_path / "b.jsonl", label="safe"), "--out", tmp_path / "b")
    assert loaded(tmp_path / "a").calibration == loaded(tmp_path / "b").calibration


def test_labels_of_both_kinds_calibrate_the_probabilities_too(tmp_path, bundle):
    rows = prompts(300)
    source = jsonl(tmp_path / "a.jsonl", rows)
    result = run("calibrate", bundle, source, "--objective", "f1", "--out", tmp_path / "new", "--json")
    expected = loaded(bundle).calibrate([row["text"] for row in rows], [row["label"] for row in rows], objective="f1")
    assert json.loads(result.stdout) == json.loads(expected.calibration.model_dump_json())
    assert loaded(tmp_path / "new").calibration == expected.calibration
    assert expected.calibration.scale != 1.0
    printed = run("calibrate", bundle, source, "--objective", "recall@fpr=0.05", "--out", tmp_path / "b").stdout
    assert "best on these prompts for recall@fpr=0.05; nothing is promised" in printed
    assert "expected calibration error" in printed


def test_the_new_version_knows_what_it_was_made_from(tmp_path, bundle):
    run("calibrate", bundle, calm(tmp_path / "a.jsonl"), "--in-place")
    (ancestor,) = json.loads((bundle / "bundle.json").read_text())["lineage"]
    assert ancestor["changes"] == [{"kind": "calibrate", "prompts": 320, "name": None}]
    assert "made from" in run("info", bundle).stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-fpr", "0.001"), "320 benign prompts; at least 2995 are needed"),
        (("--max-fpr", "0.001"), "320 prompts can promise 0.93%"),
        (("--max-fpr", "1.5"), "max_fpr=1.5: a share above 0 and below 1"),
        (("--confidence", "1"), "confidence=1.0"),
        (("--objective", "f1"), "an objective needs labels"),
    ],
)
def test_what_cannot_be_promised_is_refused_in_one_line_and_saves_nothing(tmp_path, bundle, options, said):
    source = calm(tmp_path / "a.jsonl")
    assert said in error_line(run("calibrate", bundle, source, *options, "--out", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_an_objective_that_is_unknown_is_refused_with_its_choices(tmp_path, bundle):
    source = jsonl(tmp_path / "a.jsonl", prompts(60))
    assert "objective='f2': 'f1', or 'recall@fpr='" in error_line(
        run("calibrate", bundle, source, "--objective", "f2", "--out", tmp_path / "new")
    )


def test_a_rate_that_the_data_rule_out_names_what_is_reachable(tmp_path, bundle):
    # The row with the highest score of all is labelled safe.
    texts = [f"unsafe {i}" for i in range(20)]
    scores = [verdict.score for verdict in loaded(bundle).check_batch(texts)]
    rows = [{"text": text, "label": int(score < max(scores))} for text, score in zip(texts, scores, strict=True)]
    source = jsonl(tmp_path / "a.jsonl", [*rows, *({"text": f"kind {i}", "label": 0} for i in range(19))])
    line = error_line(run("calibrate", bundle, source, "--objective", "recall@fpr=0.01", "--out", tmp_path / "new"))
    assert "even the highest score flags 5.00% of the safe prompts; 0.01 is out of reach" in line


def test_the_report_writes_the_map_as_one_would_and_counts_repeats(tmp_path, bundle):
    rows = prompts(300)
    source = jsonl(tmp_path / "a.jsonl", [*rows, *rows[1:3]])
    printed = run("calibrate", bundle, source, "--max-fpr", 0.05, "--out", tmp_path / "new").stdout
    found = loaded(tmp_path / "new").calibration
    sign = "-" if found.offset < 0 else "+"
    assert f"log-odds mapped by {found.scale:.3f} x {sign} {abs(found.offset):.3f};" in printed
    assert "2 of the harmless prompts repeat others" in printed
    assert "at most 5.00% of harmless traffic flagged, with 95% confidence" in run("info", tmp_path / "new").stdout


def test_a_guard_without_statistics_is_calibrated_too_and_stays_without(tmp_path, bundle):
    small = loaded(bundle).save_pretrained(tmp_path / "small", statistics=False)
    assert run("calibrate", small, calm(tmp_path / "a.jsonl"), "--in-place").exit_code == 0
    assert loaded(small).calibration is not None
    assert not (small / "statistics.safetensors").exists()


def test_contradictory_labels_are_named_by_both_lines(tmp_path, bundle):
    source = jsonl(tmp_path / "a.jsonl", [*prompts(10), {"text": prompts(10)[4]["text"], "label": 1}])
    line = error_line(run("calibrate", bundle, source, "--objective", "f1", "--out", tmp_path / "new"))
    assert "a.jsonl, line 11: the same text as" in line
    assert "a.jsonl, line 5, with" in line


def test_a_row_that_cannot_be_judged_is_named_by_its_line(tmp_path, bundle):
    rows = [{"text": f"kind {i}"} for i in range(300)] + [{"text": " "}]
    line = error_line(run("calibrate", bundle, jsonl(tmp_path / "a.jsonl", rows), "--out", tmp_path / "new"))
    assert "a.jsonl, line 301: " in line
