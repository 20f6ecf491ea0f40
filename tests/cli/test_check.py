from mlpm_guard.cli import opening
from mlpm_guard.errors import EncoderLoadError
from mlpm_guard.testing import MockGuard
from mlpm_guard.verdict import Verdict
from tests.cli_support import SECRET, error_line, run


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
