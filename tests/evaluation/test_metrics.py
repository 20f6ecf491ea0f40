import math
import random

import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from mlpm_guard.errors import DataError
from mlpm_guard.evaluation.metrics import compute


def at(scores, threshold=0.5):
    return [score >= threshold for score in scores]


def recall_by_hand(labels, scores, rate):
    """The best recall over every threshold that flags equal scores together, and over flagging nothing."""
    unsafe, safe = labels.count(1), labels.count(0)
    best = 0.0
    for threshold in {*scores, 2.0}:
        rows = [label for label, score in zip(labels, scores, strict=True) if score >= threshold]
        if rows.count(0) / safe <= rate:
            best = max(best, rows.count(1) / unsafe)
    return best


@pytest.mark.parametrize("levels", [5, 50, 10_000])
def test_figures_agree_with_scikit_learn_and_with_counting_by_hand(levels):
    rng = random.Random(levels)
    labels = [rng.randint(0, 1) for _ in range(400)]
    scores = [round(min(1, max(0, rng.gauss(0.35 + 0.3 * label, 0.2))) * levels) / levels for label in labels]
    flagged = at(scores)
    metrics = compute(labels, scores, flagged)
    assert metrics.precision == pytest.approx(precision_score(labels, flagged))
    assert metrics.recall == pytest.approx(recall_score(labels, flagged))
    assert metrics.f1 == pytest.approx(f1_score(labels, flagged))
    assert metrics.average_precision == pytest.approx(average_precision_score(labels, scores))
    assert metrics.recall_at_fpr["0.01"] == pytest.approx(recall_by_hand(labels, scores, 0.01))
    assert metrics.recall_at_fpr["0.05"] == pytest.approx(recall_by_hand(labels, scores, 0.05))
    assert (metrics.n, metrics.unsafe, metrics.safe, metrics.errors) == (400, sum(labels), 400 - sum(labels), 0)


def test_a_false_positive_rate_of_exactly_the_limit_is_within_it():
    labels = [0] * 100 + [1] * 4
    scores = [0.9] + [0.1] * 99 + [0.95, 0.9, 0.8, 0.05]
    # At 0.8 one safe row of a hundred is flagged, and three of four unsafe rows are caught.
    assert compute(labels, scores, at(scores)).recall_at_fpr["0.01"] == 0.75


def test_rows_of_equal_score_are_flagged_together():
    labels = [1, 1, 0, 0]
    scores = [0.9, 0.6, 0.6, 0.1]
    metrics = compute(labels, scores, at(scores))
    # Taking the second unsafe row in takes the safe row with it: half of the safe rows.
    assert metrics.recall_at_fpr == {"0.01": 0.5, "0.05": 0.5}
    same = compute(labels, [0.5] * 4, [True] * 4)
    assert same.recall_at_fpr["0.05"] == 0.0
    assert same.average_precision == 0.5


def test_a_threshold_between_ties_of_equal_make_up_is_not_passed_over():
    # Each of four scores is shared by one unsafe and one safe row; the other 196 safe rows score lowest.
    labels = [1, 0] * 4 + [0] * 196
    scores = [0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6] + [0.1] * 196
    assert compute(labels, scores, at(scores)).recall_at_fpr == {"0.01": 0.5, "0.05": 1.0}


def test_perfect_and_inverted_rankings_give_the_extremes():
    labels = [0, 0, 1, 1]
    good = compute(labels, [0.1, 0.2, 0.8, 0.9], at([0.1, 0.2, 0.8, 0.9]))
    assert (good.precision, good.recall, good.f1, good.average_precision, good.false_positive_rate) == (1, 1, 1, 1, 0)
    bad = compute(labels, [0.9, 0.8, 0.2, 0.1], at([0.9, 0.8, 0.2, 0.1]))
    assert (bad.precision, bad.recall, bad.f1, bad.false_positive_rate) == (0, 0, 0, 1)
    assert bad.recall_at_fpr == {"0.01": 0.0, "0.05": 0.0}


def test_rows_that_could_not_be_judged_count_as_flagged_and_rank_first():
    metrics = compute([0, 1, 0, 1], [None, 1.0, 0.1, float("nan")], [False, True, False, False])
    assert metrics.errors == 2
    assert metrics.recall == 1.0
    assert metrics.false_positive_rate == 0.5
    assert metrics.precision == pytest.approx(2 / 3)
    # An unjudged row stands above a safe row whose score is 1, so that a threshold between them catches it for nothing.
    assert compute([1, 0, 0, 1], [None, 1.0, 0.1, 0.5], [True, True, False, True]).recall_at_fpr["0.05"] == 0.5


def test_with_one_class_only_what_it_does_not_define_is_none():
    safe = compute([0, 0], [0.9, 0.1], [True, False])
    assert (safe.false_positive_rate, safe.recall, safe.precision, safe.f1, safe.average_precision) == (
        0.5,
        None,
        None,
        None,
        None,
    )
    assert safe.recall_at_fpr == {"0.01": None, "0.05": None}
    unsafe = compute([1, 1], [0.9, 0.1], [True, False])
    assert (unsafe.recall, unsafe.false_positive_rate, unsafe.precision, unsafe.average_precision) == (0.5, None, None, None)


def test_nothing_flagged_has_no_precision_and_an_f1_of_zero():
    metrics = compute([0, 1], [0.1, 0.2], [False, False])
    assert (metrics.precision, metrics.recall, metrics.f1) == (None, 0.0, 0.0)


def test_no_rows_define_nothing():
    metrics = compute([], [], [])
    assert metrics.n == 0
    assert (metrics.recall, metrics.precision, metrics.false_positive_rate, metrics.average_precision) == (None,) * 4


@pytest.mark.parametrize(
    ("labels", "scores", "flagged", "said"),
    [
        ([0, 1], [0.1], [False, True], "2 labels, 1 scores"),
        ([0, 1], [0.1, 0.2], [False], "1 judgements"),
        ([0, 2], [0.1, 0.2], [False, False], "label 1 is neither"),
        ([0, 1], [0.1, 1.5], [False, True], "score 1 is not a probability"),
        ([0, 1], [-0.1, 0.5], [False, True], "score 0 is not a probability"),
        ([0, 1], [math.inf, 0.5], [True, True], "score 0 is not a probability"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(labels, scores, flagged, said):
    with pytest.raises(DataError, match=said):
        compute(labels, scores, flagged)


def test_metrics_survive_a_round_trip_through_json():
    metrics = compute([0, 1, 1], [0.1, 0.9, None], [False, True, True])
    assert type(metrics).model_validate_json(metrics.model_dump_json()) == metrics
