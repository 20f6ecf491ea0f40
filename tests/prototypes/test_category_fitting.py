"""Categories from labelled prompts: the discriminant of the formulas, and probabilities that keep their word."""

from __future__ import annotations

import numpy as np
import pytest
from category_data import NAMES, learned, make_categories
from layer_data import close

from mlpm_guard.prototypes import category_fitting
from mlpm_guard.prototypes.categories import CategoryBlock
from mlpm_guard.prototypes.category_fitting import fit_categories
from mlpm_guard.prototypes.scorer import sigmoid

X, Y, C = make_categories()
ALL = np.arange(3)


def fitted(sample_size: int = 512) -> CategoryBlock:
    block = fit_categories(learned(X, Y, C, sample_size=sample_size), ALL)
    assert block is not None
    return block


def reference_scores(rows: np.ndarray, X: np.ndarray, Y: np.ndarray, C: list[str | None]) -> np.ndarray:
    """The module's formulas, with inverses and every row's own group; scores of shape (rows, categories)."""
    groups = np.array(["safe" if label == 0 else str(name) for name, label in zip(C, Y, strict=True)])
    scores = np.zeros((len(rows), len(NAMES)))
    for layer in range(X.shape[1]):
        h = X[:, layer].astype(np.float64)
        dim = h.shape[1]
        scatter = np.zeros((dim, dim))
        for group in np.unique(groups):
            centred = h[groups == group] - h[groups == group].mean(axis=0)
            scatter += centred.T @ centred
        precision = dim * np.linalg.inv(scatter + np.trace(scatter) / (len(h) - 1) * np.eye(dim))
        middle = 0.5 * (h[Y == 0].mean(axis=0) + h[Y == 1].mean(axis=0))
        for index, name in enumerate(NAMES):
            mean = h[groups == name].mean(axis=0)
            scores[:, index] += (rows[:, layer] - 0.5 * (mean + middle)) @ precision @ (mean - middle) / X.shape[1]
    return scores


@pytest.mark.parametrize("sample_size", [512, 20], ids=["rows-kept", "rows-summed"])
def test_log_odds_are_an_affine_function_of_the_discriminants_of_the_formulas(sample_size: int) -> None:
    found, expected = fitted(sample_size).log_odds(X), reference_scores(X, X, Y, C)
    slopes = []
    for index in range(len(NAMES)):
        slope, offset = np.polyfit(expected[:, index], found[:, index], 1)
        assert close(slope * expected[:, index] + offset, found[:, index], 1e-5)
        slopes.append(slope)
    assert min(slopes) > 0.0
    assert close(slopes, np.full(len(NAMES), np.mean(slopes)), 1e-5)


def test_a_row_is_scored_as_if_it_had_not_been_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    original = category_fitting._calibrate

    def spy(scores: np.ndarray, *rest: object) -> tuple[float, float, float]:
        seen.append(scores)
        return original(scores, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(category_fitting, "_calibrate", spy)
    # The midpoint of the classes moves with a row too, which the formula leaves out: many rows keep that small.
    states, labels, names = make_categories(safe=600, per_category=200, unnamed=200)
    fit_categories(learned(states, labels, names, sample_size=2000), ALL)
    keys = [index for label in (0, 1) for index in np.flatnonzero(labels == label).tolist()]
    for at in (0, 700, 900, 1100):
        row = keys[at]
        kept = np.arange(len(labels)) != row
        exact = reference_scores(
            states[row : row + 1].astype(np.float64), states[kept], labels[kept], [names[i] for i in np.flatnonzero(kept)]
        )
        plain = reference_scores(states[row : row + 1].astype(np.float64), states, labels, names)
        assert np.abs(seen[0][at] - exact[0]).max() < 0.15 * np.abs(plain - exact).max() + 1e-3


def test_categories_are_told_apart() -> None:
    block = fitted()
    named = [index for index, name in enumerate(C) if name is not None]
    predicted = np.array(block.names)[block.log_odds(X[named]).argmax(axis=1)]
    assert np.mean(predicted == np.array([C[index] for index in named])) > 0.95
    assert np.all(sigmoid(block.log_odds(X[Y == 0])).mean(axis=0) < 0.1)


def test_probabilities_of_prompts_that_were_not_learned_keep_their_word() -> None:
    states, labels, names = make_categories(safe=1200, per_category=400, unnamed=0, apart=0.5)
    half = len(labels) // 2
    block = fit_categories(learned(states[:half], labels[:half], names[:half], sample_size=4000), ALL)
    assert block is not None
    chances = sigmoid(block.log_odds(states[half:])).ravel()
    truth = np.array([[name == each for each in NAMES] for name in names[half:]]).ravel()
    for low, high in ((0.1, 0.4), (0.4, 0.7), (0.7, 1.0)):
        of_bin = (chances >= low) & (chances < high)
        assert abs(truth[of_bin].mean() - chances[of_bin].mean()) < 0.1


def test_the_order_of_prompts_does_not_matter() -> None:
    order = np.random.default_rng(3).permutation(len(Y))
    statistics = learned(X, Y, C)
    shuffled = type(statistics)(3, 8, sample_size=512)
    shuffled.update(X[order], Y[order], order.astype(np.uint64), [C[index] for index in order])
    one, two = fitted(), fit_categories(shuffled, ALL)
    assert two is not None
    assert close(one.weights, two.weights, 1e-6)
    assert close(one.biases, two.biases, 1e-6)


def test_a_category_with_too_few_prompts_waits() -> None:
    few = [name if name != "hate" or C[:index].count("hate") < 4 else None for index, name in enumerate(C)]
    block = fit_categories(learned(X, Y, few), ALL)
    assert block is not None
    assert block.names == ("drugs", "fraud")


def test_without_categories_there_is_nothing() -> None:
    assert fit_categories(learned(X, Y, [None] * len(Y)), ALL) is None


def test_states_that_do_not_vary_give_numbers_all_the_same() -> None:
    same = np.ones_like(X)
    block = fit_categories(learned(same, Y, C), ALL)
    assert block is not None
    assert np.isfinite(block.log_odds(same)).all()
