"""What a guard still finds, and what it wrongly flags, once prompts are disguised, wrapped or padded.

Every row is judged clean and changed, so that the two shares are compared row by row. No prompt stands in what this returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mlpm_guard.errors import DataError
from mlpm_guard.evaluation.intervals import CONFIDENCE, REPEATS, Interval, exact
from mlpm_guard.evaluation.transformations import SEED, TRANSFORMATIONS, Transformation
from mlpm_guard.verdict import Verdict

CLEAN = "clean"

Flags = npt.NDArray[np.bool_]


class Judge(Protocol):
    """What a guard needs here."""

    def check_batch(self, conversations: Sequence[str], /) -> list[Verdict]:
        """One verdict a text."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts of one label.

    Attributes:
        name: as it stands in tables.
        texts: the prompts.
        harmful: whether they are to be flagged.
    """

    name: str
    texts: Sequence[str]
    harmful: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """One set under one transformation.

    Attributes:
        transformation: its name, or "clean".
        prompts: name of the set.
        harmful: whether its prompts are to be flagged.
        rows: how many there are.
        flagged: how many were flagged; what could not be judged counts, as it does in use.
        errors: how many could not be judged.
        share: flagged over rows.
        interval: of the share, exact, 95 %.
        ratio: share over that of the clean set; None where that is 0.
        ratio_interval: of the ratio, bootstrap over the rows, 95 %.
        difference: share minus that of the clean set.
        difference_interval: of the difference, likewise.
    """

    transformation: str
    prompts: str
    harmful: bool
    rows: int
    flagged: int
    errors: int
    share: float
    interval: Interval
    ratio: float | None
    ratio_interval: Interval | None
    difference: float
    difference_interval: Interval


def measure(
    guard: Judge,
    sets: Sequence[PromptSet],
    transformations: Sequence[Transformation] = TRANSFORMATIONS,
    *,
    seed: int = SEED,
) -> Iterator[Cell]:
    """Cells, a set after another, the clean one first.

    Args:
        guard: judges texts; its own threshold decides.
        sets: prompts, each set of one label.
        transformations: what to do to them.
        seed: of the transformations and the intervals.

    Raises:
        DataError: a set is empty.
    """
    for prompts in sets:
        if not prompts.texts:
            raise DataError(f"the set {prompts.name} has no prompts")
        clean, errors = judged(guard, prompts.texts)
        yield cell(CLEAN, prompts, clean, clean, errors, seed=seed)
        for each in transformations:
            flagged, errors = judged(guard, [each.apply(text, seed) for text in prompts.texts])
            yield cell(each.name, prompts, flagged, clean, errors, seed=seed)


def judged(guard: Judge, texts: Sequence[str]) -> tuple[Flags, int]:
    """Which texts are flagged, shape (n,), and how many could not be judged."""
    verdicts = guard.check_batch(list(texts))
    return np.array([verdict.flagged for verdict in verdicts], bool), sum(verdict.error is not None for verdict in verdicts)


def cell(name: str, prompts: PromptSet, flagged: Flags, clean: Flags, errors: int, *, seed: int = SEED) -> Cell:
    """Shares and intervals of one set under one transformation.

    Args:
        name: of the transformation.
        prompts: the set.
        flagged: judgements on the changed prompts, shape (n,).
        clean: judgements on the same prompts unchanged, shape (n,).
        errors: how many of the changed ones could not be judged.
        seed: of the bootstrap.

    Raises:
        DataError: the judgements are not one a prompt.
    """
    rows = len(prompts.texts)
    if flagged.shape != (rows,) or clean.shape != (rows,) or not rows:
        raise DataError(f"the set {prompts.name}: {rows} prompts, {len(flagged)} and {len(clean)} judgements")
    found, before = int(flagged.sum()), int(clean.sum())
    interval = exact(found, rows)
    assert interval is not None
    draws = np.random.default_rng(seed).integers(0, rows, (REPEATS, rows))
    changed, unchanged = flagged[draws].mean(axis=1), clean[draws].mean(axis=1)
    usable = unchanged > 0
    return Cell(
        transformation=name,
        prompts=prompts.name,
        harmful=prompts.harmful,
        rows=rows,
        flagged=found,
        errors=errors,
        share=found / rows,
        interval=interval,
        ratio=found / before if before else None,
        ratio_interval=_ends(changed[usable] / unchanged[usable]) if before else None,
        difference=(found - before) / rows,
        difference_interval=_ends(changed - unchanged),
    )


def table(cells: Sequence[Cell]) -> Mapping[str, Mapping[str, Cell]]:
    """Cells by transformation and set, in their order."""
    rows: dict[str, dict[str, Cell]] = {}
    for each in cells:
        rows.setdefault(each.transformation, {})[each.prompts] = each
    return rows


def _ends(values: npt.NDArray[np.float64]) -> Interval:
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(float(low), float(high))
