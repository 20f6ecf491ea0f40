import json

from tests.cli_support import SECRET, error_line, jsonl, prompts, run


def test_evaluate_measures_overall_and_by_source(tmp_path, bundle):
    good = jsonl(tmp_path / "good.jsonl", prompts(30))
    # Labelled the wrong way round, so that every judgement is wrong.
    bad = jsonl(tmp_path / "bad.jsonl", [{**row, "label": 1 - row["label"]} for row in prompts(30)])
    measured = json.loads(run("evaluate", bundle, good, bad, "--json").stdout)
    assert measured["sources"]["good"]["recall"] == 1.0
    assert measured["sources"]["bad"]["recall"] == 0.0
    assert measured["overall"]["n"] == 60
    assert measured["overall"]["false_positive_rate"] == 1 / 3
    table = run("evaluate", bundle, good, bad).stdout.splitlines()
    assert table[0].split()[:5] == ["source", "rows", "unsafe", "precision", "recall"]
    assert [line.split()[:5] for line in table if line.split()[0] in {"good", "bad", "all"}] == [
        ["bad", "30", "20", "0.000", "0.000"],
        ["good", "30", "10", "1.000", "1.000"],
        ["all", "60", "30", "0.500", "0.333"],
    ]


def test_evaluate_obeys_the_threshold_and_needs_labels(tmp_path, bundle):
    source = jsonl(tmp_path / "a.jsonl", prompts(12))
    assert (
        json.loads(run("evaluate", bundle, source, "--json", "--threshold", "0").stdout)["overall"]["false_positive_rate"]
        == 1.0
    )
    unlabelled = jsonl(tmp_path / "b.jsonl", [{"text": SECRET}])
    assert "line 1: no column 'label'" in error_line(run("evaluate", bundle, unlabelled))


def test_a_source_cannot_steer_the_terminal(tmp_path, bundle):
    rows = [{**row, "source": "\x1b[2Jevil\n[red]" if i % 2 else "b"} for i, row in enumerate(prompts(12))]
    output = run("evaluate", bundle, jsonl(tmp_path / "a.jsonl", rows)).stdout
    assert "\x1b" not in output
    assert "[red]" in output
