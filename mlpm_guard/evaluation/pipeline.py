"""What a chain of an input gate and an output moderator lets through, and what it costs, on labelled prompts with answers.

Counts and nothing else: memory does not grow with the rows, and no text is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlpm_guard.datafiles import Pair
from mlpm_guard.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard

Chain = Literal["neither", "input_gate", "output_moderation", "both"]

CHAINS: tuple[Chain, ...] = ("neither", "input_gate", "output_moderation", "both")
"""What stands between a model and its user: nothing, a gate before the model, a moderator behind it, or both."""

_BATCH = 256


class Outcome(BaseModel):
    """What one chain does to a set of rows.

    Attributes:
        harmful_reaching: harmful answers that reach the user.
        harmful_share: those, as a share of the harmful answers; None where there are none.
        harmless_lost: harmless answers that do not reach the user.
        harmless_share: those, as a share of the harmless answers; None where there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    harmful_reaching: int = Field(ge=0)
    harmful_share: float | None
    harmless_lost: int = Field(ge=0)
    harmless_share: float | None


class Flow(BaseModel):
    """What every chain does to a set of rows.

    Attributes:
        n: rows.
        harmful: rows with a harmful answer.
        harmless: rows with a harmless one.
        errors: rows whose prompt or answer could not be judged; what happened to them follows the guard's `on_error`.
        chains: the outcome of every chain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(ge=0)
    harmful: int = Field(ge=0)
    harmless: int = Field(ge=0)
    errors: int = Field(ge=0)
    chains: dict[Chain, Outcome]


class PipelineEvaluation(BaseModel):
    """What reaches the user with an input gate, an output moderator, both, and neither.

    Attributes:
        guard_id: the bundle that judged the prompts; None for a guard that was not saved.
        guard_threshold: probability from which a prompt was flagged.
        moderator_id: the bundle that judged the answers.
        moderator_threshold: probability from which an answer was flagged.
        overall: all rows.
        sources: the rows of every source, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    guard_id: str | None
    guard_threshold: float
    moderator_id: str | None
    moderator_threshold: float
    overall: Flow
    sources: dict[str, Flow]


class _Tally:
    """How often each combination of label, prompt blocked and answer blocked was seen."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[int, bool, bool]] = Counter()
        self.errors = 0

    def add(self, other: _Tally) -> None:
        self.seen.update(other.seen)
        self.errors += other.errors

    def flow(self) -> Flow:
        harmful, harmless = (sum(count for (label, _, _), count in self.seen.items() if label == of) for of in (1, 0))
        return Flow(
            n=harmful + harmless,
            harmful=harmful,
            harmless=harmless,
            errors=self.errors,
            chains={chain: self._outcome(chain, harmful, harmless) for chain in CHAINS},
        )

    def _outcome(self, chain: Chain, harmful: int, harmless: int) -> Outcome:
        gated, moderated = chain in ("input_gate", "both"), chain in ("output_moderation", "both")
        stopped = Counter[int]()
        for (label, prompt_blocked, answer_blocked), count in self.seen.items():
            if (gated and prompt_blocked) or (moderated and answer_blocked):
                stopped[label] += count
        reaching = harmful - stopped[1]
        return Outcome(
            harmful_reaching=reaching,
            harmful_share=reaching / harmful if harmful else None,
            harmless_lost=stopped[0],
            harmless_share=stopped[0] / harmless if harmless else None,
        )


def evaluate_pipeline(
    guard: Guard,
    moderator: Guard,
    pairs: Iterable[Pair],
    *,
    batch_size: int = _BATCH,
    progress: Callable[[int], None] | None = None,
) -> PipelineEvaluation:
    """Judge prompts and their answers, and count what reaches the user, overall and for each source.

    A gate stops what its verdict's action blocks and passes everything else. The answers are those in the data, whether or not
    their prompts are blocked; the moderator sees each together with its prompt.

    Args:
        guard: judges the prompts; a guard with `target="prompt"`.
        moderator: judges the answers; a guard with `target="response"`.
        pairs: labelled prompts with answers, label 1 for a harmful answer; any iterable, read once.
        batch_size: rows that are judged together.
        progress: called after every batch with its number of rows.

    Raises:
        DataError: a row has no label, or there are no rows.
        ConfigurationError: a guard has the other target, or `batch_size` is not a positive whole number.
        MlpmGuardError: a guard itself cannot be used; see `Guard.check_batch`.
    """
    for what, each, target in (("guard", guard, "prompt"), ("moderator", moderator, "response")):
        if each.target != target:
            raise ConfigurationError(f'the {what} judges the {each.target}; it has to be fitted with target="{target}"')
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size!r}: a whole number, at least 1")
    tallies: dict[str, _Tally] = {}
    rows = iter(pairs)
    while batch := list(islice(rows, batch_size)):
        for pair in batch:
            if pair.label is None:
                raise DataError(f"line {pair.line} of {pair.source!r} has no label; an evaluation needs one on every row")
        prompts = guard.check_batch([pair.prompt for pair in batch])
        answers = moderator.check_batch([_conversation(pair) for pair in batch])
        for pair, prompt, answer in zip(batch, prompts, answers, strict=True):
            assert pair.label is not None
            tally = tallies.setdefault(pair.source, _Tally())
            tally.seen[pair.label, prompt.blocked, answer.blocked] += 1
            tally.errors += prompt.error is not None or answer.error is not None
        if progress is not None:
            progress(len(batch))
    if not tallies:
        raise DataError("there are no rows to evaluate on")
    total = _Tally()
    for tally in tallies.values():
        total.add(tally)
    return PipelineEvaluation(
        guard_id=guard.bundle_id,
        guard_threshold=guard.threshold,
        moderator_id=moderator.bundle_id,
        moderator_threshold=moderator.threshold,
        overall=total.flow(),
        sources={source: tally.flow() for source, tally in sorted(tallies.items())},
    )


def _conversation(pair: Pair) -> list[dict[str, Any]]:
    before = [{"role": "user", "content": pair.prompt}] if isinstance(pair.prompt, str) else pair.prompt
    return [*before, {"role": "assistant", "content": pair.response}]
