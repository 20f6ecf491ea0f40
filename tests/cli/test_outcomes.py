"""What the commands show of rules, reviews, novelty and lineage."""

from mlpm_guard import Review, Rules
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder
from mlpm_guard.verdict import Verdict
from tests.cli_support import SECRET, run


def test_check_exits_with_3_where_a_person_is_to_look(keyword_guard):
    keyword_guard.review = Review(score=0.05)
    result = run("check", "a kind word")
    assert result.exit_code == 3
    assert "to be reviewed" in result.stdout
    assert "action: review" in result.stdout
    assert run("check", "an unsafe word").exit_code == 1
    keyword_guard.mode = "monitor"
    assert run("check", "a kind word").exit_code == 0


def test_check_names_the_rule_that_decided_and_shows_no_text(keyword_guard):
    keyword_guard.rules = Rules(allow={"mine": f"unsafe {SECRET}"}, block=[SECRET, "kind"])
    blocked, allowed = run("check", f"about {SECRET}"), run("check", "a kind word")
    assert (blocked.exit_code, allowed.exit_code) == (1, 1)
    assert "block entry 0 (raw)" in blocked.stdout
    assert "block entry 1 (raw)" in allowed.stdout
    assert SECRET not in blocked.stdout
    keyword_guard.rules = Rules(allow={"mine": f"unsafe {SECRET}"})
    allowed = run("check", f"unsafe {SECRET}")
    assert allowed.exit_code == 0
    assert "allow entry mine" in allowed.stdout
    shown = Verdict.model_validate_json(run("check", f"unsafe {SECRET}", "--json").stdout)
    assert shown == keyword_guard.check(f"unsafe {SECRET}")


def test_check_tells_how_novel_a_prompt_is(bundle):
    assert "novelty: farther from the training prompts than" in run("check", "a word", "--bundle", bundle).stdout


def test_info_shows_rules_reviews_and_where_a_bundle_comes_from(bundle, tmp_path):
    guard = Guard.from_pretrained(bundle, encoder=MockEncoder())
    parent = guard.bundle_id
    guard.rules, guard.review = Rules(allow=[SECRET], block=["x", "y"]), Review(score=0.25)
    guard.partial_fit(["one more calm text"], ["safe"], progress=False)
    output = run("info", guard.save_pretrained(tmp_path / "child")).stdout
    for shown in ("1 allowed, 2 blocked", "score from 0.25", f"{parent}: partial_fit (1 prompts), rules, review"):
        assert shown in output
    assert SECRET not in output
