"""From evidence to a verdict: thresholds, actions, and what happens when there is no evidence. Pure data and arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mlpm_guard.conversation import Conversation
from mlpm_guard.errors import EncoderError, MlpmGuardError, NonFiniteError
from mlpm_guard.judging import Evidence
from mlpm_guard.prototypes.scorer import LayerScorer, sigmoid
from mlpm_guard.verdict import Action, LayerEvidence, Mode, Target, Verdict, WindowEvidence

OnError: TypeAlias = Literal["block", "allow", "raise"]

DEFAULT_REFUSAL = "I can't help with that."
"""What a gate says in place of a blocked prompt's answer, or of a blocked answer."""

_log = logging.getLogger("mlpm_guard")
_log.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Policy:
    """Everything that turns evidence into a verdict, as it was when the call began.

    Attributes:
        scorer: what scored.
        layers: `hidden_states` indices of its layers.
        threshold: probability from which a verdict is flagged.
        target: which turn was judged.
        mode: "enforce" or "monitor".
        on_error: "block", "allow" or "raise".
        bundle_id: which saved guard judged.
    """

    scorer: LayerScorer
    layers: tuple[int, ...]
    threshold: float
    target: Target
    mode: Mode
    on_error: OnError
    bundle_id: str | None

    def judge(
        self,
        conversations: Sequence[Conversation],
        states: npt.NDArray[np.floating],
        view: Literal["prefill", "decode"],
    ) -> list[Verdict | MlpmGuardError]:
        """Verdicts on states that were read elsewhere, shape (n, used layers, dim); one state a conversation."""
        where = WindowEvidence(view=view, form="raw", kind="whole", index=0, count=1)
        try:
            layer_log_odds = self.scorer.log_odds(states)
            scores = self.scorer.aggregate(layer_log_odds)
        except Exception as error:  # noqa: BLE001  (fails closed, whatever went wrong)
            failure = EncoderError(f"scoring failed ({type(error).__name__})")
            return [self.failed(failure, conversation.not_judged) for conversation in conversations]
        return [
            self.settle(
                conversation,
                Evidence(float(score), row, 0.0, where, 1)
                if np.isfinite(row).all()
                else NonFiniteError("the model's states give a score that is not a number"),
            )
            for conversation, score, row in zip(conversations, scores, layer_log_odds, strict=True)
        ]

    def settle(self, conversation: Conversation, evidence: Evidence | MlpmGuardError) -> Verdict | MlpmGuardError:
        """The verdict on a conversation; with `on_error="raise"` the error, for the caller to raise."""
        if isinstance(evidence, MlpmGuardError):
            return self.failed(evidence, conversation.not_judged)
        score = float(sigmoid(np.array(evidence.log_odds)))
        flagged = score >= self.threshold
        probabilities = sigmoid(evidence.layer_log_odds)
        columns = (
            self.layers,
            evidence.layer_log_odds.tolist(),
            probabilities.tolist(),
            self.scorer.layer_weights.tolist(),
        )
        return Verdict(
            flagged=flagged,
            score=score,
            threshold=self.threshold,
            action=Action.BLOCK if flagged and self.mode == "enforce" else Action.ALLOW,
            layers=tuple(
                LayerEvidence(layer=layer, log_odds=g, probability=p, weight=w, contribution=w * p)
                for layer, g, p, w in zip(*columns, strict=True)
            ),
            intercept=self.scorer.intercept - evidence.margin,
            window=evidence.where,
            windows=evidence.windows,
            not_judged=conversation.not_judged,
            target=self.target,
            mode=self.mode,
            bundle_id=self.bundle_id,
        )

    def failed(self, error: MlpmGuardError, not_judged: tuple[str, ...] = ()) -> Verdict | MlpmGuardError:
        """The verdict on a conversation that could not be judged; with `on_error="raise"` the error itself."""
        if self.on_error == "raise":
            return error
        kind = getattr(error, "kind", EncoderError.kind)
        _log.warning("not judged: %s", kind)
        allowed = self.on_error == "allow" or self.mode == "monitor"
        return Verdict(
            flagged=True,
            score=None,
            threshold=self.threshold,
            action=Action.ALLOW if allowed else Action.BLOCK,
            not_judged=not_judged,
            error=kind,
            target=self.target,
            mode=self.mode,
            bundle_id=self.bundle_id,
        )


def worse(one: Verdict, other: Verdict) -> Verdict:
    """The verdict that decides: a blocking one, then one without a score, then the higher score."""

    def rank(verdict: Verdict) -> tuple[bool, bool, float]:
        return verdict.blocked, verdict.error is not None, verdict.score or 0.0

    return other if rank(other) > rank(one) else one
