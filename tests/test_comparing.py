import json

import numpy as np
import pytest

from mlpm_guard.comparing import Diff, Row, compare, diff
from mlpm_guard.errors import ConfigurationError, ContradictoryLabelsError, DataError
from mlpm_guard.evaluation.intervals import NAMES
from mlpm_guard.evaluation.metrics import compute
from mlpm_guard.review import Review
from mlpm_guard.rules import Rules
from mlpm_guard.testing import MockGuard

SECRET = "xyzzy"


def keyed(**scores):
    """A guard that scores a text by the word that it starts with."""
    return MockGuard(lambda text: scores[text.split()[0]])


BEFORE = {"calm": 0.1, "harsh": 0.9, "odd": 0.4, "edge": 0.6}
AFTER = {"calm": 0.1, "harsh": 0.9, "odd": 0.7, "edge": 0.3}
PROMPTS = [f"{word} {SECRET} {i}" for i, word in enumerate(["calm", "odd", "harsh", "edge", "odd", "calm"])]


def test_flips_are_told_by_position_and_direction_with_both_scores():
    found = diff(keyed(**BEFORE), keyed(**AFTER), PROMPTS)
    assert [(flip.index, flip.direction) for flip in found.flips] == [
        (1, "newly_flagged"),
        (3, "no_longer_flagged"),
        (4, "newly_flagged"),
    ]
    assert [(flip.before.score, flip.after.score) for flip in found.flips] == [
        pytest.approx(pair) for pair in [(0.4, 0.7), (0.6, 0.3), (0.4, 0.7)]
    ]
    assert (found.before.threshold, found.before.flagged, found.after.flagged) == (0.5, 2, 3)
    assert (found.prompts, found.same, found.changes, found.before.metrics) == (6, False, {}, None)
    assert [found.count(direction) for direction in ("newly_flagged", "no_longer_flagged", "other_action")] == [2, 1, 0]


def test_a_guard_compares_itself_with_another():
    one, other = keyed(**BEFORE), keyed(**AFTER)
    assert one.diff(other, iter(PROMPTS), iter([0, 1, 1, 0, 1, 0])) == diff(one, other, PROMPTS, [0, 1, 1, 0, 1, 0])
    assert one.diff(other, PROMPTS).flips[0].direction == "newly_flagged"


def test_each_guard_judges_at_its_own_threshold():
    stricter = keyed(**BEFORE)
    stricter.threshold = 0.05
    found = diff(keyed(**BEFORE), stricter, PROMPTS)
    assert (found.before.threshold, found.after.threshold) == (0.5, 0.05)
    assert [flip.index for flip in found.flips] == [0, 1, 4, 5]
    assert all(flip.before.score == flip.after.score for flip in found.flips)


def test_a_guard_does_not_differ_from_itself():
    guard = keyed(**BEFORE)
    found = diff(guard, guard, PROMPTS * 10, [0, 1, 1, 0, 1, 0] * 10)
    assert found.same
    assert found.before == found.after
    for change in found.changes.values():
        assert (change.change, change.low, change.high) == (0.0, 0.0, 0.0)


def test_labels_give_the_metrics_of_both_and_how_they_move():
    labels = [0, 1, 1, 0, 1, 0]
    found = diff(keyed(**BEFORE), keyed(**AFTER), PROMPTS, ["unsafe" if label else "safe" for label in labels])
    for side, scores in ((found.before, BEFORE), (found.after, AFTER)):
        values = np.array([scores[text.split()[0]] for text in PROMPTS])
        expected = compute(labels, values, values >= 0.5)
        assert all(side.metrics.figure(name) == pytest.approx(expected.figure(name)) for name in NAMES)
    assert (found.before.metrics.recall, found.after.metrics.recall) == (1 / 3, 1.0)
    assert found.changes["recall"].change == pytest.approx(2 / 3)
    assert found.changes["false_positive_rate"].change == pytest.approx(-1 / 3)
    assert found.changes["f1"].after == 1.0
    assert all(flip.better for flip in found.flips)
    assert set(found.changes) == set(NAMES)


def test_the_interval_of_a_change_comes_from_the_same_draws_for_both():
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.5
    noise = rng.normal(0.0, 0.2, 300)
    first = np.clip(0.4 + 0.2 * labels + noise, 0.01, 0.99)
    second = np.clip(first + 0.05 * (2 * labels - 1), 0.01, 0.99)
    prompts = [str(i) for i in range(300)]
    found = diff(
        MockGuard(lambda text: float(first[int(text)])),
        MockGuard(lambda text: float(second[int(text)])),
        prompts,
        labels.astype(int).tolist(),
    )
    change = found.changes["average_precision"]
    assert 0 < change.low < change.change < change.high
    # Two separate resamples would leave an interval several times as wide.
    assert change.high - change.low < 0.06


def test_one_class_alone_has_the_figures_that_it_defines_and_no_intervals():
    found = diff(keyed(**BEFORE), keyed(**AFTER), PROMPTS, [1] * 6)
    assert found.changes["recall"].change == pytest.approx(1 / 6)
    assert found.changes["recall"].low is None
    assert found.changes["average_precision"].change is None


def test_a_gate_that_does_something_else_with_a_prompt_judged_alike_is_a_flip_too():
    reviewing = keyed(**BEFORE)
    reviewing.review = Review(score=0.3)
    found = diff(keyed(**BEFORE), reviewing, PROMPTS, [0] * 6)
    assert [(flip.index, flip.direction, flip.after.action.value) for flip in found.flips] == [
        (1, "other_action", "review"),
        (4, "other_action", "review"),
    ]
    assert [flip.better for flip in found.flips] == [None, None]


def test_a_flip_by_a_list_of_the_users_own_says_so():
    blocking = keyed(**BEFORE)
    blocking.rules = Rules(block={"mine": "calm"})
    found = diff(keyed(**BEFORE), blocking, PROMPTS)
    assert [flip.after.rule.entry for flip in found.flips] == ["mine", "mine"]


def test_a_prompt_that_one_guard_cannot_judge_is_flagged_by_it():
    def failing(text):
        if text.startswith("calm"):
            raise RuntimeError(SECRET)
        return BEFORE[text.split()[0]]

    found = diff(keyed(**BEFORE), MockGuard(failing), PROMPTS, [0, 1, 1, 0, 1, 0])
    assert [(flip.index, flip.direction) for flip in found.flips] == [(0, "newly_flagged"), (5, "newly_flagged")]
    assert {(flip.after.score, flip.after.error) for flip in found.flips} == {(None, "encoder_error")}
    assert found.after.errors == 2


def test_the_result_holds_no_text_and_survives_json():
    rows = (Row(text, None, f"id-{i}") for i, text in enumerate(PROMPTS))
    found = compare(keyed(**BEFORE), keyed(**AFTER), rows)
    assert [flip.id for flip in found.flips] == ["id-1", "id-3", "id-4"]
    assert SECRET not in found.model_dump_json() + repr(found)
    assert Diff.model_validate_json(found.model_dump_json()) == found
    assert json.loads(found.model_dump_json())["flips"][0]["direction"] == "newly_flagged"


def test_many_prompts_are_judged_in_shared_batches_and_keep_their_positions():
    one, other = keyed(**BEFORE), keyed(**AFTER)
    found = diff(one, other, (f"{'odd' if i % 1000 == 999 else 'calm'} {i}" for i in range(3000)))
    assert [flip.index for flip in found.flips] == [999, 1999, 2999]
    assert len(one.calls) == 3


@pytest.mark.parametrize(
    ("prompts", "labels", "said"),
    [
        ([], None, "no prompts"),
        ("one text", None, "a list of them"),
        (7, None, "a list of them"),
        (PROMPTS, [0, 1], "only 2 labels"),
        (PROMPTS[:1], [0, 1], "only 1 prompts"),
        (PROMPTS, [0, 1, "perhaps", 0, 0, 0], "row 2: a label is 0"),
    ],
)
def test_data_that_cannot_be_compared_on_is_named(prompts, labels, said):
    with pytest.raises(DataError, match=said):
        diff(keyed(**BEFORE), keyed(**AFTER), prompts, labels)


@pytest.mark.parametrize("as_messages", [False, True])
def test_the_same_prompt_with_both_labels_is_refused_as_in_a_fit(as_messages):
    again = [{"role": "user", "content": PROMPTS[1]}] if as_messages else PROMPTS[1]
    with pytest.raises(ContradictoryLabelsError, match="row 6: the same prompt as row 1") as caught:
        diff(keyed(**BEFORE), keyed(**AFTER), [*PROMPTS, again], [0, 1, 1, 0, 1, 0, 0])
    assert caught.value.rows == (1, 6)
    assert SECRET not in str(caught.value)
    assert diff(keyed(**BEFORE), keyed(**AFTER), [*PROMPTS, again], [0, 1, 1, 0, 1, 0, 1]).prompts == 7


def test_what_is_no_conversation_is_compared_all_the_same():
    found = diff(keyed(**BEFORE), keyed(**AFTER), [7, None, *PROMPTS], [0, 1, 0, 1, 1, 0, 1, 0])
    assert (found.before.errors, found.after.errors) == (2, 2)


def test_labels_on_some_rows_only_are_refused():
    with pytest.raises(DataError, match="1 of the first 2 prompts have a label"):
        compare(keyed(**BEFORE), keyed(**AFTER), [Row("calm", 0), Row("calm")])


def test_guards_that_judge_different_things_or_are_none_are_refused():
    with pytest.raises(ConfigurationError, match="one guard judges the prompt, the other the response"):
        diff(MockGuard(), MockGuard(target="response"), PROMPTS)
    with pytest.raises(ConfigurationError, match="other is str: pass a Guard"):
        diff(MockGuard(), "default", PROMPTS)
