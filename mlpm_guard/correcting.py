"""Correcting a guard: it learns texts under their right label, and forgets what it had learned of them under the wrong one."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.errors import ConfigurationError, DataError, UnknownPromptError
from mlpm_guard.verdict import RuleMatch, Verdict

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard
    from mlpm_guard.training import Label


class Correction(BaseModel):
    """What a correction did to one text. Holds no text.

    Attributes:
        label: what the text was learned as: 0 safe, 1 unsafe.
        forgotten: how often it had been learned under the other label; none of it is left.
        before: score of the guard that was corrected; None where it could not judge the text.
        after: score of the corrected guard.
        flagged_before: whether the one flags it.
        flagged_after: whether the other flags it.
        rule: the guard's own rule that decides the text whatever is learned, or None.
        flagged_by: categories that flag the text by a threshold of their own, whatever its score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: int
    forgotten: int = Field(ge=0)
    before: float | None
    after: float | None
    flagged_before: bool
    flagged_after: bool
    rule: RuleMatch | None
    flagged_by: tuple[str, ...]

    @property
    def settled(self) -> bool:
        """Whether the corrected guard judges the text as it is labelled."""
        return self.flagged_after == (self.label == 1)


def corrected(
    guard: Guard,
    prompts: Iterable[ConversationLike],
    labels: Iterable[Label],
    categories: Iterable[str | None] | None = None,
    *,
    repeat: int = 1,
) -> tuple[Guard, list[Correction]]:
    """A corrected copy of a guard, and what the corrections did to their texts.

    Only the prototypes move: layers stay put together as they are, so that little else changes. A guard that was learned from
    many prompts moves little for one: a correction need not flip the verdict it is meant for.

    Args:
        guard: stays what it is. The copy shares its encoder.
        prompts: texts or conversations that are judged wrongly, or would be.
        labels: their right labels.
        categories: as many categories, or None; see `Guard.partial_fit`.
        repeat: how often each is learned.

    Raises:
        ConfigurationError: `repeat` is not a positive whole number.
        ContradictoryLabelsError: a prompt is there with both labels, or in two categories.
        CategoryError: a category is one that was added to the guard from examples.
        DataError: a row cannot be used, there are none, or forgetting would leave too few prompts of a class.
        BundleError: the guard was saved without statistics.
    """
    from mlpm_guard.training import labelled, with_categories

    if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
        raise ConfigurationError(f"repeat={repeat!r}: a whole number, at least 1")
    rows = list(with_categories(labelled(prompts, labels, guard.target), categories))
    if not rows:
        raise DataError("there is nothing to correct")
    conversations, marks = [conversation for conversation, *_ in rows], [label for _, _, label, _ in rows]
    names = None if categories is None else [name for *_, name in rows] * repeat
    before = guard.check_batch(conversations)
    changed = copy.copy(guard)
    forgotten = [_forget(changed, conversation, 1 - label) for conversation, label in zip(conversations, marks, strict=True)]
    changed.partial_fit(conversations * repeat, marks * repeat, names, keep_layers=True, progress=False)
    after = changed.check_batch(conversations)
    return changed, [
        _correction(label, times, one, other) for label, times, one, other in zip(marks, forgotten, before, after, strict=True)
    ]


def _forget(guard: Guard, conversation: Conversation, label: int) -> int:
    """Forget a prompt under a label as often as it was learned. Returns how often that was."""
    times = 0
    while True:
        try:
            guard.forget([conversation], [label], keep_layers=True)
        except UnknownPromptError:
            return times
        times += 1


def _correction(label: int, forgotten: int, before: Verdict, after: Verdict) -> Correction:
    return Correction(
        label=label,
        forgotten=forgotten,
        before=before.score,
        after=after.score,
        flagged_before=before.flagged,
        flagged_after=after.flagged,
        rule=after.rule,
        flagged_by=after.flagged_by,
    )
