"""The gate inside `generate`: judges the prompt between its prefill and the first token, and retires rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from mlpm_guard.conversation import Conversation
from mlpm_guard.encoders.blocks import GenerationCapture, stacked
from mlpm_guard.errors import EncoderError, MlpmGuardError
from mlpm_guard.policy import Policy, worse
from mlpm_guard.verdict import Verdict

if TYPE_CHECKING:
    from mlpm_guard.decoding import DecodeMonitor


class NothingToAnswerError(Exception):
    """Every prompt of a call is blocked: ends `generate` before a token is chosen. Never leaves this package."""


class PrefillGate(LogitsProcessor):
    """Judges prompts by the states of the prefill, the first time logits are about to be used.

    Args:
        capture: reads the prefill.
        policy: turns states into verdicts.
        conversations: the prompts, one for each row before beams and return sequences multiply them.
        known: verdicts of other views, one for each prompt, or None.
        monitor: reads the answer afterwards, or None.
        looks_ahead: whether processors may be called before the model has run.
        decided: called with the verdicts, before anything follows from them.

    Attributes:
        verdicts: one for each prompt; None until the prefill has been judged.
        factor: rows of `generate` for each prompt.
    """

    def __init__(
        self,
        capture: GenerationCapture,
        policy: Policy,
        conversations: Sequence[Conversation],
        known: Sequence[Verdict | None],
        monitor: DecodeMonitor | None,
        *,
        looks_ahead: bool = False,
        decided: Callable[[Sequence[Verdict]], None] | None = None,
    ) -> None:
        self.verdicts: list[Verdict] | None = None
        self.factor = 1
        self._capture = capture
        self._policy = policy
        self._conversations = conversations
        self._known = known
        self._monitor = monitor
        self._looks_ahead = looks_ahead
        self._decided = decided

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leaves the scores as they are.

        Raises:
            NothingToAnswerError: every prompt is blocked.
            MlpmGuardError: the states could not be read, or not judged and the guard has `on_error="raise"`.
        """
        if self.verdicts is None:
            # Prompt lookup filters its candidates by the processors before the model has run.
            if self._looks_ahead and not self._capture.prompt:
                return scores
            self._decide(scores.shape[0])
        elif self._monitor is not None:
            self._monitor.step(input_ids)
        return scores

    def decided_verdicts(self) -> list[Verdict]:
        """The verdicts.

        Raises:
            EncoderError: tokens were chosen although the prompts were not judged.
        """
        if self.verdicts is None:
            raise EncoderError("this way of generating chose tokens without asking the gate; its answer was thrown away")
        return self.verdicts

    def retired(self) -> list[bool]:
        """Which rows of `generate` are not to be continued.

        Raises:
            EncoderError: tokens were chosen although the prompts were not judged.
        """
        rows = [verdict.blocked for verdict in self.decided_verdicts() for _ in range(self.factor)]
        if self._monitor is not None:
            rows = [blocked or stopped for blocked, stopped in zip(rows, self._monitor.stopped, strict=True)]
        return rows

    def _decide(self, rows: int) -> None:
        self.factor = rows // len(self._conversations)
        states = stacked(self._capture.prompt, self._policy.layers)[:: self.factor]
        self._capture.answering = True
        verdicts: list[Verdict] = []
        found = self._policy.judge(self._conversations, states.cpu().numpy(), "prefill")
        for verdict, known in zip(found, self._known, strict=True):
            if isinstance(verdict, MlpmGuardError):
                raise verdict
            verdicts.append(verdict if known is None else worse(verdict, known))
        self.verdicts = verdicts
        if self._decided is not None:
            self._decided(verdicts)
        if all(verdict.blocked for verdict in verdicts):
            raise NothingToAnswerError
        if self._monitor is not None:
            self._monitor.start(self.factor)


class BeginCall(LogitsProcessor):
    """Has answers begin with one of given token sequences. The prompt stays as it was judged.

    Args:
        beginnings: for each prompt the sequences to choose from; none leaves its answer free.
        length: tokens of the prompts, padding included.
    """

    def __init__(self, beginnings: Sequence[Sequence[Sequence[int]]], length: int) -> None:
        self._beginnings = beginnings
        self._length = length
        self._longest = max((len(each) for options in beginnings for each in options), default=0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with all but the next tokens of those sequences ruled out; past their end they are untouched."""
        if input_ids.shape[1] - self._length >= self._longest:
            return scores
        scores = scores.clone()
        factor = scores.shape[0] // len(self._beginnings)
        for row, written in enumerate(input_ids[:, self._length :].tolist()):
            options = self._beginnings[row // factor]
            open_ends = [each for each in options if len(each) > len(written) and list(each[: len(written)]) == written]
            if not open_ends or written in [list(each) for each in options]:
                continue
            allowed = sorted({each[len(written)] for each in open_ends})
            kept = scores[row, allowed]
            scores[row] = -torch.inf
            # What other processors ruled out altogether has to be chosen all the same.
            scores[row, allowed] = torch.zeros_like(kept) if bool(torch.isneginf(kept).all()) else kept
        return scores


class RetireRows(LogitsProcessor):
    """Leaves a retired row one token to choose, which ends it. Runs behind the caller's own processors.

    Args:
        gate: knows the rows.
        token: the token that ends a row.
    """

    def __init__(self, gate: PrefillGate, token: int) -> None:
        self._gate = gate
        self._token = token

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with all but that token ruled out in retired rows; all others are untouched."""
        retired = [] if self._gate.verdicts is None else self._gate.retired()
        if not any(retired):
            return scores
        rows = torch.tensor(retired, device=scores.device)
        scores = scores.masked_fill(rows[:, None], -torch.inf)
        scores[rows, self._token] = 0.0
        return scores


class StopRows(StoppingCriteria):
    """Ends retired rows where no end token does, and all rows once the caller has walked away.

    Args:
        gate: knows the rows.
        cancelled: set by a caller that no longer waits.
    """

    def __init__(self, gate: PrefillGate, cancelled: threading.Event) -> None:
        self._gate = gate
        self._cancelled = cancelled

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        """Which rows are done, shape (rows,)."""
        rows = input_ids.shape[0]
        retired = self._gate.retired()
        # Beam search asks about twice as many candidates as it has rows.
        done = retired if len(retired) == rows else [False] * rows
        return torch.tensor([self._cancelled.is_set() or each for each in done], device=input_ids.device)
