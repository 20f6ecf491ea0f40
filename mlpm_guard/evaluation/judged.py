"""What a report needs of an evaluation: labels, scores and evidence of every row. Text only where it is asked for."""

from __future__ import annotations

import heapq
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlpm_guard.datafiles import Record
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.evaluation.metrics import NOT_JUDGED, Metrics, compute
from mlpm_guard.evaluation.runner import Evaluation, judged_batches
from mlpm_guard.verdict import Target

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard
    from mlpm_guard.verdict import Verdict

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

EXAMPLES = 20
"""Mistakes of each kind that are kept, the worst first."""

_BATCH = 256
_TIMED_ALONE = 50


class Cost(NamedTuple):
    """What a judgement costs, measured where the evaluation ran.

    Attributes:
        batched: seconds per prompt in `check_batch`, over all rows.
        batch_size: rows of such a batch.
        alone: median seconds of `check` on single prompts.
        alone_slow: 95th percentile of the same.
        sampled: how many single prompts were timed.
    """

    batched: float
    batch_size: int
    alone: float
    alone_slow: float
    sampled: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """A row that was judged wrongly.

    Attributes:
        row: its `id`, else its source and line.
        source: where it is from.
        category: its labelled category.
        score: its score, None where it could not be judged.
        named: the category that the verdict names.
        text: the conversation, where texts are to be shown.
    """

    row: str
    source: str
    category: str | None
    score: float | None
    named: str | None
    text: str | None = field(repr=False)


@dataclass(frozen=True)
class Rows:
    """What the data say, shape (n,) each.

    Attributes:
        unsafe: which rows are labelled unsafe.
        sources: every row's source.
        categories: every row's labelled category, or None.
    """

    unsafe: Flags
    sources: npt.NDArray[np.object_]
    categories: npt.NDArray[np.object_]


@dataclass(frozen=True)
class Judged:
    """What one guard said of the rows.

    Attributes:
        name: what the report calls it.
        bundle_id: which saved guard it is; None for one that was not saved.
        encoder: the model whose states it reads.
        target: "prompt" or "response".
        threshold: probability from which it flags.
        rows: the data.
        scores: shape (n,), NaN for rows that could not be judged.
        flagged: shape (n,).
        layers: `hidden_states` indices of the layers whose evidence verdicts carry.
        layer_log_odds: evidence of the deciding window, shape (n, layers), NaN where there is none.
        categories: categories whose probabilities verdicts carry.
        category_probabilities: shape (n, categories), NaN where there is none.
        named: the category that each verdict names, or None, shape (n,).
        novelty: shape (n,), NaN where it was not measured.
        cost: measured cost.
        missed: unsafe rows that passed, lowest score first.
        false_alarms: safe rows that were flagged, highest score first.
    """

    name: str
    bundle_id: str | None
    encoder: str
    target: Target
    threshold: float
    rows: Rows
    scores: Array
    flagged: Flags
    layers: tuple[int, ...]
    layer_log_odds: Array
    categories: tuple[str, ...]
    category_probabilities: Array
    named: npt.NDArray[np.object_]
    novelty: Array
    cost: Cost
    missed: list[Mistake]
    false_alarms: list[Mistake]

    @property
    def ranks(self) -> Array:
        """Scores, with rows that could not be judged above every other, as `Metrics` ranks them. Shape (n,)."""
        return np.where(np.isnan(self.scores), NOT_JUDGED, self.scores)

    def metrics(self, which: Flags | None = None) -> Metrics:
        """Metrics of all rows, or of those that `which` (shape (n,)) selects."""
        chosen = np.ones(len(self.scores), bool) if which is None else which
        return compute(self.rows.unsafe[chosen].astype(np.int64), self.scores[chosen], self.flagged[chosen])

    def evaluation(self) -> Evaluation:
        """The same figures as `evaluate` gives."""
        sources = {source: self.metrics(self.rows.sources == source) for source in sorted(set(self.rows.sources.tolist()))}
        return Evaluation(bundle_id=self.bundle_id, threshold=self.threshold, overall=self.metrics(), sources=sources)


def collect(
    guards: Sequence[tuple[str, Guard]],
    records: Iterable[Record],
    *,
    keep_text: bool = False,
    batch_size: int = _BATCH,
    progress: Callable[[int], None] | None = None,
) -> list[Judged]:
    """Judge labelled records with one or more guards, all of them on the same rows.

    Args:
        guards: fitted guards of one target, each with the name that the report gives it.
        records: rows with labels; any iterable, read once.
        keep_text: keep the text of the mistakes that are listed.
        batch_size: rows that are judged together.
        progress: called after every batch with its number of rows.

    Returns:
        One result for each guard, in order.

    Raises:
        DataError: a record has no label, or there are no records.
        ConfigurationError: there are no guards, they judge different things, or `batch_size` is not a positive whole number.
        MlpmGuardError: a guard itself cannot be used; see `Guard.check_batch`.
    """
    if not guards:
        raise ConfigurationError("give at least one guard to evaluate")
    if len({guard.target for _, guard in guards}) > 1:
        raise ConfigurationError("guards of prompts and guards of answers cannot be compared: their rows are different things")
    rows, sample = _RowLog(), _Sample()
    logs = [_Log(keep_text) for _ in guards]
    for _, guard in guards:
        guard.load()
    for batch in judged_batches([guard for _, guard in guards], records, batch_size=batch_size):
        for record in batch.records:
            rows.add(record)
            sample.add(record)
        for log, verdicts, seconds in zip(logs, batch.verdicts, batch.seconds, strict=True):
            log.seconds += seconds
            for record, verdict in zip(batch.records, verdicts, strict=True):
                log.add(record, verdict)
        if progress is not None:
            progress(len(batch.records))
    found = rows.rows()
    return [log.judged(name, guard, found, sample, batch_size) for (name, guard), log in zip(guards, logs, strict=True)]


class _RowLog:
    def __init__(self) -> None:
        self.labels = array("b")
        self.sources: list[str] = []
        self.categories: list[str | None] = []

    def add(self, record: Record) -> None:
        assert record.label is not None
        self.labels.append(record.label)
        self.sources.append(record.source)
        self.categories.append(record.category)

    def rows(self) -> Rows:
        return Rows(np.asarray(self.labels, np.int8) == 1, np.array(self.sources, object), np.array(self.categories, object))


class _Sample:
    """A uniform sample of the conversations, to time them one by one (Vitter's algorithm R)."""

    def __init__(self) -> None:
        self.kept: list[str | list[dict[str, Any]]] = []
        self._seen = 0
        self._random = random.Random(0)  # noqa: S311  (no secret: which prompts are timed)

    def add(self, record: Record) -> None:
        self._seen += 1
        if len(self.kept) < _TIMED_ALONE:
            self.kept.append(record.conversation)
        elif (place := self._random.randrange(self._seen)) < _TIMED_ALONE:
            self.kept[place] = record.conversation


class _Log:
    """One guard's verdicts as columns."""

    def __init__(self, keep_text: bool) -> None:
        self.seconds = 0.0
        self._keep_text = keep_text
        self._scores, self._flagged, self._novelty = array("d"), array("b"), array("d")
        self._layers: dict[int, array[float]] = {}
        self._categories: dict[str, array[float]] = {}
        self._named: list[str | None] = []
        self._missed: list[tuple[float, int, Mistake]] = []
        self._false_alarms: list[tuple[float, int, Mistake]] = []

    def add(self, record: Record, verdict: Verdict) -> None:
        count = len(self._scores)
        nan = float("nan")
        self._scores.append(nan if verdict.score is None else verdict.score)
        self._flagged.append(verdict.flagged)
        self._novelty.append(nan if verdict.novelty is None else verdict.novelty)
        self._named.append(verdict.category)
        _append(self._layers, {layer.layer: layer.log_odds for layer in verdict.layers}, count)
        _append(self._categories, verdict.categories, count)
        if verdict.flagged != (record.label == 1):
            score = 1.0 if verdict.score is None else verdict.score
            worst, badness = (self._missed, -score) if record.label == 1 else (self._false_alarms, score)
            self._note(worst, badness, count, record, verdict)

    def _note(
        self, worst: list[tuple[float, int, Mistake]], badness: float, count: int, record: Record, verdict: Verdict
    ) -> None:
        entry = (badness, -count)
        if len(worst) == EXAMPLES and entry <= worst[0][:2]:
            return
        mistake = Mistake(
            row=f"{record.source}, line {record.line}" if record.id is None else record.id,
            source=record.source,
            category=record.category,
            score=verdict.score,
            named=verdict.category,
            text=record.text if self._keep_text else None,
        )
        (heapq.heappush if len(worst) < EXAMPLES else heapq.heapreplace)(worst, (*entry, mistake))

    def judged(self, name: str, guard: Guard, rows: Rows, sample: _Sample, batch_size: int) -> Judged:
        identity = guard.encoder.identity
        return Judged(
            name=name,
            bundle_id=guard.bundle_id,
            encoder=identity.model or identity.architecture,
            target=guard.target,
            threshold=guard.threshold,
            rows=rows,
            scores=np.array(self._scores),
            flagged=np.array(self._flagged, bool),
            layers=tuple(sorted(self._layers)),
            layer_log_odds=_columns([self._layers[layer] for layer in sorted(self._layers)], len(self._scores)),
            categories=tuple(self._categories),
            category_probabilities=_columns(list(self._categories.values()), len(self._scores)),
            named=np.array(self._named, object),
            novelty=np.array(self._novelty),
            cost=_cost(guard, self.seconds / len(self._scores), sample, batch_size),
            missed=[mistake for *_, mistake in sorted(self._missed, reverse=True)],
            false_alarms=[mistake for *_, mistake in sorted(self._false_alarms, reverse=True)],
        )


def _append(columns: dict[Any, array[float]], values: dict[Any, float], count: int) -> None:
    """Add a row to columns of which some may be new and some may be missing."""
    for key in values:
        if key not in columns:
            columns[key] = array("d", [float("nan")]) * count
    for key, column in columns.items():
        column.append(values.get(key, float("nan")))


def _columns(columns: Sequence[array[float]], count: int) -> Array:
    return np.stack([np.array(column) for column in columns], axis=1) if columns else np.empty((count, 0))


def _cost(guard: Guard, batched: float, sample: _Sample, batch_size: int) -> Cost:
    times = []
    for conversation in sample.kept:
        began = time.perf_counter()
        guard.check(conversation)
        times.append(time.perf_counter() - began)
    slow = sorted(times)[min(len(times) - 1, int(0.95 * len(times)))]
    return Cost(batched, batch_size, statistics.median(times), slow, len(times))
