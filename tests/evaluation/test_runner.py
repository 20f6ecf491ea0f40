import pytest

from mlpm_guard.datafiles import Record
from mlpm_guard.errors import ConfigurationError, DataError, NotFittedError
from mlpm_guard.evaluation.runner import Evaluation, evaluate
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder, MockGuard


def record(line, text, label, source="set"):
    return Record(line=line, id=None, conversation=text, label=label, source=source, category=None)


def rows(count, source="set"):
    return [record(i + 1, f"{'unsafe' if i % 2 else 'kind'} {i}", i % 2, source) for i in range(count)]


def says_unsafe(text):
    return "unsafe" in text


def test_a_guard_that_is_right_scores_one_and_one_that_flags_everything_pays_in_precision():
    right = evaluate(MockGuard(says_unsafe), rows(10)).overall
    assert (right.precision, right.recall, right.f1, right.false_positive_rate) == (1, 1, 1, 0)
    eager = evaluate(MockGuard(lambda _: True), rows(10)).overall
    assert (eager.precision, eager.recall, eager.false_positive_rate) == (0.5, 1, 1)


def test_records_are_judged_in_batches_and_never_all_read_at_once():
    guard = MockGuard(says_unsafe)
    seen = []

    def stream():
        for row in rows(10):
            # With batches of four, no more than three rows are ahead of what was judged.
            assert row.line - 1 - sum(guard.calls) < 4
            yield row

    evaluation = evaluate(guard, stream(), batch_size=4, progress=seen.append)
    assert evaluation.overall.n == 10
    assert guard.calls == seen == [4, 4, 2]


def test_every_source_has_its_own_metrics():
    mixed = [*rows(4, "b"), record(5, "kind but labelled otherwise", 1, "a"), record(6, "kind", 0, "a")]
    evaluation = evaluate(MockGuard(says_unsafe), mixed)
    assert list(evaluation.sources) == ["a", "b"]
    assert (evaluation.sources["a"].recall, evaluation.sources["b"].recall) == (0.0, 1.0)
    assert evaluation.sources["a"].n + evaluation.sources["b"].n == evaluation.overall.n == 6
    assert evaluation.sources["a"].unsafe == 1


def test_rows_that_cannot_be_judged_count_as_flagged_and_as_errors():
    data = [record(1, "", 0), record(2, "   ", 1), record(3, "kind", 0), record(4, "unsafe", 1)]
    metrics = evaluate(MockGuard(says_unsafe, on_error="allow", mode="monitor"), data).overall
    assert metrics.errors == 2
    assert metrics.false_positive_rate == 0.5
    assert metrics.recall == 1.0


def test_a_flag_that_always_fails_is_measured_as_flagging_everything():
    def broken(_text):
        raise RuntimeError("no")

    metrics = evaluate(MockGuard(broken), rows(6)).overall
    assert (metrics.errors, metrics.recall, metrics.false_positive_rate) == (6, 1.0, 1.0)


def test_the_threshold_and_the_bundle_are_reported(tmp_path):
    guard = Guard(MockEncoder(), threshold=0.25).fit([row.conversation for row in rows(40)], [row.label for row in rows(40)])
    guard.save_pretrained(tmp_path / "mine")
    evaluation = evaluate(guard, rows(10))
    assert evaluation.threshold == 0.25
    assert evaluation.bundle_id.startswith("mine-")
    assert evaluation.overall.recall == 1.0


def test_a_fitted_guard_gives_the_same_metrics_whatever_the_batch_size():
    guard = Guard(MockEncoder()).fit([row.conversation for row in rows(40)], [row.label for row in rows(40)])
    assert evaluate(guard, rows(30), batch_size=1) == evaluate(guard, rows(30), batch_size=30)


def test_an_evaluation_survives_json_and_holds_no_text():
    evaluation = evaluate(MockGuard(), [record(1, "xyzzy one", 0), record(2, "xyzzy two", 1)])
    dumped = evaluation.model_dump_json()
    assert Evaluation.model_validate_json(dumped) == evaluation
    assert "xyzzy" not in dumped


def test_a_record_without_a_label_is_named_by_its_line():
    with pytest.raises(DataError, match="line 7 of 'set' has no label"):
        evaluate(MockGuard(), [record(7, "xyzzy", None)])


def test_nothing_to_evaluate_on_is_an_error():
    with pytest.raises(DataError, match="no records"):
        evaluate(MockGuard(), [])


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_size_that_makes_no_sense_is_refused(size):
    with pytest.raises(ConfigurationError, match="batch_size"):
        evaluate(MockGuard(), rows(2), batch_size=size)


def test_a_guard_that_was_never_fitted_says_so():
    with pytest.raises(NotFittedError):
        evaluate(Guard(MockEncoder()), rows(2))
