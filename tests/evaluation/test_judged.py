import numpy as np
import pytest

from mlpm_guard.datafiles import Record
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.evaluation.judged import EXAMPLES, collect
from mlpm_guard.evaluation.runner import evaluate
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder, MockGuard


def record(line, text, label, source="set", category=None, identity=None):
    return Record(line=line, id=identity, conversation=text, label=label, source=source, category=category)


def rows(count, source="set"):
    return [record(i + 1, f"{'unsafe' if i % 2 else 'kind'} {i}", i % 2, source) for i in range(count)]


def says_unsafe(text):
    return "unsafe" in text


def fitted():
    data = rows(60)
    return Guard(MockEncoder()).fit([row.conversation for row in data], [row.label for row in data], progress=False)


def test_the_figures_are_those_of_an_evaluation():
    guard, data = fitted(), [*rows(40, "a"), *rows(20, "b"), record(1, "", 0, "b"), record(2, "kind", 1, "a")]
    (result,) = collect([("mine", guard)], data)
    assert result.evaluation() == evaluate(guard, data)
    assert result.rows.sources.tolist().count("b") == 21


def test_guards_judge_the_same_rows_batch_by_batch():
    first, second = MockGuard(says_unsafe), MockGuard(lambda _: False)
    seen = []
    one, other = collect([("a", first), ("b", second)], iter(rows(10)), batch_size=4, progress=seen.append)
    assert one.rows is other.rows
    assert seen == [4, 4, 2]
    assert first.calls[:3] == second.calls[:3] == [4, 4, 2]
    assert (one.metrics().recall, other.metrics().recall) == (1.0, 0.0)


def test_the_worst_mistakes_come_first_and_no_more_than_a_few_are_kept():
    scores = {f"case {i}": (i + 1) / 100 for i in range(60)}
    data = [record(i + 1, f"case {i}", 1, identity=f"row-{i}") for i in range(60)]
    (result,) = collect([("a", MockGuard(lambda text: scores[text]))], data)
    assert [mistake.row for mistake in result.missed] == [f"row-{i}" for i in range(EXAMPLES)]
    assert result.false_alarms == []
    (result,) = collect(
        [("a", MockGuard(lambda text: 1 - scores[text] / 2))], [record(i + 1, f"case {i}", 0) for i in range(60)]
    )
    assert [mistake.row for mistake in result.false_alarms[:2]] == ["set, line 1", "set, line 2"]
    assert result.missed == []


def test_mistakes_hold_text_only_when_it_is_asked_for():
    data = [record(1, "xyzzy", 1), record(2, [{"role": "user", "content": "xyzzy"}], 1)]
    (result,) = collect([("a", MockGuard())], data)
    assert [mistake.text for mistake in result.missed] == [None, None]
    (result,) = collect([("a", MockGuard())], data, keep_text=True)
    assert [mistake.text for mistake in result.missed] == ["xyzzy", "user: xyzzy"]
    assert "xyzzy" not in repr(result.missed)


def test_rows_that_cannot_be_judged_are_kept_as_such():
    (result,) = collect([("a", fitted())], [record(1, "", 0), record(2, "unsafe", 1)])
    assert np.isnan(result.scores).tolist() == [True, False]
    assert np.isnan(result.layer_log_odds).all(axis=1).tolist() == [True, False]
    assert result.ranks[0] > 1.0
    assert result.false_alarms[0].score is None


def test_layers_carry_the_evidence_of_the_verdicts():
    guard, data = fitted(), rows(12)
    (result,) = collect([("a", guard)], data)
    verdicts = guard.check_batch([row.conversation for row in data])
    assert result.layers == tuple(layer.layer for layer in verdicts[0].layers)
    assert result.layer_log_odds == pytest.approx(np.array([[layer.log_odds for layer in v.layers] for v in verdicts]))


def test_the_cost_is_measured():
    (result,) = collect([("a", MockGuard(delay=0.02))], rows(10), batch_size=5)
    assert result.cost.batched >= 2 * 0.02 / 10
    assert result.cost.alone >= 0.02
    assert result.cost.alone_slow >= result.cost.alone
    assert (result.cost.sampled, result.cost.batch_size) == (10, 5)


def test_guards_of_different_targets_are_not_compared():
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        collect([("a", MockGuard()), ("b", MockGuard(target="response"))], rows(2))
    with pytest.raises(ConfigurationError, match="at least one"):
        collect([], rows(2))


def test_bad_rows_are_named_as_an_evaluation_names_them():
    with pytest.raises(DataError, match="line 7 of 'set' has no label"):
        collect([("a", MockGuard())], [record(7, "xyzzy", None)])
    with pytest.raises(DataError, match="no records"):
        collect([("a", MockGuard())], [])
