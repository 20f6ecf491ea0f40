"""Synthetic layer states with labels and categories."""

from __future__ import annotations

import numpy as np
from layer_data import Labels, States

from mlpm_guard.prototypes.statistics import PrototypeStatistics

NAMES = ("drugs", "fraud", "hate")


def make_categories(
    safe: int = 90,
    per_category: int = 30,
    unnamed: int = 20,
    *,
    layers: int = 3,
    dim: int = 8,
    seed: int = 0,
    apart: float = 2.0,
) -> tuple[States, Labels, list[str | None]]:
    """Gaussian states: safe ones, unsafe ones of three categories, and unsafe ones without; in shuffled order."""
    rng = np.random.default_rng(seed)
    names: list[str | None] = [None] * (safe + unnamed)
    labels = [0] * safe + [1] * unnamed
    for name in NAMES:
        names += [name] * per_category
        labels += [1] * per_category
    centers = {name: apart * rng.normal(size=(layers, dim)) for name in NAMES}
    unsafe = rng.normal(size=(layers, dim))
    states = rng.normal(size=(len(labels), layers, dim)) + 3.0
    for index, (name, label) in enumerate(zip(names, labels, strict=True)):
        states[index] += label * unsafe + (centers[name] if name is not None else 0.0)
    order = rng.permutation(len(labels))
    return states[order].astype(np.float32), np.array(labels)[order], [names[index] for index in order]


def learned(states: States, labels: Labels, names: list[str | None], *, sample_size: int = 512) -> PrototypeStatistics:
    """Statistics of these."""
    statistics = PrototypeStatistics(*states.shape[1:], sample_size=sample_size)
    statistics.update(states, labels, np.arange(len(labels), dtype=np.uint64), names)
    return statistics
