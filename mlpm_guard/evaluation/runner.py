"""Runs a guard over labelled records, batch by batch, and measures its verdicts. Keeps scores and labels, never text."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from mlpm_guard.datafiles import Record
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.evaluation.metrics import Metrics, compute

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard
    from mlpm_guard.verdict import Verdict

_BATCH = 256


class Batch(NamedTuple):
    """Records that were judged together, and what each guard said of them.

    Attributes:
        records: the rows; every one has a label.
        verdicts: for every guard one verdict a row.
        seconds: for every guard how long it took.
    """

    records: list[Record]
    verdicts: list[list[Verdict]]
    seconds: list[float]


class Evaluation(BaseModel):
    """How good a guard is on a set of records.

    Attributes:
        bundle_id: which saved guard judged; None for one that was not saved.
        threshold: probability from which its verdicts were flagged.
        overall: metrics over all rows.
        sources: metrics of every source's rows, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_id: str | None
    threshold: float
    overall: Metrics
    sources: dict[str, Metrics]


class _Tally:
    """Labels, scores and judgements of one source, 10 bytes a row."""

    def __init__(self) -> None:
        self.labels = array("b")
        self.scores = array("d")
        self.flagged = array("b")

    def add(self, label: int, verdict: Verdict) -> None:
        self.labels.append(label)
        self.scores.append(float("nan") if verdict.score is None else verdict.score)
        self.flagged.append(verdict.flagged)

    def metrics(self) -> Metrics:
        return compute(np.asarray(self.labels), np.asarray(self.scores), np.asarray(self.flagged, bool))

    def extend(self, other: _Tally) -> None:
        self.labels.extend(other.labels)
        self.scores.extend(other.scores)
        self.flagged.extend(other.flagged)


def evaluate(
    guard: Guard,
    records: Iterable[Record],
    *,
    batch_size: int = _BATCH,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Judge labelled records and measure the verdicts, overall and for each source.

    Args:
        guard: a fitted guard.
        records: rows with labels; any iterable, read once.
        batch_size: rows that are judged together.
        progress: called after every batch with its number of rows.

    Raises:
        DataError: a record has no label, or there are no records.
        ConfigurationError: `batch_size` is not a positive whole number.
        MlpmGuardError: the guard itself cannot be used; see `Guard.check_batch`.
    """
    tallies: dict[str, _Tally] = {}
    for batch in judged_batches([guard], records, batch_size=batch_size):
        for record, verdict in zip(batch.records, batch.verdicts[0], strict=True):
            assert record.label is not None
            tallies.setdefault(record.source, _Tally()).add(record.label, verdict)
        if progress is not None:
            progress(len(batch.records))
    total = _Tally()
    for tally in tallies.values():
        total.extend(tally)
    return Evaluation(
        bundle_id=guard.bundle_id,
        threshold=guard.threshold,
        overall=total.metrics(),
        sources={source: tally.metrics() for source, tally in sorted(tallies.items())},
    )


def judged_batches(guards: Sequence[Guard], records: Iterable[Record], *, batch_size: int = _BATCH) -> Iterator[Batch]:
    """Judge labelled records with one or more guards, a batch at a time, so that no more than one batch is in memory.

    Raises:
        DataError: a record has no label, or there are no records.
        ConfigurationError: `batch_size` is not a positive whole number.
        MlpmGuardError: a guard itself cannot be used; see `Guard.check_batch`.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size!r}: a whole number, at least 1")
    rows, empty = iter(records), True
    while batch := list(islice(rows, batch_size)):
        empty = False
        for record in batch:
            if record.label is None:
                raise DataError(f"line {record.line} of {record.source!r} has no label; an evaluation needs one on every row")
        verdicts, seconds = [], []
        for guard in guards:
            began = time.perf_counter()
            verdicts.append(guard.check_batch([record.conversation for record in batch]))
            seconds.append(time.perf_counter() - began)
        yield Batch(batch, verdicts, seconds)
    if empty:
        raise DataError("there are no records to evaluate on")
