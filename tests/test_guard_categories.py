"""Categories of a guard: learned, added from a few examples, removed, named in verdicts, and acted on."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlpm_guard import (
    Action,
    BundleCorruptError,
    BundleError,
    CategoryError,
    CategoryPolicy,
    ConfigurationError,
    ContradictoryLabelsError,
    DataError,
    Guard,
    NonFiniteError,
    NotFittedError,
    PromptBlocked,
    Rules,
    UnknownPromptError,
    Verdict,
)
from mlpm_guard import bundle as bundles
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.encoders.base import States
from mlpm_guard.testing import MockEncoder, MockGuard
from tests.conftest import SAFE, UNSAFE
from tests.topics import TopicEncoder, categorised, on

DRUGS, FRAUD = "unsafe talk about pills", "an unsafe swindle"
LEGAL, CALM = "my next lawsuit", "a talk about nothing"


@pytest.fixture(scope="module")
def fitted() -> Guard:
    """Knows drugs and fraud. Not to be changed."""
    return categorised()


@pytest.fixture
def guard(fitted: Guard) -> Guard:
    """Knows drugs and fraud."""
    return copy.copy(fitted)


def with_legal(guard: Guard, **options: object) -> Guard:
    return guard.add_category("legal", on("legal", 10, unsafe=False), **options)  # type: ignore[arg-type]


# -- learning -----------------------------------------------------------------------------------------------------------------


def test_an_unsafe_verdict_names_the_likeliest_category_and_lists_them_all(guard: Guard) -> None:
    assert guard.list_categories() == ["drugs", "fraud"]
    for text, name in ((DRUGS, "drugs"), (FRAUD, "fraud")):
        verdict = guard.check(text)
        assert verdict.flagged
        assert verdict.category == name
        assert set(verdict.categories) == {"drugs", "fraud"}
        assert verdict.categories[name] > 0.5 > max(p for other, p in verdict.categories.items() if other != name)
        assert verdict.flagged_by == ()


def test_a_safe_verdict_has_no_category_but_lists_the_probabilities(guard: Guard) -> None:
    verdict = guard.check(CALM)
    assert not verdict.flagged
    assert verdict.category is None
    assert max(verdict.categories.values()) < 0.5


def test_an_unsafe_text_of_no_known_category_has_none(guard: Guard) -> None:
    verdict = guard.check("some unsafe thing or other")
    assert verdict.flagged
    assert verdict.category is None
    assert set(verdict.categories) == {"drugs", "fraud"}


def test_categories_do_not_change_the_score(guard: Guard) -> None:
    prompts, labels = [*on(None, 40, unsafe=False), *on(None, 10), *on("drugs", 20), *on("fraud", 20)], [0] * 40 + [1] * 50
    plain = Guard(TopicEncoder()).fit(prompts, labels, progress=False)
    assert plain.list_categories() == []
    assert plain.check(DRUGS).categories == {}
    assert plain.check(DRUGS).score == guard.check(DRUGS).score


def test_partial_fit_teaches_categories(guard: Guard) -> None:
    guard.partial_fit(on("legal", 20), [1] * 20, ["legal"] * 20, progress=False)
    assert guard.list_categories() == ["drugs", "fraud", "legal"]
    assert guard.check("unsafe lawsuit").category == "legal"


@pytest.mark.parametrize("given", [True, False], ids=["with categories", "without"])
def test_forget_takes_prompts_out_of_their_category(guard: Guard, given: bool) -> None:
    before = guard.check(DRUGS)
    more = on("drugs", 5, start=500)
    guard.partial_fit(more, [1] * 5, ["drugs"] * 5, progress=False)
    assert guard.check(DRUGS).categories != before.categories
    guard.forget(more, [1] * 5, ["drugs"] * 5 if given else None)
    assert guard.check(DRUGS).categories == pytest.approx(before.categories, abs=1e-6)


def test_a_category_whose_prompts_are_all_forgotten_is_gone(guard: Guard) -> None:
    guard.forget(on("drugs", 20), [1] * 20)
    assert guard.list_categories() == ["fraud"]
    assert guard.check(DRUGS).category != "drugs"


def test_forgetting_in_the_wrong_category_is_refused(guard: Guard) -> None:
    with pytest.raises(UnknownPromptError, match="in that category"):
        guard.forget(on("drugs", 2), [1, 1], ["drugs", "fraud"])
    assert guard.list_categories() == ["drugs", "fraud"]


def test_a_prompt_in_two_categories_is_refused_without_text() -> None:
    prompts = [*on(None, 10, unsafe=False), *on("drugs", 10), *on("drugs", 1)]
    with pytest.raises(DataError, match=r"row 20: .* row 10") as caught:
        Guard(TopicEncoder()).fit(prompts, [0] * 10 + [1] * 11, [None] * 10 + ["drugs"] * 10 + ["fraud"], progress=False)
    assert "pills" not in str(caught.value)


@pytest.mark.parametrize("names", [["drugs"], ["drugs"] * 21])
def test_as_many_categories_as_prompts(names: list[str]) -> None:
    with pytest.raises(DataError, match="categor"):
        Guard(TopicEncoder()).fit([*on(None, 10, unsafe=False), *on("drugs", 10)], [0] * 10 + [1] * 10, names, progress=False)


@pytest.mark.parametrize("name", ["safe", "unsafe", "", 7])
def test_a_row_with_a_bad_category_is_named(name: object) -> None:
    with pytest.raises(DataError, match="row 1: "):
        Guard(TopicEncoder()).fit(["a", "b unsafe"], [0, 1], [None, name], progress=False)  # type: ignore[list-item]


def test_a_safe_row_with_a_category_is_refused() -> None:
    with pytest.raises(DataError, match=r"row 0: .*safe"):
        Guard(TopicEncoder()).fit(["a", "b unsafe"], [0, 1], ["drugs", None], progress=False)


def test_categories_assigned_afterwards_change_no_score_and_name_what_learning_them_would_have_named(fitted: Guard) -> None:
    prompts, labels = [*on(None, 40, unsafe=False), *on(None, 10), *on("drugs", 20), *on("fraud", 20)], [0] * 40 + [1] * 50
    guard = Guard(TopicEncoder()).fit(prompts, labels, progress=False)
    texts = [DRUGS, FRAUD, CALM]
    before = guard.check_batch(texts)
    guard.assign_categories(prompts[40:], ["other"] * 10 + ["drugs"] * 20 + ["fraud"] * 20, progress=False)
    for old, new, expected in zip(before, guard.check_batch(texts), fitted.check_batch(texts), strict=True):
        assert new.score == old.score
        assert new.layers == old.layers
        assert new.category == expected.category
        assert new.categories == pytest.approx(expected.categories)
    with pytest.raises(CategoryError, match="already"):
        guard.assign_categories(on("drugs", 3), ["drugs"] * 3, progress=False)
    with pytest.raises(UnknownPromptError):
        guard.assign_categories(["never seen"], ["drugs"], progress=False)
    with pytest.raises(DataError):
        guard.assign_categories("one text", ["drugs"], progress=False)


# -- added from a few examples ------------------------------------------------------------------------------------------------


def test_an_added_category_flags_by_itself_and_the_verdict_says_so(guard: Guard) -> None:
    assert not guard.check(LEGAL).flagged
    assert with_legal(guard) is guard
    assert guard.list_categories() == ["drugs", "fraud", "legal"]
    verdict = guard.check(LEGAL)
    assert verdict.flagged
    assert verdict.blocked
    assert verdict.score is not None
    assert verdict.score < verdict.threshold
    assert verdict.flagged_by == ("legal",)
    assert verdict.category == "legal"
    assert verdict.categories["legal"] >= 0.5
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert not guard.check(CALM).flagged
    with pytest.raises(PromptBlocked, match="category legal, flagged by legal"):
        guard.enforce(LEGAL)


def test_adding_changes_nothing_else_and_removing_brings_everything_back(guard: Guard) -> None:
    texts = [DRUGS, FRAUD, LEGAL, CALM]
    before = guard.check_batch(texts)
    with_legal(guard)
    for old, new in zip(before, guard.check_batch(texts), strict=True):
        assert new.score == old.score
        assert {name: new.categories[name] for name in old.categories} == old.categories
    guard.remove_category("legal")
    assert guard.check_batch(texts) == [verdict.model_copy(update={"bundle_id": None}) for verdict in before]


def test_the_order_in_which_categories_are_added_does_not_matter(fitted: Guard) -> None:
    one, two = copy.copy(fitted), copy.copy(fitted)
    garden = on("garden", 10, unsafe=False)
    with_legal(one).add_category("garden", garden)
    with_legal(two.add_category("garden", garden))
    assert one.list_categories() == two.list_categories()
    assert one.check("tulips and a lawsuit") == two.check("tulips and a lawsuit")


def test_adding_does_not_learn_the_examples(guard: Guard) -> None:
    before = guard.classifier.statistics_.to_tensors()
    with_legal(guard)
    after = guard.classifier.statistics_.to_tensors()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_negatives_are_taken_into_account(fitted: Guard) -> None:
    both = [f"{text} and tulips" for text in on("legal", 30, unsafe=False, start=100)]
    plain, told = with_legal(copy.copy(fitted)), with_legal(copy.copy(fitted), negatives=both[:20])
    name = "legal"
    for text in both[20:]:
        assert told.check(text).categories[name] < plain.check(text).categories[name]
    assert told.check(LEGAL).categories[name] > 0.5


def test_variants_of_one_example_count_once(guard: Guard, tmp_path: Path) -> None:
    variants = ["my lawsuit", "my lawsuit ", "  My  LAWSUIT", "ｍｙ lawsuit", "my law\u200bsuit", "my\nlawsuit"]
    with pytest.raises(CategoryError, match="1 different examples"):
        guard.add_category("legal", variants)
    examples = on("legal", 10, unsafe=False)
    twice = copy.copy(guard)
    with_legal(guard).save_pretrained(tmp_path / "once")
    twice.add_category("legal", [*examples, *(f" {text.upper()}\t" for text in examples)])
    assert twice.check(LEGAL).categories == guard.check(LEGAL).categories
    assert twice._known().changes[-1].prompts == 10


@pytest.mark.parametrize("name", ["Drugs", "DRUGS", "ｄｒｕｇｓ", "Other", "SAFE"])
def test_a_name_that_differs_in_case_only_is_in_use(guard: Guard, name: str) -> None:
    with pytest.raises(CategoryError, match=r"already|cannot be named"):
        guard.add_category(name, on("legal", 10))
    assert guard.list_categories() == ["drugs", "fraud"]


def test_rows_of_an_added_category_are_refused_however_it_is_written(guard: Guard) -> None:
    with_legal(guard)
    with pytest.raises(CategoryError, match="'legal' was added from examples"):
        guard.partial_fit(on("legal", 10), [1] * 10, ["Legal"] * 10, progress=False)


@pytest.mark.parametrize(
    ("examples", "negatives", "says"),
    [
        ([*on("legal", 6), " "], None, "example 6: the turn to judge holds no text"),
        ([*on("legal", 6), None], None, "example 6: a conversation is"),
        ([*on("legal", 6), "x" * 101], None, "example 6: 101 characters; this guard judges up to 100"),
        (on("legal", 6), ["calm", "y" * 200], "negative 1: 200 characters"),
        (on("legal", 6), ["calm", b"bytes"], "negative 1: .*bytes"),
        (on("legal", 6), ["calm", "Unsafe question number 3 about  LAWSUIT"], "example 3 is also negative 1"),
        ("one text", None, "examples: a list"),
        (on("legal", 6), 7, "negatives: a list"),
    ],
)
def test_an_example_that_cannot_be_used_is_named_by_its_number(
    guard: Guard, examples: object, negatives: object, says: str
) -> None:
    guard.max_chars = 100
    with pytest.raises(DataError, match=says) as caught:
        guard.add_category("legal", examples, negatives=negatives)  # type: ignore[arg-type]
    assert "lawsuit" not in str(caught.value).lower()
    assert guard.list_categories() == ["drugs", "fraud"]


def test_examples_whose_states_are_no_numbers_are_refused(guard: Guard) -> None:
    class Broken(TopicEncoder):
        def encode(self, conversations: Sequence[ConversationLike], *, layers: Sequence[int] | None = None) -> States:
            return super().encode(conversations, layers=layers) * np.float32("nan")

    with pytest.raises(NonFiniteError, match="examples"):
        with_legal(guard.bound_to(Broken()))


@pytest.mark.parametrize(("action", "expected"), [("block", Action.BLOCK), ("review", Action.REVIEW), ("allow", Action.ALLOW)])
def test_an_added_category_asks_for_its_action(guard: Guard, action: str, expected: Action) -> None:
    verdict = with_legal(guard, action=action).check(LEGAL)
    assert verdict.flagged
    assert verdict.action is expected


def test_an_added_category_flags_from_its_threshold(guard: Guard) -> None:
    chance = with_legal(guard).check(LEGAL).categories["legal"]
    guard.remove_category("legal")
    assert with_legal(guard, threshold=chance).check(LEGAL).flagged
    guard.remove_category("legal")
    assert not with_legal(guard, threshold=min(1.0, chance + 1e-6)).check(LEGAL).flagged


async def test_every_door_gives_the_same_verdict(guard: Guard) -> None:
    with_legal(guard)
    assert await guard.acheck(LEGAL) == guard.check(LEGAL) == guard.check_batch([LEGAL])[0]


def test_monitoring_never_blocks() -> None:
    guard = with_legal(categorised(mode="monitor"))
    verdict = guard.check(LEGAL)
    assert verdict.flagged
    assert verdict.allowed


def test_a_rule_goes_before_categories(guard: Guard) -> None:
    with_legal(guard).rules = Rules(allow=["lawsuit"])
    verdict = guard.check("lawsuit")
    assert verdict.allowed
    assert verdict.categories == {}


def test_partial_fit_leaves_added_categories_as_they_are(guard: Guard) -> None:
    before = with_legal(guard).check(LEGAL).categories["legal"]
    guard.partial_fit(["one more question"], [0], progress=False)
    assert guard.check(LEGAL).categories["legal"] == before
    with pytest.raises(CategoryError, match="legal"):
        guard.partial_fit(on("legal", 5), [1] * 5, ["legal"] * 5, progress=False)


def test_a_category_added_from_examples_cannot_be_learned_from_rows_too(guard: Guard) -> None:
    rows = on("legal", 3)
    before = with_legal(guard).check(SAFE[0])
    with pytest.raises(CategoryError, match="remove it"):
        guard.partial_fit(rows, [1] * 3, ["legal"] * 3, progress=False)
    assert guard.check(SAFE[0]) == before


def test_a_fit_from_scratch_forgets_added_categories(guard: Guard) -> None:
    with_legal(guard).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    assert guard.list_categories() == []
    assert not guard.check(LEGAL).flagged


def test_a_fitted_category_that_is_removed_stays_away(guard: Guard) -> None:
    guard.remove_category("drugs")
    assert guard.list_categories() == ["fraud"]
    guard.partial_fit(["one more question"], [0], progress=False)
    assert guard.list_categories() == ["fraud"]


# -- what is refused ----------------------------------------------------------------------------------------------------------


def test_too_few_examples_are_refused(guard: Guard) -> None:
    with pytest.raises(CategoryError, match="4 different examples; a category needs at least 5"):
        guard.add_category("legal", [*on("legal", 4), *on("legal", 4)])
    assert guard.list_categories() == ["drugs", "fraud"]


def test_an_example_that_is_a_negative_too_is_refused_without_text(guard: Guard) -> None:
    with pytest.raises(ContradictoryLabelsError, match="example 3 is also negative 1") as caught:
        with_legal(guard, negatives=["something else", on("legal", 10, unsafe=False)[3]])
    assert caught.value.rows == (3, 1)
    assert "lawsuit" not in str(caught.value)


@pytest.mark.parametrize("name", ["drugs", "other", "safe", "unsafe", "", " x", None])
def test_names_that_cannot_be_used_are_refused(guard: Guard, name: object) -> None:
    with pytest.raises(CategoryError):
        guard.add_category(name, on("legal", 10))  # type: ignore[arg-type]


def test_a_name_is_used_once(guard: Guard) -> None:
    with pytest.raises(CategoryError, match="already"):
        with_legal(with_legal(guard))


def test_an_unknown_category_cannot_be_removed(guard: Guard) -> None:
    with pytest.raises(CategoryError, match="no category 'legal'; there are: drugs, fraud"):
        guard.remove_category("legal")


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"threshold": -0.1}, {"threshold": "x"}, {"action": "ignore"}])
def test_bad_options_are_refused_before_anything_is_encoded(guard: Guard, options: dict[str, object]) -> None:
    encoder = guard.encoder
    assert isinstance(encoder, MockEncoder)
    before = len(encoder.batches)
    with pytest.raises(ConfigurationError):
        with_legal(guard, **options)
    assert len(encoder.batches) == before


@pytest.mark.parametrize("negatives", ["one text", 3, [1, 2]])
def test_negatives_that_are_no_texts_are_refused(guard: Guard, negatives: object) -> None:
    with pytest.raises(DataError):
        with_legal(guard, negatives=negatives)


@pytest.mark.parametrize("examples", ["one text", 3, [1, 2, 3, 4, 5], ["", "a", "b", "c", "d"]])
def test_examples_that_are_no_texts_are_refused(guard: Guard, examples: object) -> None:
    with pytest.raises(DataError):
        guard.add_category("legal", examples)  # type: ignore[arg-type]


def test_an_unfitted_guard_takes_no_category() -> None:
    with pytest.raises(NotFittedError):
        with_legal(Guard(TopicEncoder()))
    assert Guard(TopicEncoder()).list_categories() == []


def test_a_guard_without_statistics_says_what_is_missing(guard: Guard, tmp_path: Path) -> None:
    guard.save_pretrained(tmp_path / "small", statistics=False)
    again = Guard.from_pretrained(tmp_path / "small", encoder=TopicEncoder())
    with pytest.raises(BundleError, match="statistics"):
        with_legal(again)
    again.remove_category("drugs")
    assert again.list_categories() == ["fraud"]


# -- policy -------------------------------------------------------------------------------------------------------------------


def test_a_policy_decides_what_is_done_about_a_category() -> None:
    guard = categorised(policy={"drugs": "allow", "fraud": "review"})
    drugs, fraud = guard.check(DRUGS), guard.check(FRAUD)
    assert drugs.flagged
    assert drugs.allowed
    assert fraud.flagged
    assert fraud.action is Action.REVIEW
    assert guard.enforce(FRAUD) == fraud
    with pytest.raises(PromptBlocked):
        guard.enforce(FRAUD, on_review="block")
    assert guard.check("some unsafe thing or other").blocked


def test_a_fitted_category_with_a_threshold_flags_by_itself() -> None:
    guard = categorised(policy={"drugs": CategoryPolicy("review", threshold=0.2)}, threshold=1.0)
    verdict = guard.check(DRUGS)
    assert verdict.flagged_by == ("drugs",)
    assert verdict.action is Action.REVIEW


def test_a_policy_is_set_and_read_again(guard: Guard) -> None:
    guard.category_policy = {"drugs": "review"}
    assert dict(guard.category_policy) == {"drugs": CategoryPolicy("review")}
    with pytest.raises(TypeError):
        guard.category_policy["fraud"] = CategoryPolicy()  # type: ignore[index]
    assert guard.check(DRUGS).action is Action.REVIEW
    guard.category_policy = {}
    assert guard.check(DRUGS).blocked


def test_bad_policies_are_refused() -> None:
    for wrong in ({"drugs": "ignore"}, ["drugs"], {"drugs": 0.5}):
        with pytest.raises(ConfigurationError):
            Guard(TopicEncoder(), policy=wrong)  # type: ignore[arg-type]


def test_a_policy_about_a_category_that_the_guard_lacks_is_refused(guard: Guard, tmp_path: Path) -> None:
    with pytest.raises(CategoryError, match=r"weapons; it has: drugs, fraud"):
        guard.category_policy = {"drugs": "review", "weapons": "allow"}
    assert not guard.category_policy
    guard.save_pretrained(tmp_path / "guard")
    with pytest.raises(CategoryError, match="weapons"):
        Guard.from_pretrained(tmp_path / "guard", encoder=guard.encoder, policy={"weapons": "allow"})
    ahead = Guard(guard.encoder, policy={"weapons": "allow"}).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    with pytest.raises(CategoryError, match="weapons"):
        ahead.check(CALM)


# -- long texts ---------------------------------------------------------------------------------------------------------------


class Diluted(TopicEncoder):
    """Finds a topic in short pieces only."""

    def encode(self, conversations: Sequence[ConversationLike], *, layers: Sequence[int] | None = None) -> States:
        found = super().encode(conversations, layers=layers)
        plain = MockEncoder.encode(self, conversations, layers=layers)
        long = [len(str(Conversation.parse(each).messages[-1].content)) > 60 for each in conversations]
        return np.where(np.array(long)[:, None, None], plain, found)


ALONE = "It is a lawsuit of mine."
PADDED = " ".join([*(f"here are some words on matter number {index} and more." for index in range(11)), ALONE])


def test_a_sentence_of_a_longer_text_flags_by_category(guard: Guard) -> None:
    with_legal(guard)
    explanation = guard.bound_to(Diluted()).explain(PADDED)
    assert explanation.verdict.flagged_by == ("legal",)
    legal = next(each for each in explanation.categories if each.name == "legal")
    assert legal.window is not None
    assert legal.window.kind == "fragment"
    assert legal.probability == explanation.verdict.categories["legal"]
    assert legal.log_odds == pytest.approx(sum(each.contribution for each in legal.layers) + legal.intercept)


def test_a_sentence_must_be_clearer_about_a_category_than_a_whole_text(guard: Guard) -> None:
    with_legal(guard)
    guard = guard.bound_to(Diluted())
    whole, padded = (next(each for each in guard.explain(text).categories if each.name == "legal") for text in (ALONE, PADDED))
    assert padded.log_odds == pytest.approx(whole.log_odds - 1.0)
    guard.category_policy = {"legal": CategoryPolicy(threshold=0.5 * (whole.probability + padded.probability))}
    assert guard.check(ALONE).flagged_by == ("legal",)
    assert guard.check(PADDED).flagged_by == ()


def test_the_window_that_is_most_of_a_category_counts_where_it_has_a_threshold(guard: Guard) -> None:
    with_legal(guard)
    words = [f"here are some words on matter number {index} and more." for index in range(60)]
    words[40] = "then there was a lawsuit too."
    explanation = guard.explain(" ".join(words))
    legal = next(each for each in explanation.categories if each.name == "legal")
    assert explanation.verdict.flagged_by == ("legal",)
    assert legal.probability == explanation.verdict.categories["legal"] >= 0.5
    where = explanation.verdict.window if legal.window is None else legal.window
    assert where is not None
    assert where.kind == "window"


# -- saving, lineage, calibration ---------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_again(guard: Guard, tmp_path: Path) -> None:
    with_legal(guard, threshold=0.4, action="review")
    guard.category_policy = {**guard.category_policy, "drugs": "allow"}
    texts = [DRUGS, FRAUD, LEGAL, CALM]
    before = guard.check_batch(texts)
    guard.save_pretrained(tmp_path / "mine")
    again = Guard.from_pretrained(tmp_path / "mine", encoder=TopicEncoder())
    assert again.list_categories() == guard.list_categories()
    assert dict(again.category_policy) == {"legal": CategoryPolicy("review", 0.4), "drugs": CategoryPolicy("allow")}
    for old, new in zip(before, again.check_batch(texts), strict=True):
        assert new == old.model_copy(update={"bundle_id": again.bundle_id})
    again.partial_fit(on("garden", 10), [1] * 10, ["garden"] * 10, progress=False)
    assert again.list_categories() == ["drugs", "fraud", "garden", "legal"]


def test_a_policy_may_be_given_instead_of_the_saved_one(guard: Guard, tmp_path: Path) -> None:
    guard.save_pretrained(tmp_path / "mine")
    again = Guard.from_pretrained(tmp_path / "mine", encoder=TopicEncoder(), policy={"drugs": "allow"})
    assert again.check(DRUGS).allowed


def test_the_lineage_tells_of_categories(guard: Guard, tmp_path: Path) -> None:
    guard.save_pretrained(tmp_path / "one")
    with_legal(guard).remove_category("drugs").save_pretrained(tmp_path / "two")
    changes = bundles.load(tmp_path / "two").manifest.lineage[-1].changes
    assert [(each.kind, each.name, each.prompts) for each in changes][:2] == [
        ("add_category", "legal", 10),
        ("remove_category", "drugs", None),
    ]
    assert guard.check(CALM).bundle_id is not None


def test_a_change_of_policy_is_part_of_the_lineage(guard: Guard, tmp_path: Path) -> None:
    guard.save_pretrained(tmp_path / "one")
    guard.category_policy = {"drugs": "allow"}
    guard.save_pretrained(tmp_path / "two")
    assert [each.kind for each in bundles.load(tmp_path / "two").manifest.lineage[-1].changes] == ["policy"]


def test_a_change_ends_the_calibration_and_says_so(guard: Guard, caplog: pytest.LogCaptureFixture) -> None:
    for change in (with_legal, lambda each: each.remove_category("legal")):
        guard.calibrate([f"benign matter {index}" for index in range(400)], max_fpr=0.05)
        assert guard.calibration is not None
        with caplog.at_level(logging.WARNING, "mlpm_guard"):
            caplog.clear()
            change(guard)
        assert guard.calibration is None
        assert "no longer calibrated" in caplog.text


def test_damaged_categories_are_refused(guard: Guard, tmp_path: Path) -> None:
    path = guard.save_pretrained(tmp_path / "mine")
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["categories"][0]["names"] = ["drugs"]
    (path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleCorruptError, match="categories"):
        Guard.from_pretrained(path, encoder=TopicEncoder())


def test_a_guard_with_categories_can_be_pickled(guard: Guard) -> None:
    with_legal(guard).category_policy = {**guard.category_policy, "drugs": "review"}
    again = pickle.loads(pickle.dumps(guard))
    assert again.check_batch([DRUGS, LEGAL]) == guard.check_batch([DRUGS, LEGAL])


# -- explanation --------------------------------------------------------------------------------------------------------------


def test_an_explanation_gives_the_evidence_on_every_category_the_likeliest_first(guard: Guard) -> None:
    with_legal(guard)
    explanation = guard.explain(DRUGS)
    assert explanation.categories[0].name == "drugs"
    assert {each.name: each.probability for each in explanation.categories} == explanation.verdict.categories
    assert [each.categories for each in explanation.windows] == [pytest.approx(explanation.verdict.categories)]
    for each in explanation.categories:
        assert each.log_odds is not None
        assert 1 / (1 + np.exp(-each.log_odds)) == pytest.approx(each.probability)
        total = each.intercept + sum(layer.contribution for layer in each.layers)
        assert total == pytest.approx(each.log_odds)
    assert [each.threshold for each in explanation.categories if each.name == "legal"] == [0.5]


def test_a_mock_guard_knows_no_categories() -> None:
    assert MockGuard(lambda text: "unsafe" in text).check(DRUGS).categories == {}


TOLD = {"drugs": lambda text: "pills" in text, "legal": lambda text: 0.6 if "lawsuit" in text else 0.0}


async def test_a_mock_guard_knows_the_categories_that_its_user_declares() -> None:
    guard = MockGuard(
        lambda text: "unsafe" in text,
        categories=TOLD,
        policy={"drugs": "review", "legal": CategoryPolicy("block", 0.5)},
    )
    assert guard.list_categories() == ["drugs", "legal"]
    drugs, legal, calm = guard.check_batch([DRUGS, LEGAL, CALM])
    assert drugs.categories == pytest.approx({"drugs": 0.98, "legal": 0.0}, abs=1e-6)
    assert (drugs.category, drugs.flagged_by, drugs.action) == ("drugs", (), Action.REVIEW)
    assert legal.categories == pytest.approx({"drugs": 0.02, "legal": 0.6})
    assert (legal.category, legal.flagged_by, legal.action) == ("legal", ("legal",), Action.BLOCK)
    assert (calm.flagged, calm.category) == (False, None)
    assert [drugs, calm] == await guard.acheck_batch([DRUGS, CALM])
    assert [each.name for each in guard.explain(DRUGS).categories] == ["drugs", "legal"]
    guard.category_policy = {"drugs": "allow"}
    assert guard.check(DRUGS).allowed
    assert guard.remove_category("drugs").check(DRUGS).categories == pytest.approx({"legal": 0.0}, abs=1e-6)


def test_a_mock_guard_reads_its_categories_at_states_of_any_model() -> None:
    policy = MockGuard(categories=TOLD).policy()
    conversations = [Conversation.parse(text) for text in (DRUGS, LEGAL)]
    found = policy.judge(conversations, np.zeros((2, 1, 4)), "prefill")
    assert [each.categories["legal"] for each in found if isinstance(each, Verdict)] == pytest.approx([0.0, 0.6], abs=1e-6)


def test_a_mock_guard_says_what_is_wrong_with_its_categories() -> None:
    with pytest.raises(ConfigurationError, match="functions from text"):
        MockGuard(categories={"drugs": True})  # type: ignore[dict-item]
    with pytest.raises(CategoryError, match="name"):
        MockGuard(categories={"safe": TOLD["drugs"]})
    with pytest.raises(CategoryError, match="does not have: fraud"):
        MockGuard(categories=TOLD, policy={"fraud": "allow"})
    assert MockGuard(categories={"drugs": lambda text: 1 / 0}).check(CALM).error == "encoder_error"
    with pytest.raises(BundleError, match="nothing to learn with"):
        MockGuard(categories=TOLD).add_category("garden", on("garden", 10))


def test_states_that_were_read_elsewhere_give_the_same_categories(guard: Guard) -> None:
    with_legal(guard)
    policy = guard.policy()
    conversations = [Conversation.parse(text) for text in (DRUGS, LEGAL, CALM)]
    states = guard.encoder.encode(conversations, layers=policy.layers)
    for conversation, verdict in zip(conversations, policy.judge(conversations, states, "prefill"), strict=True):
        assert isinstance(verdict, Verdict)
        expected = guard.check([{"role": "user", "content": conversation.messages[0].content}])
        assert verdict.categories == pytest.approx(expected.categories)
        assert (verdict.flagged_by, verdict.category, verdict.action) == (
            expected.flagged_by,
            expected.category,
            expected.action,
        )


def test_states_of_which_a_category_makes_no_number_block(guard: Guard) -> None:
    policy = with_legal(guard).policy()
    block = policy.categories.added[0]
    broken = replace(policy.categories, added=(replace(block, weights=np.full_like(block.weights, np.nan)),))
    conversation = Conversation.parse(CALM)
    states = guard.encoder.encode([conversation], layers=policy.layers)
    (verdict,) = replace(policy, categories=broken).judge([conversation], states, "prefill")
    assert isinstance(verdict, Verdict)
    assert verdict.error == "non_finite"
    assert verdict.blocked


def test_a_layer_that_only_an_added_category_reads_stays_when_the_guard_learns_more(guard: Guard) -> None:
    with_legal(guard)
    classifier = guard.classifier
    used = classifier.scorer_.positions.tolist()
    classifier.refit(also_read=[0, 1, 2])
    assert classifier.scorer_.positions.tolist() == [0, 1, 2]
    assert classifier.scorer_.layer_weights[[at for at in range(3) if at not in used]].tolist() == [0.0] * (3 - len(used))
    before = guard.check(LEGAL).categories["legal"]
    guard.partial_fit(on(None, 5, start=700), [1] * 5, progress=False)
    assert set(guard.policy().categories.positions.tolist()) <= set(guard.policy().scorer.positions.tolist())
    assert guard.check(LEGAL).categories["legal"] == before
