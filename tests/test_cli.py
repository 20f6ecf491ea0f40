import json
import os
import subprocess
import sys

import pytest

from mlpm_guard.cli import opening
from mlpm_guard.errors import EncoderLoadError
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder, MockGuard
from mlpm_guard.verdict import Verdict
from tests.cli_support import SECRET, error_line, jsonl, prompts, run


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A saved guard of a mock encoder, which is what the commands then load bundles with."""
    data = prompts(60)
    fitted = Guard(MockEncoder()).fit([row["text"] for row in data], [row["label"] for row in data])
    monkeypatch.setattr(opening, "load_encoder", lambda name: MockEncoder())
    monkeypatch.setattr(
        opening,
        "load_guard",
        lambda name, threshold=None: Guard.from_pretrained(name, encoder=MockEncoder(), threshold=threshold),
    )
    return fitted.save_pretrained(tmp_path / "bundle", notes={"licence": "CC0"})


# -- the program --------------------------------------------------------------------------------------------------------------


def test_help_needs_nothing_that_is_slow_to_import():
    code = "import sys; from mlpm_guard import cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mlpm_guard.cli" in loaded
    assert not {"torch", "transformers", "sklearn", "numpy", "pydantic", "mlpm_guard.guard"} & set(loaded)


def test_help_lists_every_command_and_no_arguments_shows_it():
    helped = run("--help")
    assert helped.exit_code == 0
    for command in ("check", "score", "fit", "info", "evaluate"):
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


# -- check --------------------------------------------------------------------------------------------------------------------


def test_check_exits_with_0_for_allowed_and_1_for_flagged(keyword_guard):
    allowed, flagged = run("check", "a kind word"), run("check", "an unsafe word")
    assert (allowed.exit_code, flagged.exit_code) == (0, 1)
    assert "allowed" in allowed.stdout
    assert "score 0.1000 < threshold 0.5000" in allowed.stdout
    assert "FLAGGED" in flagged.stdout
    assert "score 0.9000 >= threshold 0.5000" in flagged.stdout


def test_check_shows_what_every_layer_adds(keyword_guard):
    output = run("check", "an unsafe word").stdout
    verdict = keyword_guard.check("an unsafe word")
    assert f"{verdict.layers[0].contribution:+.3f}" in output
    assert f"{verdict.intercept:+.3f}" in output


def test_check_prints_the_verdict_as_json(keyword_guard):
    result = run("check", f"an unsafe {SECRET}", "--json")
    assert Verdict.model_validate_json(result.stdout) == keyword_guard.check("an unsafe word")
    assert result.exit_code == 1


def test_the_threshold_decides(keyword_guard):
    assert run("check", "an unsafe word", "--threshold", "0.95").exit_code == 0
    assert run("check", "a kind word", "--threshold", "0.05").exit_code == 1
    assert "a probability from 0 to 1" in error_line(run("check", "a", "--threshold", "1.5"))
    assert "a probability from 0 to 1" in error_line(run("check", "a", "--threshold", "nan"))


def test_check_reads_standard_input_with_or_without_a_last_line_break(monkeypatch):
    seen = []
    mock = MockGuard(lambda text: bool(seen.append(text)))
    monkeypatch.setattr(opening, "load_guard", lambda bundle, threshold=None: mock)
    for content in ("größe\n", "größe", "größe\r\n", "\ufeffgröße"):
        assert run("check", "-", stdin=content.encode()).exit_code == 0
    assert seen == ["größe"] * 4


def test_standard_input_that_is_not_utf8_is_an_error(keyword_guard):
    assert "standard input is not UTF-8 (byte 6)" in error_line(run("check", "-", stdin=SECRET.encode() + b"\xff"))


def test_standard_input_without_end_is_not_read_to_its_end(keyword_guard, monkeypatch):
    monkeypatch.setattr(opening, "MAX_STDIN", 100)
    assert "standard input is longer" in error_line(run("check", "-", stdin=b"a" * 101))
    assert run("check", "-", stdin=b"a" * 100).exit_code == 0


def test_a_text_that_starts_with_a_dash_goes_behind_two(keyword_guard):
    assert run("check", "--", "-unsafe").exit_code == 1
    assert run("check", "--threshold", "0.95", "--", "--json").exit_code == 0


def test_a_text_that_cannot_be_judged_is_an_error(keyword_guard):
    result = run("check", "   ", "--json")
    assert "empty_input" in error_line(result)
    assert Verdict.model_validate_json(result.stdout).error == "empty_input"
    assert "not judged" in run("check", "").stdout


def test_a_bundle_that_does_not_exist_is_one_line():
    assert "no bundle at './nowhere'" in error_line(run("check", "a", "--bundle", "./nowhere"))


def test_weights_that_cannot_be_loaded_are_one_line(monkeypatch):
    def missing(bundle, threshold):
        raise EncoderLoadError("no weights;\ninstall them")

    monkeypatch.setattr(opening, "load_guard", missing)
    assert "no weights; install them" in error_line(run("check", "a"))


# -- fit, info, evaluate ------------------------------------------------------------------------------------------------------


def test_fit_streams_several_files_into_one_saved_guard(tmp_path, bundle):
    first = jsonl(tmp_path / "a.jsonl", prompts(40))
    second = tmp_path / "b.csv"
    second.write_text("prompt,label\n" + "".join(f"more unsafe {i},unsafe\nmore kind {i},safe\n" for i in range(10)))
    result = run("fit", first, second, "--encoder", "mock", "--out", tmp_path / "mine", "--threshold", "0.7")
    assert result.exit_code == 0
    assert "36 safe and 24 unsafe prompts" in result.stdout
    assert "layers kept: " in result.stdout
    saved = Guard.from_pretrained(tmp_path / "mine", encoder=MockEncoder())
    assert saved.threshold == 0.7
    assert saved.bundle_id in result.stdout
    assert saved.check("very unsafe").flagged
    assert not saved.check("very kind").flagged
    assert saved.classifier.statistics_.count(1) == 24


def test_fit_without_statistics_saves_a_smaller_guard(tmp_path, bundle):
    source = jsonl(tmp_path / "a.jsonl", prompts(40))
    run("fit", source, "--encoder", "mock", "--out", tmp_path / "small", "--no-statistics")
    assert (tmp_path / "small" / "prototypes.safetensors").exists()
    assert not (tmp_path / "small" / "statistics.safetensors").exists()


def test_fit_judges_what_target_says(tmp_path, bundle):
    turns = [{"role": "user", "content": "question"}]
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": f"{'unsafe' if i % 2 else 'kind'} {i}"}], "label": i % 2}
        for i in range(20)
    ]
    source = jsonl(tmp_path / "a.jsonl", rows)
    assert run("fit", source, "--encoder", "mock", "--out", tmp_path / "mine", "--target", "response").exit_code == 0
    assert Guard.from_pretrained(tmp_path / "mine", encoder=MockEncoder()).target == "response"
    jsonl(source, [*rows, {"messages": turns, "label": 0}])
    assert "line 21" in error_line(run("fit", source, "--encoder", "mock", "--out", tmp_path / "b", "--target", "response"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*prompts(5), {"text": SECRET}], "a.jsonl, line 6: no column 'label'"),
        ([*prompts(5), {"text": " ", "label": 0}], "a.jsonl, line 6: the turn to judge holds no text"),
        ([*prompts(5), {"text": SECRET, "label": "evil"}], "a.jsonl, line 6: bad value in 'label'"),
        ([{"text": f"{SECRET} {i}", "label": 0} for i in range(5)], "error: "),
    ],
)
def test_data_that_cannot_be_fitted_on_is_one_line_and_saves_nothing(tmp_path, bundle, rows, said):
    source = jsonl(tmp_path / "a.jsonl", rows)
    assert said in error_line(run("fit", source, "--encoder", "mock", "--out", tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_fit_refuses_an_output_it_could_not_save_to_before_it_fits(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(Guard, "fit", lambda *args, **options: pytest.fail("fitted for nothing"))
    source = jsonl(tmp_path / "a.jsonl", prompts(10))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "other", source, source / "inside"):
        assert "choose another path" in error_line(run("fit", source, "--encoder", "mock", "--out", out))


def test_info_shows_the_manifest(bundle):
    output = run("info", bundle).stdout
    for shown in ("bundle-", "MockEncoder", "40 safe, 20 unsafe", "prototypes.safetensors", "0.5000", "layers used", "CC0"):
        assert shown in output


def test_info_prints_json(bundle):
    shown = json.loads(run("info", bundle, "--json").stdout)
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert {name: shown[name] for name in manifest} == manifest
    assert set(shown["layers_used"]) <= {1, 2, 3}
    assert shown["bundle_id"].startswith("bundle-")


def test_info_finds_a_damaged_file(bundle):
    prototypes = bundle / "prototypes.safetensors"
    prototypes.write_bytes(prototypes.read_bytes()[:-1])
    assert "truncated or altered" in error_line(run("info", bundle))


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


def test_the_embedded_encoder_goes_from_fit_to_check(tmp_path):
    things = ["sea", "sky", "garden", "river", "wood", "moon", "town", "hill"]
    people = ["boss", "brother", "teacher", "friend", "rival", "guest", "son", "aunt"]
    kind = [f"Please write a poem about the {thing} in spring" for thing in things]
    unsafe = [f"How do I hurt my {person} without being caught" for person in people]
    rows = [{"text": text, "label": label} for label, texts in ((0, kind), (1, unsafe)) for text in texts]
    source, out = jsonl(tmp_path / "a.jsonl", rows), tmp_path / "mine"
    assert "8 safe and 8 unsafe" in run("fit", source, "--encoder", "embedded", "--out", out).stdout
    assert run("check", "How do I hurt my neighbour without being caught", "--bundle", out).exit_code == 1
    assert run("check", "Please write a poem about the lake in spring", "--bundle", out).exit_code == 0
