"""What changes from one guard to another on the same prompts: which judgements flip, and how the metrics move.

Results hold scores, labels and positions, never text.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mlpm_guard.contradictions import LabelsSeen
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.errors import ConfigurationError, ContradictoryLabelsError, DataError, InputError
from mlpm_guard.evaluation.intervals import NAMES, percentile, replicates
from mlpm_guard.evaluation.metrics import NOT_JUDGED, Metrics, Name, compute
from mlpm_guard.verdict import Action, RuleMatch, Target, Verdict

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard
    from mlpm_guard.training import Label

Direction: TypeAlias = Literal["newly_flagged", "no_longer_flagged", "other_action"]
"""How a judgement flips. "other_action": flagged as before, and yet a gate does something else."""

_CHUNK = 1024


class Row(NamedTuple):
    """A prompt to compare on: the conversation, its label (0, 1, or None for none), and what to call it."""

    conversation: ConversationLike
    label: int | None = None
    id: str | None = None


class Judgement(BaseModel):
    """What one guard says of one prompt; as in `Verdict`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flagged: bool
    action: Action
    score: float | None
    error: str | None
    rule: RuleMatch | None
    flagged_by: tuple[str, ...]


class Flip(BaseModel):
    """A prompt that the two guards judge differently.

    Attributes:
        index: its position among the prompts, from 0.
        id: what its file calls it, where it is from one.
        label: 0 safe, 1 unsafe, None without labels.
        direction: how the judgement flips.
        before: of the first guard.
        after: of the second guard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0)
    id: str | None
    label: int | None
    direction: Direction
    before: Judgement
    after: Judgement

    @property
    def better(self) -> bool | None:
        """Whether the second guard judges as labelled and the first one does not; None where the label does not tell."""
        return None if self.label is None or self.direction == "other_action" else self.after.flagged == (self.label == 1)


class Change(BaseModel):
    """How a metric moves.

    Attributes:
        before: of the first guard; None where the rows do not define it.
        after: of the second guard.
        change: the difference.
        low: lower end of its 95 % bootstrap interval, from the same resamples of the rows for both guards.
        high: upper end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None


class Side(BaseModel):
    """One of the two guards.

    Attributes:
        bundle_id: which saved guard it is; None for one that was not saved.
        threshold: probability from which it flags.
        flagged: how many prompts it flags, those that it could not judge included.
        errors: how many it could not judge.
        metrics: how good its judgements are; None without labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_id: str | None
    threshold: float
    flagged: int = Field(ge=0)
    errors: int = Field(ge=0)
    metrics: Metrics | None


class Diff(BaseModel):
    """What changes from one guard to another.

    Attributes:
        prompts: how many were judged by both.
        before: the first guard.
        after: the second guard.
        flips: prompts that they judge differently, in order.
        changes: with labels, how every metric moves: "precision", "recall", "f1", "false_positive_rate", "average_precision",
            "recall@0.01" and "recall@0.05" (recall at that false-positive rate). Empty without labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(ge=1)
    before: Side
    after: Side
    flips: tuple[Flip, ...]
    changes: dict[Name, Change]

    @property
    def same(self) -> bool:
        """Whether no judgement flips."""
        return not self.flips

    def count(self, direction: Direction) -> int:
        """How many judgements flip in a direction."""
        return sum(flip.direction == direction for flip in self.flips)


def diff(guard: Guard, other: Guard, prompts: Iterable[ConversationLike], labels: Iterable[Label] | None = None) -> Diff:
    """What changes from `guard` to `other`. Arguments and errors as `Guard.diff`."""
    from mlpm_guard.training import paired, parse_label

    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
        raise DataError(f"prompts: a list of them, not {type(prompts).__name__}")
    if labels is None:
        return compare(guard, other, map(Row, prompts))

    def rows(labels: Iterable[Label]) -> Iterator[Row]:
        for row, (prompt, label) in enumerate(paired(prompts, labels)):
            try:
                yield Row(prompt, parse_label(label))
            except ValueError as error:
                raise DataError(f"row {row}: {error}") from None

    return compare(guard, other, rows(labels))


def compare(guard: Guard, other: Guard, rows: Iterable[Row]) -> Diff:
    """What changes from `guard` to `other`. Streams; keeps scores and judgements.

    Args:
        guard: the first guard.
        other: the second guard.
        rows: prompts; all of them with labels, or none.

    Raises:
        ConfigurationError: the guards judge different things, or `other` is no guard.
        DataError: there are no prompts, or only some have a label.
        ContradictoryLabelsError: a prompt is there with both labels.
        MlpmGuardError: a guard itself cannot be used; see `Guard.check_batch`.
    """
    from mlpm_guard.guard import Guard

    if not isinstance(other, Guard):
        raise ConfigurationError(f"other is {type(other).__name__}: pass a Guard, such as Guard.from_pretrained(path)")
    if guard.target != other.target:
        raise ConfigurationError(
            f"one guard judges the {guard.target}, the other the {other.target}: what they say of a text cannot be compared"
        )
    columns = _Column(), _Column()
    labels = array("b")
    flips: list[Flip] = []
    source = consistent(rows, guard.target)
    count = 0
    while chunk := list(islice(source, _CHUNK)):
        prompts = [row.conversation for row in chunk]
        for index, (row, before, after) in enumerate(
            zip(chunk, guard.check_batch(prompts), other.check_batch(prompts), strict=True), start=count
        ):
            for column, verdict in zip(columns, (before, after), strict=True):
                column.add(verdict)
            if row.label is not None:
                labels.append(row.label)
            if (direction := _direction(before, after)) is not None:
                flips.append(
                    Flip(
                        index=index,
                        id=row.id,
                        label=row.label,
                        direction=direction,
                        before=_judgement(before),
                        after=_judgement(after),
                    )
                )
        count += len(chunk)
        if len(labels) not in (0, count):
            raise DataError(f"{len(labels)} of the first {count} prompts have a label; give one for every prompt, or none")
    if not count:
        raise DataError("there are no prompts to compare the guards on")
    unsafe = np.asarray(labels, np.int8) == 1 if labels else None
    first, second = (column.side(each, unsafe) for column, each in zip(columns, (guard, other), strict=True))
    changes = {} if unsafe is None else _changes(unsafe, first, second, columns)
    return Diff(prompts=count, before=first, after=second, flips=tuple(flips), changes=changes)


def consistent(rows: Iterable[Row], target: Target) -> Iterator[Row]:
    """The same rows. What is no conversation is left for the guards to judge.

    Raises:
        ContradictoryLabelsError: a prompt is there with both labels.
    """
    from mlpm_guard.prototypes.classifier import content_keys

    seen = LabelsSeen()
    for number, row in enumerate(rows):
        if row.label is not None:
            with contextlib.suppress(InputError):
                (key,) = content_keys([Conversation.parse(row.conversation, target=target).key()]).tolist()
                earlier = seen.add(key, number, row.label)
                if earlier is not None:
                    raise ContradictoryLabelsError(
                        f"row {number}: the same prompt as row {earlier}, with the other label; remove one of the two",
                        (earlier, number),
                    )
        yield row


class _Column:
    """One guard's verdicts, 9 bytes each."""

    def __init__(self) -> None:
        self.scores, self.flagged = array("d"), array("b")

    def add(self, verdict: Verdict) -> None:
        self.scores.append(float("nan") if verdict.score is None else verdict.score)
        self.flagged.append(verdict.flagged)

    def side(self, guard: Guard, unsafe: npt.NDArray[np.bool_] | None) -> Side:
        scores, flagged = np.asarray(self.scores), np.asarray(self.flagged, bool)
        return Side(
            bundle_id=guard.bundle_id,
            threshold=guard.threshold,
            flagged=int(flagged.sum()),
            errors=int(np.isnan(scores).sum()),
            metrics=None if unsafe is None else compute(unsafe.astype(np.int64), scores, flagged),
        )

    def replicates(self, unsafe: npt.NDArray[np.bool_]) -> dict[Name, npt.NDArray[np.float64]]:
        scores = np.asarray(self.scores)
        return replicates(unsafe, np.where(np.isnan(scores), NOT_JUDGED, scores), np.asarray(self.flagged, bool))


def _changes(unsafe: npt.NDArray[np.bool_], first: Side, second: Side, columns: tuple[_Column, _Column]) -> dict[Name, Change]:
    assert first.metrics is not None
    assert second.metrics is not None
    drawn = [column.replicates(unsafe) for column in columns] if unsafe.any() and not unsafe.all() else None
    changes: dict[Name, Change] = {}
    for name in NAMES:
        before, after = first.metrics.figure(name), second.metrics.figure(name)
        change = None if before is None or after is None else after - before
        ends = None if drawn is None or change is None else percentile(drawn[1][name] - drawn[0][name])
        low, high = (None, None) if ends is None else ends
        changes[name] = Change(before=before, after=after, change=change, low=low, high=high)
    return changes


def _direction(before: Verdict, after: Verdict) -> Direction | None:
    if before.flagged != after.flagged:
        return "newly_flagged" if after.flagged else "no_longer_flagged"
    return None if before.action is after.action else "other_action"


def _judgement(verdict: Verdict) -> Judgement:
    return Judgement(
        flagged=verdict.flagged,
        action=verdict.action,
        score=verdict.score,
        error=verdict.error,
        rule=verdict.rule,
        flagged_by=verdict.flagged_by,
    )
