"""A category from a handful of examples."""

from __future__ import annotations

import numpy as np
import pytest

from mlpm_guard.errors import DataError
from mlpm_guard.prototypes.categories import CategoryBlock
from mlpm_guard.prototypes.few_shot import add_from_statistics, learn_category
from mlpm_guard.prototypes.scorer import sigmoid
from mlpm_guard.prototypes.statistics import PrototypeStatistics

POSITIONS = np.array([1, 3])
RNG = np.random.default_rng(0)
BACKGROUND = [RNG.normal(size=(120, 2, 16)), RNG.normal(size=(120, 2, 16)) + 0.5]
TOPIC = 2.5 * RNG.normal(size=(2, 16))
CENTER = np.full((2, 16), 0.25)


def drawn(count: int, seed: int, *, shift: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, 16)) + shift * TOPIC


def learn(count: int = 10, negatives: np.ndarray | None = None, shift: float = 1.0) -> CategoryBlock:
    return learn_category("topic", drawn(count, 1, shift=shift), BACKGROUND, negatives, POSITIONS, CENTER)


@pytest.mark.parametrize("count", [5, 20, 50])
def test_new_examples_are_told_from_everything_else(count: int) -> None:
    block = learn(count)
    assert block.names == ("topic",)
    inside, outside = (block.log_odds(states)[:, 0] for states in (drawn(200, 2), drawn(200, 3, shift=0.0)))
    assert np.mean(sigmoid(inside) > 0.5) > 0.9
    assert np.mean(sigmoid(outside) > 0.5) < 0.02


def test_negatives_keep_out_what_the_background_does_not_know() -> None:
    near = TOPIC.copy()
    near[:, ::2] *= -1.0
    others = np.random.default_rng(5).normal(size=(300, 2, 16)) + 0.6 * near + 0.6 * TOPIC
    without, given = learn(), learn(negatives=others[:100])
    assert np.mean(given.log_odds(others[100:]) > 0.0) < np.mean(without.log_odds(others[100:]) > 0.0)
    assert np.mean(given.log_odds(drawn(200, 2)) > 0.0) > 0.8


def test_the_order_of_rows_does_not_matter() -> None:
    one = learn()
    two = learn_category("topic", drawn(10, 1)[::-1], [each[::-1] for each in BACKGROUND], None, POSITIONS, CENTER)
    assert np.allclose(one.weights, two.weights, rtol=1e-4, atol=1e-6)
    assert np.allclose(one.biases, two.biases, rtol=1e-4)


def test_examples_that_are_nothing_special_get_low_probabilities() -> None:
    try:
        block = learn(20, shift=0.0)
    except DataError:
        return
    assert sigmoid(block.log_odds(drawn(200, 3, shift=0.0))).mean() < 0.3


def test_examples_like_everything_else_are_refused() -> None:
    flat = [np.ones((20, 2, 16)), np.ones((20, 2, 16))]
    with pytest.raises(DataError, match="cannot be told"):
        learn_category("topic", np.ones((10, 2, 16)), flat, None, POSITIONS, CENTER)


def test_a_classifiers_statistics_are_background_enough_and_stay_what_they_are() -> None:
    statistics = PrototypeStatistics(4, 16, sample_size=30)
    states = np.random.default_rng(1).normal(size=(200, 4, 16)).astype(np.float32)
    labels = np.arange(200) % 2
    statistics.update(states, labels, np.arange(200, dtype=np.uint64))
    before = statistics.to_tensors()
    examples = np.random.default_rng(2).normal(size=(8, 4, 16)).astype(np.float32)
    examples[:, 2:] += TOPIC.astype(np.float32)
    block = add_from_statistics("topic", examples, None, statistics, np.array([0, 1, 3]))
    assert block.positions.tolist() == [0, 1, 3]
    assert block.log_odds(examples[:, block.positions]).min() > block.log_odds(states[:, block.positions]).mean()
    after = statistics.to_tensors()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
