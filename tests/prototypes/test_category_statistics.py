"""Statistics of categories: sums that add, subtract and merge."""

from __future__ import annotations

import numpy as np
import pytest
from category_data import NAMES, learned, make_categories
from layer_data import close

from mlpm_guard.errors import BundleCorruptError, CategoryError, DataError, UnknownPromptError
from mlpm_guard.prototypes.category_statistics import CategoryStatistics
from mlpm_guard.prototypes.statistics import PrototypeStatistics

X, Y, C = make_categories()
KEYS = np.arange(len(Y), dtype=np.uint64)


def same(one: PrototypeStatistics, two: PrototypeStatistics, tolerance: float = 1e-9) -> bool:
    return one.categories.names == two.categories.names and all(
        one.categories.sums[name].count == two.categories.sums[name].count
        and close(one.categories.sums[name].total, two.categories.sums[name].total, tolerance)
        for name in one.categories.names
    )


def test_means_are_those_of_the_rows_of_a_category() -> None:
    statistics = learned(X, Y, C).categories
    assert statistics.names == NAMES
    for name in NAMES:
        rows = X[[index for index, each in enumerate(C) if each == name]]
        assert statistics.sums[name].count == len(rows)
        assert close(statistics.sums[name].mean, rows.mean(axis=0, dtype=np.float64))


def test_shards_merge_into_what_one_would_have_learned() -> None:
    half = len(Y) // 2
    one, two = PrototypeStatistics(3, 8), PrototypeStatistics(3, 8)
    one.update(X[:half], Y[:half], KEYS[:half], C[:half])
    two.update(X[half:], Y[half:], KEYS[half:], C[half:])
    assert same(one.merge(two), learned(X, Y, C))
    assert same(two.merge(one), learned(X, Y, C))


@pytest.mark.parametrize("given", [True, False], ids=["with categories", "without"])
@pytest.mark.parametrize("sample_size", [512, 20], ids=["rows-kept", "rows-summed"])
def test_forgetting_leaves_what_was_there_before(given: bool, sample_size: int) -> None:
    statistics = learned(X, Y, C, sample_size=sample_size)
    statistics.forget(X[80:], Y[80:], KEYS[80:], C[80:] if given else None)
    expected = PrototypeStatistics(3, 8, sample_size=sample_size)
    expected.update(X[:80], Y[:80], KEYS[:80], C[:80])
    assert same(statistics, expected)


def test_a_category_whose_last_prompt_is_forgotten_is_gone() -> None:
    statistics = learned(X, Y, C)
    chosen = [index for index, name in enumerate(C) if name == "hate"]
    statistics.forget(X[chosen], Y[chosen], KEYS[chosen])
    assert statistics.categories.names == ("drugs", "fraud")


def test_assigning_categories_afterwards_gives_what_learning_them_at_once_gives() -> None:
    for sample_size in (512, 20):
        statistics = learned(X, Y, [None] * len(Y), sample_size=sample_size)
        unsafe = np.flatnonzero(Y == 1)
        statistics.assign(X[unsafe], [C[index] for index in unsafe], KEYS[unsafe])
        assert same(statistics, learned(X, Y, C, sample_size=sample_size))


def test_what_was_not_learned_as_unsafe_or_has_a_category_is_not_assigned_one() -> None:
    statistics = learned(X, Y, C)
    safe = int(np.flatnonzero(Y == 0)[0])
    with pytest.raises(UnknownPromptError):
        statistics.assign(X[safe : safe + 1], ["drugs"], KEYS[safe : safe + 1])
    named = C.index("drugs")
    with pytest.raises(CategoryError, match="1 of 1 prompts have a category already"):
        statistics.assign(X[named : named + 1], ["drugs"], KEYS[named : named + 1])
    assert same(statistics, learned(X, Y, C))


def test_forgetting_in_another_category_is_refused_and_changes_nothing() -> None:
    statistics = learned(X, Y, C)
    wrong = C.index("drugs")
    with pytest.raises(UnknownPromptError, match="never learned in that category") as caught:
        statistics.forget(X[wrong : wrong + 1], Y[wrong : wrong + 1], KEYS[wrong : wrong + 1], ["hate"])
    assert caught.value.indices == (0,)
    assert same(statistics, learned(X, Y, C))
    assert statistics.count(1) == int(Y.sum())


def test_what_is_saved_is_read_again() -> None:
    statistics = learned(X, Y, C, sample_size=20)
    again = PrototypeStatistics.from_tensors(statistics.to_tensors(), layers=3, dim=8, sample_size=20)
    assert same(again, statistics, 1e-7)
    again.forget(X[:5], Y[:5], KEYS[:5])


def test_a_damaged_sum_is_refused() -> None:
    tensors = learned(X, Y, C).to_tensors()
    tensors["category.drugs.sum"] = np.zeros((2, 8))
    with pytest.raises(BundleCorruptError, match="statistics do not fit"):
        PrototypeStatistics.from_tensors(tensors, layers=3, dim=8, sample_size=512)


def test_rows_of_category_other_train_safe_against_unsafe_only() -> None:
    statistics = PrototypeStatistics(3, 8)
    statistics.update(X, Y, KEYS, ["other" if label else None for label in Y])
    assert statistics.categories.names == ()
    assert statistics.count(1) == int(Y.sum())


def test_a_safe_prompt_has_no_category() -> None:
    with pytest.raises(DataError, match="a safe prompt has no category"):
        PrototypeStatistics(3, 8).update(X, np.zeros(len(Y), np.int64), KEYS, ["drugs"] * len(Y))


@pytest.mark.parametrize("name", ["", " ", "safe", "unsafe", "a" * 65, "tab\there", 3])
def test_a_name_that_cannot_be_used_is_refused(name: object) -> None:
    with pytest.raises(CategoryError):
        PrototypeStatistics(3, 8).update(X[:1], np.ones(1, np.int64), KEYS[:1], [name])  # type: ignore[list-item]


def test_as_many_categories_as_prompts() -> None:
    with pytest.raises(DataError, match="categories"):
        PrototypeStatistics(3, 8).update(X, Y, KEYS, C[:-1])


def test_statistics_of_other_shapes_do_not_merge() -> None:
    with pytest.raises(DataError, match="cannot merge"):
        CategoryStatistics(3, 8).merge(CategoryStatistics(2, 8))
