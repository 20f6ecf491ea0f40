"""What the cards of the shipped guards say was measured: figures with 95 % confidence intervals, and how they are taken.

Every text is judged once by each guard. No text stands in what this returns, so that it can be kept as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mlpm_guard import __version__
from mlpm_guard.bundles.card_sets import (
    EVERYDAY,
    QUESTIONS,
    TRANSLATED,
    UNSAFE,
    Prompt,
    evaluation_sets,
    held_out_prompts,
    prompt_sets,
    questions,
    translations,
)
from mlpm_guard.errors import DataError
from mlpm_guard.evaluation.intervals import REPEATS, Interval, exact, percentile, replicates
from mlpm_guard.evaluation.metrics import NOT_JUDGED, compute
from mlpm_guard.evaluation.robustness import Cell, PromptSet, measure
from mlpm_guard.prototypes.calibration import expected_calibration_error
from mlpm_guard.verdict import Verdict

RATES = (0.01, 0.02, 0.05)
"""Shares of everyday prompts flagged at the points of the operating curve."""

ROWS, HELD_OUT_ROWS, SEED = 80, 40, 0
"""Rows of a set that is disguised, held-out rows of a source and label, and the seed of disguises and resamples."""

ALL_HARMFUL, ALL_HARMLESS = "all harmful", "all harmless"
"""The harmful, and the harmless, sets that are disguised, taken together."""

EVERYDAY_TOGETHER, QUESTIONS_TOGETHER, HELD_OUT = "everyday", "held-out questions", "held-out rows"
_BINS = 10

Flags = npt.NDArray[np.bool_]
Ranks = npt.NDArray[np.float64]


class Judging(Protocol):
    """What a guard needs here."""

    @property
    def threshold(self) -> float:
        """Probability from which it flags."""

    @property
    def bundle_id(self) -> str | None:
        """Which saved guard it is."""

    def check_batch(self, conversations: Sequence[str], /) -> list[Verdict]:
        """One verdict a text."""


class Figure(BaseModel):
    """A figure and the ends of its 95 % confidence interval.

    Attributes:
        value: the figure.
        low: lower end.
        high: upper end.
        rows: how many rows it was taken on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float
    rows: int = Field(ge=1)


class SetFigures(BaseModel):
    """How a guard does on one set, at its own threshold.

    Attributes:
        unsafe: rows labelled unsafe.
        safe: rows labelled safe.
        errors: rows that could not be judged; they count as flagged.
        f1: harmonic mean of precision and recall; of 1 and the recall where no row is safe; None where none is unsafe.
        average_precision: None unless both labels are there.
        recall: share of unsafe rows flagged.
        flagged: share of safe rows flagged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unsafe: int
    safe: int
    errors: int
    f1: Figure | None = None
    average_precision: Figure | None = None
    recall: Figure | None = None
    flagged: Figure | None = None


class Point(BaseModel):
    """A point of the operating curve.

    Attributes:
        rate: share of everyday prompts that may be flagged.
        threshold: the lowest that flags no more.
        everyday: the share that it flags.
        recall: share flagged of the unsafe rows of each set.
        flagged: share flagged of the safe rows of each set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float
    threshold: float
    everyday: Figure
    recall: dict[str, Figure]
    flagged: dict[str, Figure]


class CategoryFigures(BaseModel):
    """How a guard does on held-out unsafe rows of one category.

    Attributes:
        recall: share flagged.
        named: share of the flagged ones whose verdict names that category; None where the guard does not know it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recall: Figure
    named: Figure | None


class Bin(BaseModel):
    """Rows with like scores: the scores' mean, and the share of unsafe rows among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: float
    unsafe: Figure


class GuardFigures(BaseModel):
    """Everything that is measured on a prompt guard.

    Attributes:
        bundle_id: which saved guard; None for one that was not saved.
        threshold: its own.
        sets: figures by set, those of several sets together included.
        curve: operating points by the share of everyday prompts flagged.
        sources: held-out rows by training source.
        categories: held-out unsafe rows by category.
        languages: held-out rows of translated sources, by source and language.
        calibration: expected calibration error by set.
        reliability: of held-out rows.
        robustness: shares flagged under disguises, wrappers and padding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_id: str | None
    threshold: float
    sets: dict[str, SetFigures]
    curve: list[Point]
    sources: dict[str, SetFigures]
    categories: dict[str, CategoryFigures]
    languages: dict[str, dict[str, Figure]]
    calibration: dict[str, Figure]
    reliability: list[Bin]
    robustness: list[Cell]


class ResponseFigures(BaseModel):
    """Everything that is measured on a response guard.

    Attributes:
        bundle_id: which saved guard.
        threshold: its own.
        sets: figures by set of labelled answers.
        harmless: held-out harmless texts, read as answers, by source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_id: str | None
    threshold: float
    sets: dict[str, SetFigures]
    harmless: dict[str, SetFigures]


class Trial(BaseModel):
    """A recipe that was tried, judged on sources that were left out of its fit; see `benchmarks/ablation.py`.

    Attributes:
        precision: mean average precision over the sources left out.
        change: mean change from the reference recipe.
        worst: of the source that lost most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: float
    change: float
    worst: float


class OutsideFigures(BaseModel):
    """Both guards on public sets outside the data folder; see `benchmarks/outside.py`.

    Attributes:
        f1: by kind of text.
        mean_f1: of those.
        flagged: shares of prompts flagged, by label and set.
        answers: shares of answers flagged, by label and set.
        answers_precision: average precision on the answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    f1: dict[str, float]
    mean_f1: float
    flagged: dict[str, Figure]
    answers: dict[str, Figure]
    answers_precision: float


class CardFigures(BaseModel):
    """What stands in the cards.

    Attributes:
        library_version: that measured.
        rows: rows of a disguised set at most.
        held_out_rows: held-out rows of a source and label at most.
        seed: of disguises and resamples.
        shipped: the guard that ships.
        reference: the reference recipe on the states of the encoder without an adapter.
        reference_rows: prompts that it learned from, safe and unsafe.
        response: the response guard that ships.
        trials: recipes that were tried, by name; empty where that was not measured.
        outside: both guards on sets outside the data folder; None where that was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    library_version: str = __version__
    rows: int
    held_out_rows: int
    seed: int
    shipped: GuardFigures
    reference: GuardFigures
    reference_rows: tuple[int, int]
    response: ResponseFigures
    trials: dict[str, Trial] = Field(default_factory=dict)
    outside: OutsideFigures | None = None


class Remembering:
    """A guard that judges every text once.

    Args:
        guard: judges what was not judged before.
    """

    def __init__(self, guard: Judging) -> None:
        self._guard = guard
        self._known: dict[str, Verdict] = {}
        self.threshold = guard.threshold
        self.bundle_id = guard.bundle_id

    def check_batch(self, conversations: Sequence[str], /) -> list[Verdict]:
        """One verdict a text."""
        unknown = [text for text in dict.fromkeys(conversations) if text not in self._known]
        self._known.update(zip(unknown, self._guard.check_batch(unknown) if unknown else (), strict=True))
        return [self._known[text] for text in conversations]


class Judged:
    """Labelled rows and what a guard said of them.

    Args:
        labels: 1 unsafe, 0 safe.
        verdicts: one a row.
    """

    def __init__(self, labels: Sequence[int], verdicts: Sequence[Verdict]) -> None:
        self.unsafe: Flags = np.array(labels, int) == UNSAFE
        self.scores = [verdict.score for verdict in verdicts]
        self.flagged: Flags = np.array([verdict.flagged for verdict in verdicts], bool)
        self.ranks: Ranks = np.array([NOT_JUDGED if score is None else score for score in self.scores], np.float64)
        self.verdicts = verdicts

    def figures(self, seed: int = SEED) -> SetFigures:
        """F1, average precision and shares at the guard's own threshold."""
        metrics = compute(self.unsafe.astype(int), self.scores, self.flagged)
        both = metrics.unsafe > 0 and metrics.safe > 0
        drawn = replicates(self.unsafe, self.ranks, self.flagged, seed=seed) if both else {}
        recall = share(self.flagged[self.unsafe]) if metrics.unsafe else None
        f1 = None
        if both and metrics.f1 is not None:
            f1 = _figure(metrics.f1, percentile(drawn["f1"]), metrics.n)
        elif recall is not None:
            # Without false alarms F1 grows with the recall alone, so that its ends are those of the recall.
            f1 = Figure(**{name: 2 * end / (1 + end) for name, end in recall if name != "rows"}, rows=recall.rows)
        precision = metrics.average_precision
        return SetFigures(
            unsafe=metrics.unsafe,
            safe=metrics.safe,
            errors=metrics.errors,
            f1=f1,
            average_precision=_figure(precision, percentile(drawn["average_precision"]), metrics.n)
            if precision is not None
            else None,
            recall=recall,
            flagged=share(self.flagged[~self.unsafe]) if metrics.safe else None,
        )

    def calibration(self, seed: int = SEED) -> Figure:
        """Expected calibration error of the rows that were judged; bootstrap over them, within each label."""
        judged = self.ranks <= 1.0
        scores, unsafe = self.ranks[judged], self.unsafe[judged]
        generator = np.random.default_rng(seed)
        groups = [rows for label in (False, True) if len(rows := np.flatnonzero(unsafe == label))]
        values = []
        for _ in range(REPEATS):
            rows = np.concatenate([generator.choice(group, len(group)) for group in groups])
            values.append(expected_calibration_error(scores[rows], unsafe[rows]))
        return _figure(expected_calibration_error(scores, unsafe), percentile(np.array(values)), len(scores))

    def reliability(self) -> list[Bin]:
        """Equally filled bins by score."""
        judged = np.flatnonzero(self.ranks <= 1.0)
        order = judged[np.argsort(self.ranks[judged], kind="stable")]
        bins = np.array_split(order, min(_BINS, len(order)))
        return [Bin(score=float(self.ranks[rows].mean()), unsafe=share(self.unsafe[rows])) for rows in bins]


def share(flags: Flags) -> Figure:
    """A share with its exact interval.

    Raises:
        DataError: there are no rows.
    """
    interval = exact(int(flags.sum()), len(flags))
    if interval is None:
        raise DataError("a share of no rows")
    return _figure(float(flags.mean()), interval, len(flags))


def operating_point(everyday: Ranks, rate: float) -> float:
    """The lowest threshold from which at most that share of the everyday prompts is flagged.

    Args:
        everyday: what ranks them, shape (n,).
        rate: the share.
    """
    ranked = np.sort(everyday)[::-1]
    return float(np.nextafter(ranked[int(rate * len(ranked) + 1e-9)], np.inf))


def measured(
    guard: Judging,
    data: Path,
    *,
    rows: int = ROWS,
    held_out_rows: int = HELD_OUT_ROWS,
    seed: int = SEED,
    progress: Callable[[str], None] = lambda _: None,
) -> GuardFigures:
    """Measure a prompt guard.

    Args:
        guard: a fitted guard.
        data: folder with `eval` and `train`.
        rows: of a disguised set at most.
        held_out_rows: of a source and label at most.
        seed: of disguises and resamples.
        progress: is told what is measured next.

    Raises:
        DataError: a file is missing or cannot be used.
        MlpmGuardError: the guard cannot be used.
    """
    judge = Remembering(guard)

    def judged(prompts: Sequence[Prompt]) -> Judged:
        return Judged([each.label for each in prompts], judge.check_batch([each.text for each in prompts]))

    progress("test sets")
    sets = {**evaluation_sets(data), **questions(data)}
    kept = held_out_prompts(data, held_out_rows)
    for together, names in ((EVERYDAY_TOGETHER, EVERYDAY), (QUESTIONS_TOGETHER, QUESTIONS)):
        sets[together] = [each for name in names for each in sets[name]]
    on = {name: judged(prompts) for name, prompts in sets.items()}
    progress("held-out rows")
    on_kept = judged(kept)
    languages = {source: translations(data, source) for source in TRANSLATED}
    by_language = {
        source: {language: share(judged(prompts).flagged) for language, prompts in of.items()}
        for source, of in languages.items()
    }
    progress("disguises, wrappers and padding")
    calibrated = {"aegis_test": on["aegis_test"], "xstest": on["xstest"], HELD_OUT: on_kept}
    return GuardFigures(
        bundle_id=guard.bundle_id,
        threshold=guard.threshold,
        sets={name: each.figures(seed) for name, each in on.items()},
        curve=[_point(on, rate) for rate in RATES],
        sources=_by_source(kept, on_kept.verdicts),
        categories=_by_category(kept, on_kept.verdicts),
        languages=by_language,
        calibration={name: each.calibration(seed) for name, each in calibrated.items()},
        reliability=on_kept.reliability(),
        robustness=list(measure(judge, _with_unions(prompt_sets(data, rows)), seed=seed)),
    )


def _figure(value: float, interval: Interval | None, rows: int) -> Figure:
    low, high = (value, value) if interval is None else interval
    return Figure(value=value, low=low, high=high, rows=rows)


def _point(on: Mapping[str, Judged], rate: float) -> Point:
    threshold = operating_point(on[EVERYDAY_TOGETHER].ranks, rate)
    recall, flagged = {}, {}
    for name, each in on.items():
        above = each.ranks >= threshold
        if each.unsafe.any():
            recall[name] = share(above[each.unsafe])
        if not each.unsafe.all():
            flagged[name] = share(above[~each.unsafe])
    return Point(rate=rate, threshold=threshold, everyday=flagged[EVERYDAY_TOGETHER], recall=recall, flagged=flagged)


def _by_source(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, SetFigures]:
    found: dict[str, list[tuple[int, Verdict]]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        found.setdefault(prompt.source, []).append((prompt.label, verdict))
    return {
        source: Judged([label for label, _ in of], [verdict for _, verdict in of]).figures()
        for source, of in sorted(found.items())
    }


def _by_category(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, CategoryFigures]:
    found: dict[str, list[Verdict]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        if prompt.label == UNSAFE and prompt.category is not None:
            found.setdefault(prompt.category, []).append(verdict)
    return {name: _category(name, of) for name, of in sorted(found.items())}


def _category(name: str, verdicts: Sequence[Verdict]) -> CategoryFigures:
    flagged = [verdict for verdict in verdicts if verdict.flagged]
    known = [verdict for verdict in flagged if name in verdict.categories]
    return CategoryFigures(
        recall=share(np.array([verdict.flagged for verdict in verdicts], bool)),
        named=share(np.array([verdict.category == name for verdict in known], bool)) if known else None,
    )


def _with_unions(sets: Sequence[PromptSet]) -> list[PromptSet]:
    unions = [
        PromptSet(name, [text for each in sets if each.harmful == harmful for text in each.texts], harmful)
        for name, harmful in ((ALL_HARMFUL, True), (ALL_HARMLESS, False))
    ]
    return [*sets, *unions]
