"""What tells an added category from the fitted one that it resembles most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from mlpm_guard.errors import BundleCorruptError
from mlpm_guard.prototypes.categories import Categories, CategoryBlock
from mlpm_guard.prototypes.few_shot import learn_category, learn_rivals
from mlpm_guard.prototypes.rivals import Rivals
from tests.topics import categorised, on

DIM, USED = 6, 2
RNG = np.random.default_rng(3)
STATES = RNG.normal(size=(40, USED, DIM))
RIVALS = Rivals(RNG.normal(size=(3, USED, DIM)).astype(np.float32), RNG.normal(size=3), np.array([0.7, -0.4]))
PLAIN = CategoryBlock(
    ("topic",),
    np.array([2, 4]),
    RNG.normal(size=(1, USED, DIM)).astype(np.float32),
    np.array([-1.5]),
    RNG.normal(size=(USED, DIM)).astype(np.float32),
)
BLOCK = replace(PLAIN, rivals=RIVALS)


def unit(states: np.ndarray) -> np.ndarray:
    moved = states - PLAIN.center
    return moved / np.linalg.norm(moved, axis=2, keepdims=True)


def test_log_odds_are_the_soft_minimum_of_both_functions() -> None:
    own = PLAIN.log_odds(STATES)[:, 0]
    against = np.einsum("nld,rld->nr", unit(STATES), RIVALS.weights.astype(np.float64)) + RIVALS.biases
    nearest = -0.7 * logsumexp(-against, axis=1) - 0.4
    assert np.allclose(RIVALS.log_odds(unit(STATES)), nearest)
    assert np.allclose(BLOCK.log_odds(STATES)[:, 0], -np.logaddexp(-own, -nearest))


def test_rivals_only_ever_lower() -> None:
    lower = PLAIN.log_odds(STATES) - BLOCK.log_odds(STATES)
    assert (lower >= 0.0).all()
    assert lower.max() > 0.5


def test_contributions_of_the_layers_and_the_bias_add_up_to_the_log_odds() -> None:
    categories = Categories().adding(BLOCK)
    parts = categories.contributions(STATES, np.array([2, 4]))
    assert np.allclose(parts.sum(axis=2) + categories.biases, BLOCK.log_odds(STATES), atol=1e-12)


@pytest.mark.parametrize("size", [1e4, 1e8])
def test_extreme_states_give_numbers(size: float) -> None:
    raw = replace(BLOCK, center=None)
    assert np.isfinite(raw.log_odds(size * STATES)).all()


def test_what_is_saved_is_read_again() -> None:
    categories = Categories().adding(BLOCK)
    again = Categories.from_tensors(categories.to_tensors(), categories.layout(), layers=6, dim=DIM)
    positions = np.array([2, 4])
    assert np.array_equal(again.log_odds(STATES, positions), categories.log_odds(STATES, positions))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", None),
        ("scale", None),
        ("weights", np.zeros((2, USED, DIM), np.float32)),
        ("biases", np.array([0.0, np.nan, 0.0])),
        ("biases", np.zeros(0)),
        ("scale", np.array([0.0, 1.0])),
        ("scale", np.array([1.0])),
    ],
)
def test_damaged_arrays_are_refused(field: str, value: np.ndarray | None) -> None:
    categories = Categories().adding(BLOCK)
    tensors = categories.to_tensors()
    if value is None:
        del tensors[f"categories.0.rivals.{field}"]
    else:
        tensors[f"categories.0.rivals.{field}"] = value
    with pytest.raises(BundleCorruptError, match="categories do not fit"):
        Categories.from_tensors(tensors, categories.layout(), layers=6, dim=DIM)


def test_several_categories_in_one_block_have_no_rivals() -> None:
    tensors = Categories().adding(BLOCK).to_tensors()
    tensors["categories.0.weights"] = np.zeros((2, USED, DIM), np.float32)
    tensors["categories.0.biases"] = np.zeros(2)
    with pytest.raises(BundleCorruptError):
        Categories.from_tensors(tensors, [(True, ["one", "two"])], layers=6, dim=DIM)


# -- learning -----------------------------------------------------------------------------------------------------------------

# Three kinds around a fourth in their middle, which no single linear function tells from all of them.
HARM = np.full((USED, DIM), 1.5)
KINDS = 2.0 * np.array([[1, -1, 0, 0, 0, 0], [-1, 0, 1, 0, 0, 0], [0, 1, -1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])[:, None]
CENTER = np.zeros((USED, DIM))


def drawn(kind: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, USED, DIM)) + HARM + KINDS[kind]


GROUPS = [drawn(kind, 60, kind) for kind in range(3)]


def area(inside: np.ndarray, outside: np.ndarray) -> float:
    return float(np.mean(inside[:, None] > outside))


def test_a_category_is_told_from_those_that_it_resembles() -> None:
    examples = drawn(3, 20, 10)
    safe = np.random.default_rng(11).normal(size=(100, USED, DIM))
    plain = learn_category("topic", examples, [safe, np.concatenate(GROUPS)], None, np.array([0, 1]), CENTER)
    lengths = [each / np.linalg.norm(each, axis=2, keepdims=True) for each in (examples, *GROUPS)]
    rivals = learn_rivals(lengths[0], lengths[1:])
    assert rivals is not None
    assert rivals.weights.shape == (3, USED, DIM)
    block = replace(plain, rivals=rivals)
    inside, others = drawn(3, 300, 20), np.concatenate([drawn(kind, 300, 21 + kind) for kind in range(3)])
    before, after = (area(each.log_odds(inside)[:, 0], each.log_odds(others)[:, 0]) for each in (plain, block))
    assert after > before + 0.02


def test_a_fitted_category_that_the_examples_belong_to_is_no_rival() -> None:
    rivals = learn_rivals(drawn(1, 20, 30), GROUPS)
    assert rivals is not None
    assert len(rivals.biases) == 2


def test_where_there_is_nothing_to_be_told_from_there_are_no_rivals() -> None:
    assert learn_rivals(drawn(3, 20, 10), []) is None
    assert learn_rivals(drawn(1, 20, 30), GROUPS[1:2]) is None


def test_examples_are_scored_without_themselves() -> None:
    # Pure noise: an example that counted in its own prototype would look like its category.
    rng = np.random.default_rng(5)
    noise = [rng.normal(size=(60, 1, 40)) for _ in range(2)]
    assert learn_rivals(rng.normal(size=(8, 1, 40)), noise) is None


def test_an_added_category_of_a_guard_is_told_from_its_fitted_ones_and_explained_exactly() -> None:
    guard = categorised().add_category("legal", on("legal", 10))
    block = guard.policy().categories.added[0]
    assert block.rivals is not None
    assert len(block.rivals.biases) == 2
    assert guard.check(on("legal", 1, start=50)[0]).categories["legal"] > 0.5
    assert guard.check(on("drugs", 1, start=50)[0]).categories["legal"] < 0.2
    for text in (on("legal", 1, start=60)[0], on("drugs", 1, start=60)[0]):
        explanation = guard.explain(text)
        found = next(each for each in explanation.categories if each.name == "legal")
        assert found.log_odds == pytest.approx(found.intercept + sum(each.contribution for each in found.layers))
        assert found.probability == pytest.approx(explanation.verdict.categories["legal"])


def test_a_removed_category_is_no_rival() -> None:
    guard = categorised().remove_category("drugs").add_category("legal", on("legal", 10))
    rivals = guard.policy().categories.added[0].rivals
    assert rivals is not None
    assert len(rivals.biases) == 1
