"""Watching an answer by the states that the answering model computes while it writes: no extra forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mlpm_guard.conversation import Conversation
from mlpm_guard.encoders.blocks import GenerationCapture, stacked
from mlpm_guard.errors import MlpmGuardError, NonFiniteError
from mlpm_guard.judging import Evidence
from mlpm_guard.policy import Policy, worse
from mlpm_guard.prototypes.scorer import Array, sigmoid
from mlpm_guard.verdict import Verdict, WindowEvidence

_LOUDEST = 20.0
"""Log-odds in nats that one token adds to a layer's mean at most, so that no odd one outvotes the others."""


class DecodeMonitor:
    """Judges answers token by token, by a response guard that was fitted on the answering model.

    The state of a generated token, when the model reads it back to choose the next one, is the state of the conversation with
    the answer up to there. Every `every` tokens the mean log-odds of the last `span` tokens are judged; at the end of an answer
    also its last token alone, which is what the response guard was fitted on. Used for one call of `generate`.

    Args:
        capture: reads the states.
        policy: of the response guard.
        conversations: what is answered, one for each prompt.
        every: tokens between judgements.
        span: tokens whose mean log-odds are judged.
        ends: tokens that end or pad an answer.
        answered: a conversation with the answer that these tokens are, which rules read.
        released: called with the number of tokens of the first row that may leave.

    Attributes:
        stopped: which rows of `generate` are blocked.
        verdicts: the worst verdict on every row so far, or None.
    """

    def __init__(
        self,
        capture: GenerationCapture,
        policy: Policy,
        conversations: Sequence[Conversation],
        *,
        every: int,
        span: int,
        ends: frozenset[int],
        answered: Callable[[Conversation, Sequence[int]], Conversation],
        released: Callable[[int], None] | None = None,
    ) -> None:
        self.stopped: list[bool] = []
        self.verdicts: list[Verdict | None] = []
        self._capture = capture
        self._policy = policy
        self._conversations = list(conversations)
        self._every = every
        self._span = span
        self._ends = ends
        self._answered = answered
        self._released = released
        self._states: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._finished: list[bool] = []
        self._log_odds: list[list[Array]] = []
        self._categories: list[list[Array]] = []
        self._written: list[list[int]] = []
        self._judgements: list[int] = []

    def start(self, factor: int) -> None:
        """Called once the prompts are judged, with the rows of `generate` for each prompt."""
        self._conversations = [each for each in self._conversations for _ in range(factor)]
        rows = len(self._conversations)
        self.stopped, self._finished = [False] * rows, [False] * rows
        self.verdicts, self._judgements = [None] * rows, [0] * rows
        self._log_odds, self._written = [[] for _ in range(rows)], [[] for _ in range(rows)]
        self._categories = [[] for _ in range(rows)]

    def step(self, input_ids: Tensor) -> None:
        """Called behind every forward pass of the answer, with all tokens so far, shape (rows, tokens).

        Raises:
            UnsupportedArchitectureError: the pass left no states (a compiled decode).
            MlpmGuardError: an answer could not be judged, and the guard has `on_error="raise"`.
        """
        newest, self._capture.newest = self._capture.newest, {}
        self._states.append(stacked(newest, self._policy.layers))
        self._tokens.append(input_ids[:, -1])
        if len(self._states) >= self._every:
            self._judge()

    def close(self) -> None:
        """Judge what is left at the end of `generate`."""
        if self._states:
            self._judge()
        for row, log_odds in enumerate(self._log_odds):
            if log_odds and not self.stopped[row]:
                self._settle(row, 1)

    def judged(self, row: int) -> int:
        """Tokens of a row's answer whose states were read."""
        return len(self._log_odds[row])

    def token_scores(self, row: int) -> tuple[float, ...]:
        """Probability of an unsafe answer after each token that was read."""
        if not self._log_odds[row]:
            return ()
        return tuple(sigmoid(self._policy.scorer.aggregate(np.stack(self._log_odds[row]))).tolist())

    def _judge(self) -> None:
        states = torch.stack(self._states, dim=1).cpu().numpy()
        tokens = torch.stack(self._tokens, dim=1).tolist()
        self._states, self._tokens = [], []
        rows, steps = states.shape[:2]
        flat = states.reshape(rows * steps, *states.shape[2:])
        log_odds = self._policy.scorer.log_odds(flat).reshape(rows, steps, -1)
        categories = self._policy.categories.contributions(flat, self._policy.scorer.positions)
        categories = categories.reshape(rows, steps, *categories.shape[1:])
        for row in range(rows):
            for step in range(steps):
                # Behind its end, a row goes on as padding until the others are done.
                self._finished[row] = self._finished[row] or tokens[row][step] in self._ends
                if self._finished[row]:
                    break
                self._log_odds[row].append(log_odds[row, step])
                self._categories[row].append(categories[row, step])
                self._written[row].append(tokens[row][step])
            if self._log_odds[row] and not self.stopped[row]:
                self._settle(row, self._span)
        if self._released is not None and not self.stopped[0]:
            self._released(self.judged(0))

    def _settle(self, row: int, span: int) -> None:
        self._judgements[row] += 1
        conversation = self._conversations[row]
        verdict = None
        if self._policy.rules is not None:
            verdict = self._policy.ruled(self._answered(conversation, self._written[row]))
        if verdict is None:
            verdict = self._policy.settle(conversation, self._evidence(row, span))
        if isinstance(verdict, MlpmGuardError):
            raise verdict
        before = self.verdicts[row]
        self.verdicts[row] = verdict if before is None else worse(before, verdict)
        self.stopped[row] = verdict.blocked

    def _evidence(self, row: int, tokens: int) -> Evidence | MlpmGuardError:
        """Evidence whose log-odds, of layers, score and categories, are the mean over the last tokens."""
        span = np.stack(self._log_odds[row][-tokens:])
        categories = np.mean(self._categories[row][-tokens:], axis=0)
        if not (np.isfinite(span).all() and np.isfinite(categories).all()):
            return NonFiniteError("the model's states give a score that is not a number")
        layer_log_odds = np.clip(span, -_LOUDEST, _LOUDEST).mean(axis=0)
        score = float(self._policy.scorer.aggregate(layer_log_odds))
        count = self.judged(row)
        where = WindowEvidence(view="decode", form="raw", kind="window", index=count - 1, count=count)
        highest = categories.sum(axis=1) + self._policy.categories.biases
        return Evidence(score, layer_log_odds, 0.0, where, self._judgements[row], categories=categories, highest=highest)
