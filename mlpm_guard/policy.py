"""From evidence to a verdict: thresholds, actions, and what happens when there is no evidence. Pure data and arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mlpm_guard.category_policy import CategoryPolicy, categorise
from mlpm_guard.conversation import Conversation
from mlpm_guard.errors import EncoderError, InputError, MlpmGuardError, NonFiniteError
from mlpm_guard.judging import Evidence
from mlpm_guard.prototypes.categories import Categories
from mlpm_guard.prototypes.novelty import Novelty
from mlpm_guard.prototypes.scorer import LayerScorer, certainty, sigmoid
from mlpm_guard.review import Review
from mlpm_guard.rules import Rules
from mlpm_guard.verdict import Action, LayerEvidence, Mode, OnReview, Target, Verdict, WindowEvidence

OnError: TypeAlias = Literal["block", "allow", "raise"]

DEFAULT_REFUSAL = "I can't help with that."
"""What a gate says in place of a blocked prompt's answer, or of a blocked answer."""

_SEVERITY = (Action.ALLOW, Action.REVIEW, Action.BLOCK)
_log = logging.getLogger("mlpm_guard")
_log.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Policy:
    """Everything that turns evidence into a verdict, as it was when the call began.

    Attributes:
        scorer: what scored.
        novelty: what measured novelty, or None.
        layers: `hidden_states` indices of its layers.
        threshold: probability from which a verdict is flagged.
        target: which turn was judged.
        mode: "enforce" or "monitor".
        on_error: "block", "allow" or "raise".
        bundle_id: which saved guard judged.
        rules: texts that are decided without the scorer, or None.
        review: which verdicts are reviewed although they are not flagged, or None for none.
        categories: what told how likely a text belongs to each category.
        category_policy: what is done about them, by name.
        on_review: "block" where the gate that asks has two ways only and turns a review into a block.
    """

    scorer: LayerScorer
    layers: tuple[int, ...]
    threshold: float
    target: Target
    mode: Mode
    on_error: OnError
    bundle_id: str | None
    rules: Rules | None = None
    review: Review | None = None
    novelty: Novelty | None = None
    categories: Categories = field(default_factory=Categories)
    category_policy: Mapping[str, CategoryPolicy] = field(default_factory=dict)
    on_review: OnReview = "pass"

    def judge(
        self,
        conversations: Sequence[Conversation],
        states: npt.NDArray[np.floating],
        view: Literal["prefill", "decode"],
    ) -> list[Verdict | MlpmGuardError]:
        """Verdicts on states that were read elsewhere, shape (n, used layers, dim); one state a conversation."""
        results = [self.ruled(conversation) for conversation in conversations]
        left = [index for index, result in enumerate(results) if result is None]
        if left:
            asked = [conversations[index] for index in left]
            for index, conversation, evidence in zip(left, asked, self.read(asked, states[left], view), strict=True):
                results[index] = self.settle(conversation, evidence)
        return [result for result in results if result is not None]

    def read(
        self,
        conversations: Sequence[Conversation],
        states: npt.NDArray[np.floating],
        view: Literal["prefill", "decode"],
    ) -> Sequence[Evidence | MlpmGuardError]:
        """Evidence of states that were read elsewhere, shape (n, used layers, dim)."""
        where = WindowEvidence(view=view, form="raw", kind="whole", index=0, count=1)
        try:
            layer_log_odds = self.scorer.log_odds(states)
            scores = self.scorer.aggregate(layer_log_odds)
            distances, novelty = self._measured(states)
            categories = self.categories.contributions(states, self.scorer.positions)
        except Exception as error:  # noqa: BLE001  (fails closed, whatever went wrong)
            failure = EncoderError(f"scoring failed ({type(error).__name__})")
            return [failure] * len(conversations)
        return [
            Evidence(
                float(score), row, 0.0, where, 1, distance, percentile, of_row, of_row.sum(axis=1) + self.categories.biases
            )
            if np.isfinite(row).all() and np.isfinite(of_row).all()
            else NonFiniteError("the model's states give a score that is not a number")
            for score, row, distance, percentile, of_row in zip(
                scores, layer_log_odds, distances, novelty, categories, strict=True
            )
        ]

    def _measured(
        self, states: npt.NDArray[np.floating]
    ) -> tuple[Sequence[npt.NDArray[np.float64] | None], Sequence[float | None]]:
        if self.novelty is None:
            return [None] * len(states), [None] * len(states)
        distances = self.novelty.distances(states)
        return list(distances), self.novelty.percentile(distances).tolist()

    def ruled(self, conversation: Conversation) -> Verdict | MlpmGuardError | None:
        """The verdict where a rule decides; None where the scorer is to be asked."""
        if self.rules is None:
            return None
        try:
            match = self.rules.match(conversation, self.target)
        except InputError:
            return None  # there is no turn to judge, which judging finds out too
        except Exception as error:  # noqa: BLE001  (fails closed, whatever an expression does)
            return self.failed(EncoderError(f"the rules failed ({type(error).__name__})"), conversation.not_judged)
        if match is None:
            return None
        blocks = match.kind == "block"
        return Verdict(
            flagged=blocks,
            score=float(blocks),
            threshold=self.threshold,
            action=Action.BLOCK if blocks and self.mode == "enforce" else Action.ALLOW,
            not_judged=conversation.not_judged,
            rule=match,
            target=self.target,
            mode=self.mode,
            bundle_id=self.bundle_id,
        )

    def settle(self, conversation: Conversation, evidence: Evidence | MlpmGuardError) -> Verdict | MlpmGuardError:
        """The verdict on a conversation; with `on_error="raise"` the error, for the caller to raise."""
        if isinstance(evidence, MlpmGuardError):
            return self.failed(evidence, conversation.not_judged)
        score = probability(evidence)
        unsafe = score >= self.threshold
        probabilities = self.probabilities(evidence)
        found = categorise(self.category_policy, probabilities, unsafe=unsafe)
        flagged = unsafe or bool(found.flagged_by)
        return Verdict(
            flagged=flagged,
            score=score,
            threshold=self.threshold,
            action=self._action(found.action if flagged else None, score, evidence.novelty),
            category=found.category,
            categories=probabilities,
            flagged_by=found.flagged_by,
            layers=self.layer_evidence(evidence),
            intercept=self.scorer.intercept - evidence.margin,
            novelty=evidence.novelty,
            window=evidence.where,
            windows=evidence.windows,
            not_judged=conversation.not_judged,
            target=self.target,
            mode=self.mode,
            bundle_id=self.bundle_id,
        )

    def resettled(self, verdict: Verdict) -> Verdict:
        """What this policy makes of a verdict that one of another threshold or mode gave on the same evidence.

        What could not be judged stays so, what a rule decided stays decided, and categories keep their own thresholds.
        """
        update: dict[str, object] = {"threshold": self.threshold, "mode": self.mode}
        if verdict.score is None:
            allowed = self.on_error == "allow" or self.mode == "monitor"
            update["action"] = Action.ALLOW if allowed else Action.BLOCK
        elif verdict.rule is not None:
            update["action"] = Action.BLOCK if verdict.flagged and self.mode == "enforce" else Action.ALLOW
        else:
            found = categorise(self.category_policy, verdict.categories, unsafe=verdict.score >= self.threshold)
            flagged = verdict.score >= self.threshold or bool(found.flagged_by)
            action = self._action(found.action if flagged else None, verdict.score, verdict.novelty)
            update |= {"flagged": flagged, "category": found.category, "flagged_by": found.flagged_by, "action": action}
        return verdict.model_copy(update=update)

    def layer_evidence(self, evidence: Evidence) -> tuple[LayerEvidence, ...]:
        """What every layer adds to the evidence's log-odds."""
        columns = (
            self.layers,
            evidence.layer_log_odds.tolist(),
            sigmoid(evidence.layer_log_odds).tolist(),
            self.scorer.layer_weights.tolist(),
        )
        # Finite floats all of them, as the judge has seen to: validating six objects again would cost more than making them.
        return tuple(
            LayerEvidence.model_construct(layer=layer, log_odds=g, probability=p, weight=w, contribution=w * g + 0.0)
            for layer, g, p, w in zip(*columns, strict=True)
        )

    def probabilities(self, evidence: Evidence) -> dict[str, float]:
        """Probability of every category, as in `Verdict.categories`."""
        if not len(self.categories):
            return {}
        found = evidence.categories.sum(axis=1) + self.categories.biases
        for index, name in enumerate(self.categories):
            if name in self.category_policy and self.category_policy[name].threshold is not None:
                found[index] = evidence.highest[index]
        return self.categories.probabilities(found)

    def _action(self, wanted: Action | None, score: float, novelty: float | None) -> Action:
        """What a gate does about a verdict that asks for `wanted`, or is not flagged."""
        if self.mode == "monitor":
            return Action.ALLOW
        if wanted is None:
            wanted = Action.REVIEW if self.review is not None and self.review.wants(score, novelty) else Action.ALLOW
        return Action.BLOCK if wanted is Action.REVIEW and self.on_review == "block" else wanted

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


def probability(evidence: Evidence) -> float:
    """The score that evidence gives."""
    return float(certainty(np.array(evidence.log_odds)))


def resettled(verdict: Verdict, threshold: float, mode: Mode, on_error: OnError) -> Verdict:
    """As `Policy.resettled`, for a verdict of which only itself is known.

    Why it was reviewed, or spared, is not: one that is not flagged stays reviewed where it was, and one that is flagged keeps
    its action only where it was unsafe before, in enforce mode.
    """
    enforced = mode == "enforce"
    if verdict.score is None:
        flagged, stops = True, on_error != "allow"
        action = Action.BLOCK if stops else Action.ALLOW
    elif verdict.rule is not None:
        flagged = verdict.flagged
        action = Action.BLOCK if flagged else Action.ALLOW
    else:
        unsafe, before = verdict.score >= threshold, verdict.score >= verdict.threshold
        flagged = unsafe or bool(verdict.flagged_by)
        if not flagged:
            action = Action.REVIEW if verdict.action is Action.REVIEW else Action.ALLOW
        else:
            action = verdict.action if unsafe == before and verdict.mode == "enforce" else Action.BLOCK
    named = flagged and verdict.score is not None and verdict.rule is None
    return verdict.model_copy(
        update={
            "threshold": threshold,
            "mode": mode,
            "flagged": flagged,
            "category": verdict.category if named else None,
            "action": action if enforced else Action.ALLOW,
        }
    )


def worse(one: Verdict, other: Verdict) -> Verdict:
    """The verdict that decides: a blocking one, then one to review, then one without a score, then the higher score."""

    def rank(verdict: Verdict) -> tuple[int, bool, float]:
        return _SEVERITY.index(verdict.action), verdict.error is not None, verdict.score or 0.0

    return other if rank(other) > rank(one) else one
