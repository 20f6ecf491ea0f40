"""The third outcome: what is not flagged and is to be looked at all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpm_guard import Action, ConfigurationError, Guard, PromptBlocked, ResponseBlocked, Review, Rules, StreamModerator
from mlpm_guard import bundle as bundles
from mlpm_guard.policy import worse
from mlpm_guard.testing import MockEncoder, MockGuard


def scored(**options: object) -> MockGuard:
    """A guard whose score stands in the text."""
    return MockGuard(lambda text: float(text.split()[-1]), **options)


def actions(guard: Guard, *scores: float) -> list[str]:
    return [verdict.action.value for verdict in guard.check_batch([f"score {score}" for score in scores])]


def test_nothing_is_reviewed_unless_it_is_asked_for() -> None:
    assert actions(scored(), 0.1, 0.49, 0.51) == ["allow", "allow", "block"]


def test_a_borderline_score_is_reviewed_and_not_flagged() -> None:
    guard = scored(review=Review(score=0.3))
    assert actions(guard, 0.1, 0.29, 0.31, 0.49, 0.51) == ["allow", "allow", "review", "review", "block"]
    verdict = guard.check("score 0.4")
    assert (verdict.flagged, verdict.allowed, verdict.blocked) == (False, False, False)


def test_monitor_mode_reviews_nothing() -> None:
    assert actions(scored(review=Review(score=0.3), mode="monitor"), 0.4, 0.6) == ["allow", "allow"]


def test_a_review_above_the_threshold_has_no_effect() -> None:
    assert actions(scored(review=Review(score=0.9)), 0.4, 0.6) == ["allow", "block"]


def test_errors_and_rules_are_never_reviewed() -> None:
    guard = scored(review=Review(score=0.0), on_error="allow", rules=Rules(allow=["fine"]))
    assert guard.check("").action is Action.ALLOW
    assert guard.check("fine").action is Action.ALLOW
    assert guard.check("score 0.1").action is Action.REVIEW


def test_it_can_be_set_and_cleared_and_is_saved(mock_guard: Guard, tmp_path: Path) -> None:
    mock_guard.review = Review(score=0.0)
    assert mock_guard.check("tell me about gardens").action is Action.REVIEW
    loaded = Guard.from_pretrained(mock_guard.save_pretrained(tmp_path / "one"), encoder=MockEncoder())
    assert loaded.review == Review(score=0.0)
    assert loaded.check("tell me about gardens").action is Action.REVIEW
    loaded.review = None
    assert loaded.check("tell me about gardens").action is Action.ALLOW
    loaded.save_pretrained(tmp_path / "two")
    manifest = bundles.load(tmp_path / "two").manifest
    assert manifest.review is None
    assert [change.kind for change in manifest.lineage[-1].changes] == ["review"]


@pytest.mark.parametrize("options", [{}, {"score": 1.1}, {"novelty": -0.1}, {"score": "0.5"}, {"score": float("nan")}])
def test_an_impossible_review_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="review"):
        Review(**options)  # type: ignore[arg-type]


def test_something_that_is_no_review_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="review is float"):
        MockGuard(review=0.5)


# -- gates --------------------------------------------------------------------------------------------------------------------


async def test_enforcing_passes_a_review_unless_it_is_told_to_block() -> None:
    guard = scored(review=Review(score=0.3))
    assert guard.enforce("score 0.4").action is Action.REVIEW
    assert (await guard.aenforce("score 0.4")).action is Action.REVIEW
    with pytest.raises(PromptBlocked) as caught:
        guard.enforce("score 0.4", on_review="block")
    assert (caught.value.verdict.action, caught.value.verdict.flagged) == (Action.BLOCK, False)
    with pytest.raises(PromptBlocked):
        await guard.aenforce("score 0.4", on_review="block")
    with pytest.raises(ConfigurationError, match="on_review"):
        guard.enforce("score 0.1", on_review="ask")  # type: ignore[arg-type]


def in_words(text: str) -> float:
    return 0.4 if "doubtful" in text else 0.1


def test_a_stream_passes_a_review_unless_it_is_told_to_block() -> None:
    guard = MockGuard(in_words, target="response", review=Review(score=0.3))
    chunks = ["All is well. ", "This is doubtful. ", "The end."]
    passing = StreamModerator(guard)
    assert "".join(passing.stream(chunks)) == "".join(chunks)
    assert passing.verdict is not None
    assert passing.verdict.action is Action.REVIEW
    with pytest.raises(ResponseBlocked):
        list(StreamModerator(guard, on_review="block", on_block="raise").stream(chunks))
    with pytest.raises(ConfigurationError, match="on_review"):
        StreamModerator(guard, on_review="ask")  # type: ignore[arg-type]


def test_a_review_decides_over_what_is_allowed_and_under_what_is_blocked() -> None:
    guard = scored(review=Review(score=0.3))
    allowed, reviewed, blocked = guard.check_batch(["score 0.2", "score 0.4", "score 0.6"])
    assert worse(allowed, reviewed) == worse(reviewed, allowed) == reviewed
    assert worse(blocked, reviewed) == worse(reviewed, blocked) == blocked
    guard.on_error = "allow"
    assert worse(guard.check(""), reviewed) == reviewed
