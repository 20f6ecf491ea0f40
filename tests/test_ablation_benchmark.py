"""The arithmetic behind `benchmarks/ablation.py`: its fits are the library's, and what is left out has no say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import OAS, LedoitWolf

from mlpm_guard.prototypes.discriminant import fit_discriminants
from mlpm_guard.prototypes.statistics import PrototypeStatistics

LAYERS, DIM = 3, 6
SOURCES = {"letters": 0, "recipes": 0, "threats": 1, "thefts": 1}


@pytest.fixture
def ablation(open_benchmark: Any) -> Any:
    return open_benchmark("ablation")


def prompts_of(ablation: Any, separation: float = 2.0, apart: float = 1.0, rows: int = 40, seed: int = 0) -> Any:
    """A quarter of every source is held out; every fifth prompt has two windows."""
    rng = np.random.default_rng(seed)
    source = np.repeat(list(SOURCES), rows)
    label = np.array([SOURCES[name] for name in source])
    owner = np.sort(np.concatenate([np.arange(len(source)), np.arange(0, len(source), 5)]))
    offsets = {name: apart * rng.normal(size=(LAYERS, DIM)) for name in SOURCES}
    states = rng.normal(size=(len(owner), LAYERS, DIM)) + np.stack([offsets[name] for name in source[owner]])
    states[..., 0] += separation * label[owner][:, None]
    held = np.arange(len(source)) % 4 == 0
    kind, category = (
        np.full(len(source), ablation.PLAIN),
        np.where(label == 1, np.char.mod("%d", np.arange(len(source)) % 2), ""),
    )
    return ablation.Prompts(states.astype(np.float32), owner, source, label, kind, held, category)


def only(prompts: Any, ablation: Any, keep: Any) -> Any:
    """The prompts that `keep` names, with their windows."""
    number = np.cumsum(keep) - 1
    windows = keep[prompts.owner]
    return ablation.Prompts(
        prompts.states[windows], number[prompts.owner[windows]],
        *(getattr(prompts, name)[keep] for name in ("source", "label", "kind", "held")),
        None if prompts.category is None else prompts.category[keep],
    )  # fmt: skip


def joined(ablation: Any, prompts: Any, more: Any) -> Any:
    return ablation.Prompts(
        np.concatenate([prompts.states, more.states]),
        np.concatenate([prompts.owner, more.owner + len(prompts.label)]),
        *(np.concatenate([getattr(prompts, name), getattr(more, name)]) for name in ("source", "label", "kind", "held")),
    )


def test_the_reference_fit_points_where_the_librarys_does(ablation: Any) -> None:
    prompts = prompts_of(ablation)
    coef, bias = ablation.Fits(prompts, ablation.REFERENCE).without(None)
    learned = ~prompts.held[prompts.owner]
    statistics = PrototypeStatistics(LAYERS, DIM, sample_size=10)
    labels = prompts.label[prompts.owner][learned]
    statistics.update(prompts.states[learned], labels, np.arange(learned.sum(), dtype=np.uint64))
    expected = fit_discriminants(statistics)
    scale = learned.sum() / DIM
    np.testing.assert_allclose(coef[0], expected.weights * scale, rtol=1e-3)
    np.testing.assert_allclose(bias[0], expected.biases * scale, rtol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"between": 5.0},
        {"balance": 1.0},
        {"ridge": 0.3},
        {"joint": True, "ridge": 0.3},
        {"unsafe_weight": 2.0},
        {"categories": True},
        {"parts": ("mean", "max")},
    ],
)
def test_leaving_a_source_out_is_fitting_without_it(ablation: Any, change: dict[str, Any]) -> None:
    prompts = prompts_of(ablation)
    variant = replace(ablation.REFERENCE, **change)
    without = only(prompts, ablation, prompts.source != "thefts")
    for one, other in zip(
        ablation.Fits(prompts, variant).without("thefts"), ablation.Fits(without, variant).without(None), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_a_shrunk_fit_points_where_scikit_learns_does(ablation: Any, shrinkage: str) -> None:
    prompts = prompts_of(ablation)
    coef, _ = ablation.Fits(prompts, replace(ablation.REFERENCE, shrinkage=shrinkage)).without(None)
    learned = ~prompts.held[prompts.owner]
    labels = prompts.label[prompts.owner][learned]
    for layer in range(LAYERS):
        rows = prompts.states[learned][:, layer].astype(float)
        means = np.stack([rows[labels == label].mean(axis=0) for label in (0, 1)])
        estimator = {"ledoit_wolf": LedoitWolf, "oas": OAS}[shrinkage](assume_centered=True).fit(rows - means[labels])
        expected = np.linalg.solve(estimator.covariance_, means[1] - means[0])
        cosine = coef[0, layer] @ expected / np.linalg.norm(coef[0, layer]) / np.linalg.norm(expected)
        assert cosine > 1 - 1e-6


def test_unsafe_rows_of_weight_two_pull_the_covariance_and_leave_the_means(ablation: Any) -> None:
    prompts = prompts_of(ablation)
    again = only(prompts, ablation, prompts.label == 1)
    weighted = ablation.Fits(prompts, replace(ablation.REFERENCE, ridge=0.1, unsafe_weight=2.0)).without(None)
    doubled = ablation.Fits(joined(ablation, prompts, again), replace(ablation.REFERENCE, ridge=0.1)).without(None)
    for one, other in zip(weighted, doubled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_prototype_for_every_category_finds_what_one_in_their_middle_cannot(ablation: Any) -> None:
    prompts = prompts_of(ablation, separation=0.0, apart=0.0, rows=200)
    categories = np.where(prompts.label == 1, np.where(np.arange(len(prompts.label)) % 2, "left", "right"), "")
    states = prompts.states.copy()
    # The safe ones lie between the two kinds of unsafe ones.
    shift = np.where(categories == "left", -8.0, np.where(categories == "right", 8.0, 0.0))
    states[..., 0] += shift[prompts.owner][:, None]
    prompts = replace(prompts, states=states, category=categories)
    variant = replace(ablation.REFERENCE, categories=True)
    coef, bias = ablation.Fits(prompts, variant).without(None)
    assert coef.shape == (2, LAYERS, DIM)
    assert bias.shape == (2, LAYERS)
    np.testing.assert_allclose(np.sign(coef[:, :, 0]), [[-1.0] * LAYERS, [1.0] * LAYERS])
    assert ablation.leave_one_source_out(prompts, variant).mean() > 0.99
    assert ablation.leave_one_source_out(prompts, ablation.REFERENCE).mean() < 0.9
    with pytest.raises(ValueError, match="categories"):
        ablation.Fits(replace(prompts, category=None), variant)


def test_parts_of_a_state_are_those_that_are_named(ablation: Any) -> None:
    states = np.arange(2 * 3 * 6, dtype=np.float32).reshape(2, 3, 6)
    for parts, columns in {("mean",): [0, 1, 2], ("cls",): [3, 4, 5]}.items():
        np.testing.assert_array_equal(replace(ablation.REFERENCE, parts=parts).seen(states), states[..., columns])
    for parts, columns in {("max",): [4, 5], ("mean", "max"): [0, 1, 4, 5]}.items():
        np.testing.assert_array_equal(replace(ablation.REFERENCE, parts=parts).seen(states), states[..., columns])


def test_an_aggregation_out_of_fold_is_taught_by_fits_that_have_not_seen_the_rows_source(ablation: Any) -> None:
    prompts = prompts_of(ablation)
    asked: list[tuple[str | None, ...]] = []

    class Watched(ablation.Fits):  # type: ignore[misc, name-defined]
        def without(self, *left_out: str | None) -> Any:
            asked.append(left_out)
            return super().without(*left_out)

    score = ablation.scorer(Watched(prompts, variant := replace(ablation.REFERENCE, out_of_fold=True)), variant, None)
    assert asked[0] == (None,)
    assert sorted(name for each in asked[1:] for name in each[1:] if name) == sorted(SOURCES)
    assert score(prompts.states).shape == (len(prompts.owner),)


def test_a_source_of_weight_two_counts_like_one_that_is_there_twice(ablation: Any) -> None:
    prompts = prompts_of(ablation)
    weighted = ablation.Fits(prompts, replace(ablation.REFERENCE, ridge=0.1, weights={"threats": 2.0})).without(None)
    twice = joined(ablation, prompts, only(prompts, ablation, prompts.source == "threats"))
    doubled = ablation.Fits(twice, replace(ablation.REFERENCE, ridge=0.1)).without(None)
    for one, other in zip(weighted, doubled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_scatter_between_sources_counts_as_often_as_it_is_told(ablation: Any) -> None:
    prompts = prompts_of(ablation)
    moved = np.abs(
        ablation.Fits(prompts, replace(ablation.REFERENCE, between=1.0)).without(None)[0]
        - ablation.Fits(prompts, replace(ablation.REFERENCE, between=4.0)).without(None)[0]
    )
    assert moved.max() > 1e-3
    alone = only(prompts, ablation, np.isin(prompts.source, ("letters", "threats")))
    one, other = (
        ablation.Fits(alone, replace(ablation.REFERENCE, ridge=0.1, between=weight)).without(None)[0] for weight in (0.0, 9.0)
    )
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize("dropped", ["held", "kind"])
def test_held_out_rows_and_kinds_that_were_not_asked_for_teach_nothing(ablation: Any, dropped: str) -> None:
    prompts = prompts_of(ablation)
    ignored = prompts.held if dropped == "held" else np.arange(len(prompts.label)) % 3 == 1
    if dropped == "kind":
        prompts = replace(prompts, kind=np.where(ignored, "leet", ablation.PLAIN))
    states = prompts.states.copy()
    states[ignored[prompts.owner]] += 100.0
    changed = replace(prompts, states=states)
    for one, other in zip(
        ablation.Fits(prompts, ablation.REFERENCE).without(None),
        ablation.Fits(changed, ablation.REFERENCE).without(None),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("aggregation", ["probabilities", "log_odds", "mean"])
def test_sources_that_differ_from_the_other_class_are_ranked_right_and_noise_is_not(ablation: Any, aggregation: str) -> None:
    variant = replace(ablation.REFERENCE, aggregation=aggregation)
    clear = ablation.leave_one_source_out(prompts_of(ablation, separation=40.0), variant)
    assert set(clear.precision) == set(SOURCES.items())
    assert clear.mean() == 1.0
    assert min(clear.found.values()) == 1.0
    noise = ablation.leave_one_source_out(prompts_of(ablation, separation=0.0, apart=0.0), variant)
    assert noise.mean() < 0.85


def test_variants_have_names_of_their_own_and_begin_with_the_reference(ablation: Any) -> None:
    names = [variant.name for variant in ablation.variants(["leet"])]
    assert names[0] == "reference"
    assert len(set(names)) == len(names)
