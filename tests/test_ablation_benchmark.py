"""The arithmetic behind `benchmarks/ablation.py`: its fits are the library's, and what is left out has no say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlpm_guard.prototypes.discriminant import fit_discriminants
from mlpm_guard.prototypes.statistics import PrototypeStatistics

LAYERS, DIM = 3, 5
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
    return ablation.Prompts(states.astype(np.float32), owner, source, label, np.full(len(source), ablation.PLAIN), held)


def only(prompts: Any, ablation: Any, keep: Any) -> Any:
    """The prompts that `keep` names, with their windows."""
    number = np.cumsum(keep) - 1
    windows = keep[prompts.owner]
    return ablation.Prompts(
        prompts.states[windows], number[prompts.owner[windows]],
        *(getattr(prompts, name)[keep] for name in ("source", "label", "kind", "held")),
    )  # fmt: skip


def test_the_reference_fit_points_where_the_librarys_does(ablation: Any) -> None:
    prompts = prompts_of(ablation)
    coef, bias = ablation.Fits(prompts, ablation.REFERENCE).without(None)
    learned = ~prompts.held[prompts.owner]
    statistics = PrototypeStatistics(LAYERS, DIM, sample_size=10)
    labels = prompts.label[prompts.owner][learned]
    statistics.update(prompts.states[learned], labels, np.arange(learned.sum(), dtype=np.uint64))
    expected = fit_discriminants(statistics)
    scale = learned.sum() / DIM
    np.testing.assert_allclose(coef, expected.weights * scale, rtol=1e-3)
    np.testing.assert_allclose(bias, expected.biases * scale, rtol=1e-3)


@pytest.mark.parametrize("change", [{}, {"between": 5.0}, {"balance": 1.0}, {"ridge": 0.3}, {"joint": True, "ridge": 0.3}])
def test_leaving_a_source_out_is_fitting_without_it(ablation: Any, change: dict[str, Any]) -> None:
    prompts = prompts_of(ablation)
    variant = replace(ablation.REFERENCE, **change)
    without = only(prompts, ablation, prompts.source != "thefts")
    for one, other in zip(
        ablation.Fits(prompts, variant).without("thefts"), ablation.Fits(without, variant).without(None), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_source_of_weight_two_counts_like_one_that_is_there_twice(ablation: Any) -> None:
    prompts = prompts_of(ablation)
    weighted = ablation.Fits(prompts, replace(ablation.REFERENCE, ridge=0.1, weights={"threats": 2.0})).without(None)
    again = only(prompts, ablation, prompts.source == "threats")
    twice = ablation.Prompts(
        np.concatenate([prompts.states, again.states]),
        np.concatenate([prompts.owner, again.owner + len(prompts.label)]),
        *(np.concatenate([getattr(prompts, name), getattr(again, name)]) for name in ("source", "label", "kind", "held")),
    )
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
