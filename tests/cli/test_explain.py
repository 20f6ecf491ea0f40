import re

import pytest

from mlpm_guard.explanation import CategoryEvidence, Explanation
from mlpm_guard.guard import Guard
from mlpm_guard.rendering.console import show
from mlpm_guard.rendering.explanations import explanation_report
from mlpm_guard.testing import MockEncoder
from tests.cli_support import SECRET, error_line, run

LONG = f"A calm sentence about the garden. An unsafe {SECRET} in the middle of it. " + "Another calm sentence follows it. " * 60


def loaded(path):
    return Guard.from_pretrained(path, encoder=MockEncoder())


def drawn(explanation, capsys):
    show(explanation_report(explanation))
    return capsys.readouterr().out


def row(output, name):
    (found,) = [line for line in output.splitlines() if line.startswith(name)]
    return found


def test_what_is_drawn_adds_up_to_the_log_odds(bundle):
    result = run("explain", f"an unsafe {SECRET}", "--bundle", bundle)
    assert result.exit_code == 0
    verdict = loaded(bundle).check(f"an unsafe {SECRET}")
    for layer in verdict.layers:
        cells = row(result.stdout, f"{layer.layer} ").split()
        assert [cells[0], cells[3]] == [str(layer.layer), f"{layer.contribution:+.3f}"]
    assert row(result.stdout, "intercept").split()[1] == f"{verdict.intercept:+.3f}"
    assert row(result.stdout, "sum = log-odds").split()[3] == f"{verdict.log_odds:+.3f}"
    assert f"score {verdict.score:.4f} >= threshold 0.5000" in result.stdout


def test_bars_point_to_the_side_that_a_number_speaks_for(bundle):
    output = run("explain", f"an unsafe {SECRET}", "--bundle", bundle).stdout
    verdict = loaded(bundle).check(f"an unsafe {SECRET}")
    for name, value in [("intercept", verdict.intercept), ("sum = log-odds", verdict.log_odds)]:
        left, right = row(output, name).split("│")
        assert ("█" in left, "█" in right) == (value < 0, value > 0)
    lengths = [row(output, f"{layer.layer} ").count("█") for layer in verdict.layers]
    order = sorted(range(len(lengths)), key=lambda at: abs(verdict.layers[at].contribution))
    assert [lengths[at] for at in order] == sorted(lengths)


def test_every_piece_of_a_long_text_is_listed_the_highest_score_first(bundle):
    output = run("explain", LONG, "--bundle", bundle).stdout
    explanation = loaded(bundle).explain(LONG)
    assert f"{len(explanation.windows)} pieces were judged" in output
    scores = [float(each) for each in re.findall(r"^turn, .*? of \d+ +(\d\.\d{4}) ", output, flags=re.MULTILINE)]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 15
    assert f"{len(explanation.windows) - 15} with lower scores are in the --json output" in output
    (decides,) = [line for line in output.splitlines() if line.startswith("turn") and line.endswith("decides")]
    assert f"{explanation.verdict.score:.4f}" in decides


def test_distances_to_the_prototypes_are_drawn_where_they_are_measured(bundle):
    output = run("explain", f"an unsafe {SECRET}", "--bundle", bundle).stdout
    prototypes = loaded(bundle).explain(f"an unsafe {SECRET}").prototypes
    if not prototypes:
        pytest.skip("this guard measures no distances")
    for each in prototypes:
        assert row(output, each.name).split()[1] == f"{each.distance:.1f}"


def test_categories_are_drawn_with_the_threshold_that_they_flag_from(bundle, capsys):
    plain = loaded(bundle).explain("an unsafe word")
    evidence = [
        CategoryEvidence(
            name=f"[red]topic-{i}\x1b[2J", probability=0.9 - 0.02 * i, threshold=0.89, log_odds=0.0, layers=(), intercept=0.0
        )
        for i in range(20)
    ]
    output = drawn(plain.model_copy(update={"categories": tuple(evidence)}), capsys)
    assert row(output, "[red]topic-0").split()[1:3] == ["0.9000", "0.8900"]
    assert "\x1b" not in output
    assert "5 less likely ones are in the --json output" in output


def test_the_explanation_is_printed_as_json(bundle):
    shown = Explanation.model_validate_json(run("explain", f"an unsafe {SECRET}", "--bundle", bundle, "--json").stdout)
    assert shown == loaded(bundle).explain(f"an unsafe {SECRET}")


def test_text_comes_from_standard_input_and_the_threshold_decides(bundle):
    output = run("explain", "-", "--bundle", bundle, "--threshold", "0.01", stdin=b"a kind word\n").stdout
    assert ">= threshold 0.0100" in output


def test_a_text_that_cannot_be_judged_is_an_error(bundle):
    assert "empty_input" in error_line(run("explain", " ", "--bundle", bundle))


def test_a_verdict_by_a_rule_is_explained_by_the_rule(bundle):
    from mlpm_guard.rules import Rules

    guard = loaded(bundle)
    guard.rules = Rules(block={"mine": "a kind word"})
    guard.save_pretrained(bundle)
    output = run("explain", "a kind word", "--bundle", bundle).stdout
    assert "by the guard's own rules: block entry mine" in output
    assert "nats" not in output
