"""Runs a guard over a suite of public test sets, and puts the figures that others published beside its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.evaluation.intervals import exact, percentile, replicates
from mlpm_guard.evaluation.metrics import NOT_JUDGED, Metrics, compute
from mlpm_guard.evaluation.runner import judged_batches
from mlpm_guard.evaluation.suites import SUITES, TestSet, locate
from mlpm_guard.verdict import Target

if TYPE_CHECKING:
    from mlpm_guard.datafiles import Record
    from mlpm_guard.guard import Guard


class SetResult(BaseModel):
    """How a guard does on one set.

    Attributes:
        title: the set's name in the paper.
        file: name of the file that was read.
        metrics: at the guard's own threshold.
        f1: harmonic mean of precision and recall. On a set of unsafe prompts alone, where nothing can be flagged wrongly,
            that of 1 and the recall, as in the paper.
        f1_interval: its 95 % confidence interval; None where resamples leave it undefined.
        published: F1 that others published, by guard; not measured here, at thresholds and on models of theirs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    file: str
    metrics: Metrics
    f1: float = Field(ge=0.0, le=1.0)
    f1_interval: tuple[float, float] | None
    published: dict[str, float]


class SuiteResult(BaseModel):
    """How a guard does on a suite.

    Attributes:
        suite: the suite's name.
        source: where the published figures are from.
        bundle_id: which saved guard judged; None for one that was not saved.
        threshold: probability from which it flagged.
        target: what it judges.
        sets: results by the sets' keys.
        not_found: sets without a file, by key, with the names that were looked for.
        other_target: keys of the sets that a guard of the other target judges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    source: str = "arXiv 2502.16174"
    bundle_id: str | None
    threshold: float
    target: Target
    sets: dict[str, SetResult]
    not_found: dict[str, tuple[str, ...]]
    other_target: tuple[str, ...]


def run_suite(
    guard: Guard,
    folder: str | Path,
    *,
    suite: str = "paper",
    progress: Callable[[int], None] | None = None,
) -> SuiteResult:
    """Measure a guard on the sets of a suite whose files lie in a folder or below it.

    Args:
        guard: a fitted guard; the sets of its target are judged.
        folder: where the publishers' files are, under their own names or as `<key>.csv`, `<key>.jsonl`, `<key>.parquet`.
        suite: a name in `SUITES`.
        progress: called after every batch with its number of rows.

    Raises:
        ConfigurationError: there is no such suite, or a file is Parquet and pyarrow is not installed.
        DataError: there is no such folder, none of the guard's files is in it, or one cannot be read; names file and line.
        MlpmGuardError: the guard itself cannot be used; see `Guard.check_batch`.
    """
    if suite not in SUITES:
        raise ConfigurationError(f"no suite of that name; there are {', '.join(SUITES)}")
    wanted = [each for each in SUITES[suite] if each.target == guard.target]
    files = locate(wanted, folder)
    if not files:
        names = "; ".join(f"{each.title}: {' or '.join(each.files)}" for each in wanted)
        raise DataError(f"{folder} holds none of the files of the suite {suite!r} for a guard of the {guard.target}. {names}")
    return SuiteResult(
        suite=suite,
        bundle_id=guard.bundle_id,
        threshold=guard.threshold,
        target=guard.target,
        sets={each.key: _measure(guard, each, files[each.key], progress) for each in wanted if each.key in files},
        not_found={each.key: each.files for each in wanted if each.key not in files},
        other_target=tuple(each.key for each in SUITES[suite] if each.target != guard.target),
    )


def _measure(guard: Guard, test_set: TestSet, path: Path, progress: Callable[[int], None] | None) -> SetResult:
    labels: list[int] = []
    scores: list[float] = []
    flagged: list[bool] = []
    for batch in judged_batches([guard], _counted(test_set.records(path), progress)):
        for record, verdict in zip(batch.records, batch.verdicts[0], strict=True):
            labels.append(int(record.label == 1))
            scores.append(float("nan") if verdict.score is None else verdict.score)
            flagged.append(verdict.flagged)
    truth, ranks, positive = np.array(labels, bool), np.array(scores), np.array(flagged, bool)
    hits, count = int((positive & truth).sum()), int(truth.sum())
    drawn = count + int(positive.sum())
    return SetResult(
        title=test_set.title,
        file=path.name,
        metrics=compute(labels, scores, flagged),
        f1=2 * hits / drawn if drawn else 0.0,
        f1_interval=_interval(truth, np.where(np.isnan(ranks), NOT_JUDGED, ranks), positive),
        published={name: f1 / 100 for name, f1 in test_set.published.items()},
    )


def _interval(
    truth: np.ndarray[tuple[int], np.dtype[np.bool_]],
    ranks: np.ndarray[tuple[int], np.dtype[np.float64]],
    positive: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> tuple[float, float] | None:
    if truth.all():
        # Without false alarms F1 grows with the recall alone, so that its ends are those of the recall.
        ends = exact(int(positive.sum()), len(truth))
        return None if ends is None else (2 * ends.low / (1 + ends.low), 2 * ends.high / (1 + ends.high))
    if not truth.any():
        return None
    return percentile(replicates(truth, ranks, positive)["f1"])


def _counted(records: Iterable[Record], progress: Callable[[int], None] | None) -> Iterator[Record]:
    for record in records:
        yield record
        if progress is not None:
            progress(1)
