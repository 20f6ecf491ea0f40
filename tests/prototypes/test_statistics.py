"""Statistics add, subtract and merge: whatever the order, they are those of one pass over all prompts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_data import Labels, States, close, collect, make

from mlpm_guard.errors import BundleCorruptError, DataError, NonFiniteError, UnknownPromptError
from mlpm_guard.prototypes.discriminant import fit_discriminants
from mlpm_guard.prototypes.ledger import KeyLedger
from mlpm_guard.prototypes.statistics import PrototypeStatistics

STATES, LABELS = make(30, 24)
KEYS = np.random.default_rng(5).permutation(1000)[: len(LABELS)].astype(np.uint64)
SIZES = pytest.mark.parametrize("sample_size", [512, 12, 4], ids=["rows-kept", "sampled", "few-sampled"])


def learned(indices: Any, sample_size: int) -> PrototypeStatistics:
    indices = np.asarray(indices, np.int64)
    return collect(STATES[indices], LABELS[indices], sample_size=sample_size, keys=KEYS[indices])


def scatter_within(states: States, labels: Labels) -> np.ndarray[Any, Any]:
    total = np.zeros((states.shape[1], states.shape[2], states.shape[2]))
    for label in np.unique(labels):
        h = states[labels == label].astype(np.float64)
        h -= h.mean(axis=0)
        total += np.einsum("nld,nle->lde", h, h)
    return total


def same(one: PrototypeStatistics, two: PrototypeStatistics, *, rows: bool = True, tolerance: float = 1e-9) -> bool:
    """Equal counts, means, discriminants, known keys and (if asked) samples."""
    for label in (0, 1):
        a, b = one.classes[label], two.classes[label]
        if one.count(label) != two.count(label) or not close(one.means(label), two.means(label), tolerance):
            return False
        if any(a.times(int(key)) != b.times(int(key)) for key in KEYS):
            return False
        if rows and (
            a.complete != b.complete or {k: r.times for k, r in a.rows.items()} != {k: r.times for k, r in b.rows.items()}
        ):
            return False
        if rows and any(not np.array_equal(a.rows[key].states, b.rows[key].states) for key in a.rows):
            return False
    found, wanted = fit_discriminants(one), fit_discriminants(two)
    return close(found.weights, wanted.weights, tolerance * 100) and close(found.biases, wanted.biases, tolerance * 100)


@st.composite
def partitions(draw: st.DrawFn) -> list[np.ndarray[Any, Any]]:
    """All prompts in some order, cut into shards, some of which may be empty of a class or of everything."""
    order = np.array(draw(st.permutations(range(len(LABELS)))))
    cuts = sorted(draw(st.lists(st.integers(0, len(LABELS)), max_size=5)))
    return np.split(order, cuts)


@settings(max_examples=25, deadline=None)
@given(shards=partitions(), sample_size=st.sampled_from([512, 12, 4]))
def test_merging_shards_in_any_order_equals_fitting_on_all(shards: list[np.ndarray[Any, Any]], sample_size: int) -> None:
    merged = PrototypeStatistics(3, 6, sample_size=sample_size)
    for shard in shards:
        merged = merged.merge(learned(shard, sample_size))
    assert same(merged, learned(range(len(LABELS)), sample_size))


@settings(max_examples=25, deadline=None)
@given(shards=partitions(), sample_size=st.sampled_from([512, 12, 4]))
def test_learning_in_chunks_equals_learning_at_once(shards: list[np.ndarray[Any, Any]], sample_size: int) -> None:
    streamed = PrototypeStatistics(3, 6, sample_size=sample_size)
    for shard in shards:
        streamed.update(STATES[shard], LABELS[shard], KEYS[shard])
    assert same(streamed, learned(range(len(LABELS)), sample_size))


@SIZES
def test_merging_changes_neither_side(sample_size: int) -> None:
    one, two = learned(range(30), sample_size), learned(range(30, 54), sample_size)
    before = copy.deepcopy(one), copy.deepcopy(two)
    merged = one.merge(two)
    merged.update(STATES[:5], LABELS[:5], KEYS[:5])
    merged.forget(STATES[40:42], LABELS[40:42], KEYS[40:42])
    assert same(one, before[0])
    assert same(two, before[1])


@pytest.mark.parametrize("sample_size", [512, 4], ids=["rows-kept", "rows-summed"])
def test_counts_means_and_scatter_are_those_of_the_prompts(sample_size: int) -> None:
    statistics = learned(range(len(LABELS)), sample_size)
    for label in (0, 1):
        assert statistics.count(label) == (label == LABELS).sum()
        assert close(statistics.means(label), STATES[label == LABELS].astype(np.float64).mean(axis=0), 1e-12)
    if sample_size == 4:
        assert close(statistics.scatter, scatter_within(STATES, LABELS), 1e-12)
    else:
        assert statistics.scatter is None


def test_scatter_of_states_far_from_the_origin_stays_accurate_in_any_number_of_chunks() -> None:
    states, labels = make(40, 40, offset=1e6)
    keys = np.arange(80, dtype=np.uint64)
    for chunk in (80, 7, 1):
        statistics = PrototypeStatistics(3, 6, sample_size=4)
        for start in range(0, 80, chunk):
            part = slice(start, start + chunk)
            statistics.update(states[part], labels[part], keys[part])
        assert close(statistics.scatter, scatter_within(states, labels), 1e-8)


# -- the sample ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(LABELS))))
def test_the_kept_sample_is_the_smallest_keys_whatever_the_order(order: list[int]) -> None:
    statistics = learned(order, 5)
    for label in (0, 1):
        assert statistics.classes[label].sorted_keys() == sorted(KEYS[label == LABELS].tolist())[:5]


def test_a_class_keeps_its_rows_until_it_has_more_prompts_than_sample_and_dimensions() -> None:
    states, labels = make(60, 60, dim=20)
    keys = np.arange(120, dtype=np.uint64)
    small = PrototypeStatistics(3, 20, sample_size=4)
    first = np.flatnonzero(labels == 0)
    small.update(states[first[:20]], labels[first[:20]], keys[first[:20]])
    assert small.scatter is None
    small.update(states[first[:1]], labels[first[:1]], keys[first[:1]])
    assert small.scatter is None, "a repeated prompt needs no more room"
    small.update(states[first[20:21]], labels[first[20:21]], keys[first[20:21]])
    assert small.scatter is not None
    assert small.scatter.shape == (3, 20, 20)
    assert len(small.classes[0].rows) == 4


@SIZES
def test_the_sample_size_does_not_depend_on_chunks_after_forgetting(sample_size: int) -> None:
    sizes = []
    for chunk in (1, 24):
        statistics = learned(range(30), sample_size)
        smallest = np.argsort(np.where(LABELS[:30] == 0, KEYS[:30], 10_000))[:2]
        statistics.forget(STATES[smallest], LABELS[smallest], KEYS[smallest])
        for start in range(30, 54, chunk):
            part = slice(start, start + chunk)
            statistics.update(STATES[part], LABELS[part], KEYS[part])
        sizes.append([len(statistics.classes[label].rows) for label in (0, 1)])
        assert all(statistics.classes[c].complete or n <= sample_size for c, n in enumerate(sizes[-1]))
    assert sizes[0] == sizes[1]


# -- forgetting ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    gone=st.lists(st.integers(0, len(LABELS) - 1), min_size=1, max_size=20, unique=True),
    sample_size=st.sampled_from([512, 12]),
)
def test_forgetting_what_was_learned_last_equals_never_having_learned_it(gone: list[int], sample_size: int) -> None:
    rest = [i for i in range(len(LABELS)) if i not in gone]
    statistics = learned(rest, sample_size)
    statistics.update(STATES[gone], LABELS[gone], KEYS[gone])
    statistics.forget(STATES[gone], LABELS[gone], KEYS[gone])
    # A class that had outgrown its rows keeps the sums, and a smaller sample.
    assert same(statistics, learned(rest, sample_size), rows=sample_size == 512)


@SIZES
def test_a_prompt_learned_twice_is_forgotten_once_at_a_time(sample_size: int) -> None:
    once = learned(range(54), sample_size)
    statistics = copy.deepcopy(once)
    statistics.update(STATES[:9], LABELS[:9], KEYS[:9])
    assert [statistics.count(label) for label in (0, 1)] != [once.count(label) for label in (0, 1)]
    statistics.forget(STATES[:9], LABELS[:9], KEYS[:9])
    assert same(statistics, once)


@SIZES
def test_forgetting_the_unknown_names_their_positions_and_changes_nothing(sample_size: int) -> None:
    statistics = learned(range(40), sample_size)
    before = copy.deepcopy(statistics)
    asked = [3, 45, 7, 50]
    with pytest.raises(UnknownPromptError) as caught:
        statistics.forget(STATES[asked], LABELS[asked], KEYS[asked])
    assert caught.value.indices == (1, 3)
    assert same(statistics, before)


@SIZES
def test_a_prompt_is_unknown_under_the_other_label_and_more_often_than_it_was_learned(sample_size: int) -> None:
    statistics = learned(range(54), sample_size)
    before = copy.deepcopy(statistics)
    with pytest.raises(UnknownPromptError) as caught:
        statistics.forget(STATES[:2], 1 - LABELS[:2], KEYS[:2])
    assert caught.value.indices == (0, 1)
    twice = [4, 4]
    with pytest.raises(UnknownPromptError) as caught:
        statistics.forget(STATES[twice], LABELS[twice], KEYS[twice])
    assert caught.value.indices == (1,)
    assert same(statistics, before)


def test_forgetting_the_whole_sample_of_a_class_is_refused_and_changes_nothing() -> None:
    statistics = learned(range(54), 4)
    before = copy.deepcopy(statistics)
    sample = [i for i in range(54) if LABELS[i] == 0 and int(KEYS[i]) in statistics.classes[0].rows]
    with pytest.raises(DataError, match="none of the sample"):
        statistics.forget(STATES[sample], LABELS[sample], KEYS[sample])
    assert same(statistics, before)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=4), st.data())
def test_a_ledger_is_a_multiset(batches: list[list[int]], data: st.DataObject) -> None:
    ledger = KeyLedger()
    for batch in batches:
        ledger.add(np.array(batch, np.uint64))
    everything = sorted(key for batch in batches for key in batch)
    assert ledger.keys().tolist() == everything
    gone = data.draw(st.lists(st.sampled_from(range(len(everything))), unique=True) if everything else st.just([]))
    if gone:
        ledger.remove([everything[i] for i in gone])
    left = [key for i, key in enumerate(everything) if i not in gone]
    assert len(ledger) == len(left)
    assert [ledger.count(key) for key in range(7)] == [left.count(key) for key in range(7)]


# -- precision ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_states_of_another_precision_count_as_their_float32_values(dtype: Any) -> None:
    states = np.random.default_rng(9).normal(size=STATES.shape).astype(dtype)
    same_values = states.astype(np.float32)
    for sample_size in (512, 4):
        one = collect(states, LABELS, sample_size=sample_size, keys=KEYS)
        one.update(states[:9], LABELS[:9], KEYS[:9])
        two = collect(same_values, LABELS, sample_size=sample_size, keys=KEYS)
        two.update(same_values[:9], LABELS[:9], KEYS[:9])
        assert same(one, two, tolerance=1e-15)


# -- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@SIZES
def test_states_that_are_not_finite_are_refused_and_change_nothing(value: float, sample_size: int) -> None:
    statistics = learned(range(54), sample_size)
    before = copy.deepcopy(statistics)
    bad = STATES[:3].copy()
    bad[1, 2, 3] = value
    with pytest.raises(NonFiniteError, match=r"1 of 3 .*position 1"):
        statistics.update(bad, LABELS[:3], KEYS[:3])
    assert same(statistics, before)


def test_a_number_too_large_for_float32_is_not_finite() -> None:
    states = STATES[:4].astype(np.float64)
    states[2, 0, 0] = 1e300
    with pytest.raises(NonFiniteError, match="position 2"):
        collect(states, LABELS[:4])


def test_arrays_that_do_not_match_are_refused() -> None:
    statistics = PrototypeStatistics(3, 6)
    for states, labels, keys in (
        (STATES[:2, :2], LABELS[:2], KEYS[:2]),
        (STATES[:2, :, :5], LABELS[:2], KEYS[:2]),
        (STATES[0], LABELS[:1], KEYS[:1]),
        (STATES[:2], LABELS[:3], KEYS[:2]),
        (STATES[:2], LABELS[:2], KEYS[:1]),
        (STATES[:2], LABELS[:2] + 2, KEYS[:2]),
    ):
        with pytest.raises(DataError):
            statistics.update(states, labels, keys)


@pytest.mark.parametrize("other", [(2, 6), (3, 5)])
def test_statistics_of_other_shapes_cannot_be_merged(other: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="cannot merge"):
        PrototypeStatistics(3, 6).merge(PrototypeStatistics(*other))


def test_merging_a_smaller_sample_gives_the_smaller_sample_of_all() -> None:
    def learned(rows: slice, sample_size: int) -> PrototypeStatistics:
        statistics = PrototypeStatistics(3, 6, sample_size=sample_size)
        statistics.update(STATES[rows], LABELS[rows], KEYS[rows])
        return statistics

    half = len(STATES) // 2
    merged = learned(slice(half), 20).merge(learned(slice(half, None), 8))
    whole = learned(slice(None), 8)
    assert merged.sample_size == 8
    for label in (0, 1):
        assert merged.classes[label].sorted_keys() == whole.classes[label].sorted_keys()
        np.testing.assert_allclose(merged.means(label), whole.means(label), atol=1e-12)


def test_a_saved_sample_is_cut_to_the_smallest_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpm_guard.prototypes.statistics._SAVED_SAMPLE_BYTES", 0)
    monkeypatch.setattr("mlpm_guard.prototypes.statistics._LEAST_SAVED", 5)
    statistics = PrototypeStatistics(3, 6, sample_size=10)
    statistics.update(STATES, LABELS, KEYS)
    loaded = read(statistics.to_tensors(), statistics.saved_sample_size)
    assert statistics.saved_sample_size == 5
    for label in (0, 1):
        assert loaded.classes[label].sorted_keys() == statistics.classes[label].sorted_keys()[:5]
        assert loaded.count(label) == statistics.count(label)


# -- tensors ------------------------------------------------------------------------------------------------------------------


def read(tensors: Any, sample_size: int) -> PrototypeStatistics:
    return PrototypeStatistics.from_tensors(tensors, layers=3, dim=6, sample_size=sample_size)


def test_rows_that_are_kept_come_back_exactly() -> None:
    statistics = learned([*range(54), 3, 3], 512)
    again = read(statistics.to_tensors(), 512)
    assert same(again, statistics, tolerance=0.0)


def test_sums_come_back_within_their_stored_precision() -> None:
    statistics = learned([*range(54), 3, 3], 4)
    again = read(statistics.to_tensors(), 4)
    assert statistics.scatter is not None
    assert again.scatter is not None
    assert close(again.scatter, statistics.scatter, 1e-6)
    assert np.array_equal(again.scatter, np.swapaxes(again.scatter, 1, 2))
    for label in (0, 1):
        one, two = again.classes[label], statistics.classes[label]
        assert np.array_equal(again.means(label), statistics.means(label))
        assert again.count(label) == statistics.count(label)
        assert one.sorted_keys() == two.sorted_keys()
        assert all(close(one.rows[key].states, two.rows[key].states, 1e-3) for key in two.rows)
        assert [one.times(int(key)) for key in KEYS] == [two.times(int(key)) for key in KEYS]


def test_rows_with_huge_and_tiny_values_survive_half_precision() -> None:
    states, labels = make(20, 20)
    states[:, 0] *= 1e12
    states[:, 1] *= 1e-12
    statistics = collect(states, labels, sample_size=4)
    again = read(statistics.to_tensors(), 4)
    for label in (0, 1):
        for key, row in statistics.classes[label].rows.items():
            for layer in range(3):
                scale = np.abs(row.states[layer]).max()
                assert close(again.classes[label].rows[key].states[layer] / scale, row.states[layer] / scale, 1e-3)


@SIZES
def test_statistics_that_came_back_go_on_as_if_never_saved(sample_size: int) -> None:
    statistics = learned(range(40), sample_size)
    again = read(statistics.to_tensors(), sample_size)
    for each in (statistics, again):
        each.update(STATES[40:], LABELS[40:], KEYS[40:])
        each.forget(STATES[5:9], LABELS[5:9], KEYS[5:9])
    assert same(again, statistics, rows=sample_size == 512, tolerance=1e-5)


def test_empty_statistics_come_back_empty() -> None:
    again = read(PrototypeStatistics(3, 6).to_tensors(), 512)
    assert [again.count(label) for label in (0, 1)] == [0, 0]


@pytest.mark.parametrize("sample_size", [512, 4], ids=["rows-kept", "rows-summed"])
def test_any_array_that_is_missing_or_truncated_is_found(sample_size: int) -> None:
    tensors = learned(range(54), sample_size).to_tensors()
    for name in tensors:
        without = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(BundleCorruptError):
            read(without, sample_size)
        if name.endswith("ledger"):
            continue
        with pytest.raises(BundleCorruptError):
            read({**tensors, name: tensors[name][:-1]}, sample_size)
        with pytest.raises(BundleCorruptError):
            read({**tensors, name: np.array(["x"] * len(tensors[name]))}, sample_size)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.mean", lambda a: np.full_like(a, np.nan)),
        ("1.scale", lambda a: np.full_like(a, np.inf)),
        ("0.sample", lambda a: a[:, :, :-1]),
        ("0.times", np.zeros_like),
        ("1.keys", np.zeros_like),
        ("scatter", lambda a: np.full_like(a, np.nan)),
        ("scatter", lambda a: a[:, :1]),
        ("scatter", lambda a: np.concatenate([a, a])),
        ("scatter", lambda a: a[0]),
    ],
)
def test_arrays_with_values_that_cannot_be_are_found(name: str, change: Any) -> None:
    tensors = learned(range(54), 4).to_tensors()
    with pytest.raises(BundleCorruptError):
        read({**tensors, name: change(tensors[name])}, 4)
