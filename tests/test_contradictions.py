import numpy as np
import pytest

from mlpm_guard import contradictions
from mlpm_guard.contradictions import LabelsSeen
from mlpm_guard.errors import ContradictoryLabelsError
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder
from tests.conftest import SAFE, UNSAFE


def test_the_other_label_is_found_and_the_same_one_is_not():
    seen = LabelsSeen()
    assert seen.add(5, 0, 1) is None
    assert seen.add(6, 1, 0) is None
    assert seen.add(5, 2, 1) is None
    assert seen.add(5, 3, 0) == 0
    assert seen.add(6, 4, 1) == 1


def test_keys_are_found_wherever_they_are_kept_and_compared_in_all_their_bits(monkeypatch):
    monkeypatch.setattr(contradictions, "_LEAST_RECENT", 10)
    keys = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64).tolist()
    keys += [0, 2**64 - 1, 2**63, 2**63 + 1]
    seen = LabelsSeen()
    assert all(seen.add(key, row, row % 2) is None for row, key in enumerate(keys))
    assert [seen.add(key, 5000, 1 - row % 2) for row, key in enumerate(keys)] == list(range(len(keys)))
    assert seen.add(2**63 + 2, 0, 0) is None


@pytest.mark.parametrize("labels", [([0] * 30 + [1] * 30 + [1]), (["safe"] * 30 + ["unsafe"] * 30 + [True])])
def test_a_fit_refuses_a_prompt_with_both_labels_and_names_both_rows_without_text(labels):
    guard = Guard(MockEncoder())
    with pytest.raises(ContradictoryLabelsError) as caught:
        guard.fit([*SAFE, *UNSAFE, SAFE[7]], labels, progress=False)
    assert caught.value.rows == (7, 60)
    assert str(caught.value).startswith("row 60: the same prompt as row 7, with the other label")
    assert "topic" not in str(caught.value)


def test_a_repeated_prompt_with_the_same_label_is_learned_twice():
    guard = Guard(MockEncoder()).fit([*SAFE, *UNSAFE, SAFE[7]], [0] * 30 + [1] * 30 + [0], progress=False)
    assert guard.classifier.statistics_.count(0) == 31


def test_the_same_words_in_another_conversation_are_another_prompt():
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": SAFE[7]}]
    guard = Guard(MockEncoder()).fit([*SAFE, *UNSAFE, turns], [0] * 30 + [1] * 31, progress=False)
    assert guard.classifier.statistics_.count(1) == 31


def test_learning_more_and_calibrating_refuse_it_too_and_leave_the_guard_as_it_was(mock_guard):
    score = mock_guard.check("something").score
    with pytest.raises(ContradictoryLabelsError):
        mock_guard.partial_fit(["a", "b", "a"], [0, 0, 1])
    with pytest.raises(ContradictoryLabelsError):
        mock_guard.calibrate(["a", "b", "a"], [0, 0, 1], objective="f1")
    assert mock_guard.check("something").score == score
    assert mock_guard.calibration is None


def test_a_prompt_that_was_learned_under_both_labels_can_be_forgotten_under_both(mock_guard):
    mock_guard.partial_fit(["both"], [0]).partial_fit(["both"], [1])
    mock_guard.forget(["both", "both"], [0, 1])
    assert [mock_guard.classifier.statistics_.count(label) for label in (0, 1)] == [30, 30]
