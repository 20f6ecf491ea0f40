import pytest

from mlpm_guard.correcting import corrected
from mlpm_guard.errors import BundleError, ConfigurationError, ContradictoryLabelsError, DataError
from mlpm_guard.guard import Guard
from mlpm_guard.rules import Rules
from mlpm_guard.testing import MockEncoder
from tests.conftest import SAFE, UNSAFE

SECRET = "xyzzy"


def counts(guard):
    return [guard.classifier.statistics_.count(label) for label in (0, 1)]


def test_the_guard_stays_what_it_is_and_the_copy_has_learned(mock_guard):
    before = mock_guard.check(UNSAFE[0])
    fixed, (correction,) = corrected(mock_guard, ["a very unsafe word"], ["safe"])
    assert mock_guard.check(UNSAFE[0]) == before
    assert (counts(mock_guard), counts(fixed)) == ([30, 30], [31, 30])
    assert fixed.encoder is mock_guard.encoder
    assert correction.before == mock_guard.check("a very unsafe word").score
    assert correction.after == fixed.check("a very unsafe word").score < correction.before
    assert (correction.flagged_before, correction.forgotten, correction.rule) == (True, 0, None)


def test_a_text_that_was_learned_under_the_other_label_is_forgotten_as_often_as_it_was_learned(mock_guard):
    mock_guard.partial_fit([SAFE[3]], [1]).partial_fit([SAFE[3]], [1])
    fixed, (correction,) = corrected(mock_guard, [SAFE[3]], [0])
    assert correction.forgotten == 2
    assert counts(fixed) == [31, 30]
    clean = Guard(MockEncoder()).fit([*SAFE, *UNSAFE, SAFE[3]], [0] * 30 + [1] * 30 + [0], progress=False)
    assert fixed.classifier.coef_ == pytest.approx(clean.classifier.coef_)


def test_how_layers_are_put_together_stays(mock_guard):
    fixed, _ = corrected(mock_guard, [UNSAFE[0], "a very unsafe word"], [0, 0], repeat=5)
    before, after = mock_guard.classifier.scorer_, fixed.classifier.scorer_
    assert (after.layer_weights == before.layer_weights).all()
    assert after.intercept == before.intercept
    assert (after.weights != before.weights).any()


def test_a_saved_correction_is_what_was_corrected_and_can_be_corrected_again(mock_guard, tmp_path):
    fixed, _ = corrected(mock_guard, ["a very unsafe word"], [0], repeat=3)
    fixed.save_pretrained(tmp_path / "one")
    loaded = Guard.from_pretrained(tmp_path / "one", encoder=MockEncoder())
    assert loaded.check("a very unsafe word").score == pytest.approx(fixed.check("a very unsafe word").score)
    again, (correction,) = corrected(loaded, ["a very unsafe word"], [1], repeat=3)
    assert correction.forgotten == 3
    assert counts(again) == [30, 33]


def test_learning_it_more_often_moves_the_guard_further(mock_guard):
    scores = [corrected(mock_guard, ["a very unsafe word"], [0], repeat=repeat)[1][0].after for repeat in (1, 4, 16)]
    assert mock_guard.check("a very unsafe word").score > scores[0] > scores[1] > scores[2]
    assert counts(corrected(mock_guard, ["a very unsafe word"], [0], repeat=4)[0]) == [34, 30]


def test_a_correction_says_whether_it_was_enough(mock_guard):
    text = "a very unsafe word"
    found = {repeat: corrected(mock_guard, [text], [0], repeat=repeat) for repeat in (1, 200)}
    for fixed, (correction,) in found.values():
        assert correction.settled == (not fixed.check(text).flagged)
    assert [correction.settled for _, (correction,) in found.values()] == [False, True]


def test_several_corrections_are_learned_together(mock_guard):
    fixed, found = corrected(mock_guard, [f"new kind word {i}" for i in range(5)] + [UNSAFE[0]], [1] * 5 + [0])
    assert [each.label for each in found] == [1] * 5 + [0]
    assert [each.forgotten for each in found] == [0] * 5 + [1]
    assert counts(fixed) == [31, 34]


def test_a_rule_that_decides_whatever_is_learned_is_named(mock_guard):
    mock_guard.rules = Rules(block={"mine": "very unsafe"})
    fixed, (correction,) = corrected(mock_guard, ["a very unsafe word"], [0], repeat=200)
    assert correction.rule is not None
    assert (correction.rule.kind, correction.rule.entry, correction.settled) == ("block", "mine", False)
    assert fixed.rules == mock_guard.rules


def test_a_correction_holds_no_text(mock_guard):
    _, (correction,) = corrected(mock_guard, [f"an unsafe {SECRET}"], [0])
    assert SECRET not in correction.model_dump_json() + repr(correction)


@pytest.mark.parametrize(
    ("prompts", "labels", "error", "said"),
    [
        ([], [], DataError, "nothing to correct"),
        (["a", "a"], [0, 1], ContradictoryLabelsError, "row 1: the same prompt as row 0"),
        ([" "], [0], DataError, "row 0"),
        (["a"], ["perhaps"], DataError, "row 0: a label is 0"),
    ],
)
def test_a_correction_that_makes_no_sense_changes_nothing(mock_guard, prompts, labels, error, said):
    with pytest.raises(error, match=said):
        corrected(mock_guard, prompts, labels)
    assert counts(mock_guard) == [30, 30]


@pytest.mark.parametrize("repeat", [0, -1, 1.5, True])
def test_a_repeat_is_a_positive_whole_number(mock_guard, repeat):
    with pytest.raises(ConfigurationError, match="repeat="):
        corrected(mock_guard, ["a"], [0], repeat=repeat)


def test_the_last_examples_of_a_class_are_not_forgotten_away():
    small = Guard(MockEncoder()).fit(["kind a", "kind b", "unsafe a", "unsafe b"], [0, 0, 1, 1], progress=False)
    with pytest.raises(DataError, match="would leave 1 prompts of class 1"):
        corrected(small, ["unsafe a"], [0])
    assert counts(small) == [2, 2]


def test_a_guard_without_statistics_says_that_it_cannot_be_corrected(mock_guard, tmp_path):
    mock_guard.save_pretrained(tmp_path / "small", statistics=False)
    loaded = Guard.from_pretrained(tmp_path / "small", encoder=MockEncoder())
    with pytest.raises(BundleError, match="without statistics"):
        corrected(loaded, ["a"], [0])


def test_a_category_that_flags_whatever_the_score_is_named(mock_guard):
    mock_guard.add_category("mine", [f"the unsafe thing {i}" for i in range(10)], negatives=SAFE, threshold=0.0)
    _, (correction,) = corrected(mock_guard, ["a very unsafe word"], [0], repeat=200)
    assert (correction.settled, correction.flagged_by) == (False, ("mine",))
    assert correction.after < mock_guard.threshold
