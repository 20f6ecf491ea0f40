"""Scoring categories: each for itself, with contributions that add up."""

from __future__ import annotations

import numpy as np
import pytest

from mlpm_guard.errors import BundleCorruptError, CategoryError
from mlpm_guard.prototypes.categories import Categories, CategoryBlock, deeper_half, require_name
from mlpm_guard.prototypes.scorer import sigmoid

DIM = 4
STATES = np.random.default_rng(9).normal(size=(7, 3, DIM))
POSITIONS = np.array([0, 2, 5])


def block(*names: str, seed: int = 0, positions: tuple[int, ...] = (2, 5), centred: bool = False) -> CategoryBlock:
    rng = np.random.default_rng(seed)
    shape = (len(positions), DIM)
    return CategoryBlock(
        names,
        np.array(positions),
        rng.normal(size=(len(names), *shape)).astype(np.float32),
        rng.normal(size=len(names)),
        rng.normal(size=shape).astype(np.float32) if centred else None,
    )


FITTED = block("drugs", "hate")
ADDED = block("topic", seed=1, positions=(5,), centred=True)
KNOWN = Categories(FITTED).adding(ADDED)


def test_log_odds_are_linear_in_the_states_or_in_those_seen_from_the_centre() -> None:
    found = KNOWN.log_odds(STATES, POSITIONS)
    raw = STATES[:, 1:].reshape(7, -1) @ FITTED.weights.reshape(2, -1).T + FITTED.biases
    assert ADDED.center is not None
    moved = STATES[:, 2] - ADDED.center[0]
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    assert np.allclose(found, np.c_[raw, unit @ ADDED.weights[0, 0] + ADDED.biases])


def test_contributions_of_the_layers_and_the_bias_add_up_to_the_log_odds() -> None:
    found = KNOWN.log_odds(STATES, POSITIONS)
    for index, states in enumerate(STATES):
        parts = KNOWN.contributions(states[None], POSITIONS)[0]
        assert (parts != 0.0).tolist() == [[False, True, True], [False, True, True], [False, False, True]]
        assert np.allclose(parts.sum(axis=1) + KNOWN.biases, found[index])


def test_probabilities_are_by_name() -> None:
    log_odds = KNOWN.log_odds(STATES[:1], POSITIONS)[0]
    assert KNOWN.probabilities(log_odds) == pytest.approx(dict(zip(KNOWN.names, sigmoid(log_odds), strict=True)))


def test_a_state_in_the_centre_gets_a_number() -> None:
    assert ADDED.center is not None
    assert np.isfinite(ADDED.log_odds(ADDED.center[None])).all()


def test_adding_and_removing_leaves_the_others_exactly_what_they_are() -> None:
    before = KNOWN.log_odds(STATES, POSITIONS)
    more = KNOWN.adding(block("second", seed=2))
    assert more.names == ("drugs", "hate", "second", "topic")
    assert np.array_equal(more.log_odds(STATES, POSITIONS)[:, [0, 1, 3]], before)
    assert np.array_equal(more.without("second").log_odds(STATES, POSITIONS), before)
    assert np.allclose(KNOWN.without("drugs").log_odds(STATES, POSITIONS), before[:, 1:], rtol=1e-12, atol=1e-12)


def test_the_order_in_which_categories_are_added_does_not_matter() -> None:
    one, two = block("one", seed=3), block("two", seed=4)
    there, back = (Categories().adding(first).adding(second) for first, second in ((one, two), (two, one)))
    assert there.names == back.names
    assert np.array_equal(there.log_odds(STATES, POSITIONS), back.log_odds(STATES, POSITIONS))


def test_nothing_known_is_nothing_said() -> None:
    assert len(Categories()) == 0
    assert Categories().log_odds(STATES, POSITIONS).shape == (7, 0)
    assert Categories().positions.tolist() == []
    assert KNOWN.without("drugs").without("hate").without("topic") == Categories()


def test_the_layers_that_are_read_are_those_of_all_blocks() -> None:
    assert KNOWN.adding(block("deep", positions=(4,))).positions.tolist() == [2, 4, 5]


def test_a_name_in_use_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(CategoryError, match="already"):
        KNOWN.adding(block("hate"))
    with pytest.raises(CategoryError, match="there are: drugs, hate, topic"):
        KNOWN.without("nothing")


@pytest.mark.parametrize("name", ["legal-advice", "Steuer / Recht", "médecine", "a", "übung 2.0"])
def test_names_in_any_language_are_fine(name: str) -> None:
    assert require_name(name) == name


@pytest.mark.parametrize("name", ["", " x", "x ", "-x", "other", "safe", "unsafe", "a\nb", "x" * 65, None, 1])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(CategoryError):
        require_name(name)


def test_what_is_saved_is_read_again() -> None:
    again = Categories.from_tensors(KNOWN.to_tensors(), KNOWN.layout(), layers=6, dim=DIM)
    assert again.names == KNOWN.names
    assert again.added_names == ("topic",)
    assert np.array_equal(again.log_odds(STATES, POSITIONS), KNOWN.log_odds(STATES, POSITIONS))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("categories.0.weights", np.zeros((2, 2, 3), np.float32)),
        ("categories.0.positions", np.array([5, 2])),
        ("categories.0.positions", np.array([2, 6])),
        ("categories.1.biases", np.array([np.nan])),
        ("categories.1.center", np.zeros((2, DIM), np.float32)),
        ("categories.2.weights", np.zeros((1, 1, DIM), np.float32)),
        ("categories.0.biases", None),
    ],
)
def test_damaged_arrays_are_refused(name: str, value: np.ndarray | None) -> None:
    tensors = KNOWN.to_tensors()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(BundleCorruptError, match="categories do not fit"):
        Categories.from_tensors(tensors, KNOWN.layout(), layers=6, dim=DIM)


def test_repeated_names_are_refused() -> None:
    with pytest.raises(BundleCorruptError):
        Categories.from_tensors(KNOWN.to_tensors(), [(True, ["drugs", "hate"]), (False, ["hate"])], layers=6, dim=DIM)


@pytest.mark.parametrize(
    ("used", "expected"), [([0], [0]), ([1, 4], [4]), ([0, 1, 2, 3, 4, 5], [3, 4, 5]), ([2, 3, 7], [3, 7])]
)
def test_categories_read_the_deeper_half_of_the_used_layers(used: list[int], expected: list[int]) -> None:
    assert deeper_half(np.array(used)).tolist() == expected
