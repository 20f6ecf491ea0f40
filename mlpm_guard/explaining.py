"""From evidence to an explanation, beside the verdict that follows from the same evidence."""

from __future__ import annotations

from mlpm_guard.conversation import Conversation
from mlpm_guard.errors import MlpmGuardError
from mlpm_guard.explanation import (
    CategoryContribution,
    CategoryEvidence,
    Explanation,
    LayerDistance,
    PrototypeDistance,
    WindowExplanation,
)
from mlpm_guard.judging import Evidence, Examined, topic_margin
from mlpm_guard.policy import Policy, probability

_CLASSES = ("safe", "unsafe")


def explained(policy: Policy, conversation: Conversation, examined: Examined | MlpmGuardError) -> Explanation | MlpmGuardError:
    """The explanation of a conversation; with `on_error="raise"` the error, for the caller to raise."""
    if isinstance(examined, MlpmGuardError):
        failed = policy.failed(examined, conversation.not_judged)
        return failed if isinstance(failed, MlpmGuardError) else Explanation(verdict=failed)
    verdict = policy.settle(conversation, examined.deciding)
    if isinstance(verdict, MlpmGuardError):
        return verdict
    return Explanation(
        verdict=verdict,
        windows=tuple(_window(policy, each, decides=index == examined.decisive) for index, each in enumerate(examined.pieces)),
        prototypes=_prototypes(policy, examined.deciding),
        categories=_categories(policy, examined),
    )


def _window(policy: Policy, evidence: Evidence, *, decides: bool) -> WindowExplanation:
    return WindowExplanation(
        where=evidence.where,
        score=probability(evidence),
        log_odds=evidence.log_odds,
        layers=policy.layer_evidence(evidence),
        intercept=policy.scorer.intercept - evidence.margin,
        margin=evidence.margin,
        novelty=evidence.novelty,
        categories=_probabilities(policy, evidence),
        decides=decides,
    )


def _probabilities(policy: Policy, evidence: Evidence) -> dict[str, float]:
    if not len(policy.categories):
        return {}
    return policy.categories.probabilities(evidence.categories.sum(axis=1) + policy.categories.biases)


def _categories(policy: Policy, examined: Examined) -> tuple[CategoryEvidence, ...]:
    probabilities = policy.probabilities(examined.deciding)
    positions = policy.scorer.positions.tolist()
    read = {name: set(block.positions.tolist()) for block in policy.categories.blocks for name in block.names}
    found = []
    for index, name in enumerate(policy.categories):
        threshold = policy.category_policy[name].threshold if name in policy.category_policy else None
        piece, bias = examined.deciding, float(policy.categories.biases[index])
        if threshold is not None:
            piece = max(examined.pieces, key=lambda each: float(each.categories[index].sum()) - topic_margin(each.where))
            bias -= topic_margin(piece.where)
        row = piece.categories[index]
        found.append(
            CategoryEvidence(
                name=name,
                probability=probabilities[name],
                log_odds=float(row.sum()) + bias,
                layers=tuple(
                    CategoryContribution(layer=layer, contribution=value)
                    for layer, position, value in zip(policy.layers, positions, row.tolist(), strict=True)
                    if position in read[name]
                ),
                intercept=bias,
                threshold=threshold,
                window=None if piece is examined.deciding else piece.where,
            )
        )
    return tuple(sorted(found, key=lambda each: -each.log_odds))


def _prototypes(policy: Policy, evidence: Evidence) -> tuple[PrototypeDistance, ...]:
    if evidence.distances is None:
        return ()
    found = [
        PrototypeDistance(
            name=name,
            distance=float(of_class.sum()),
            layers=tuple(
                LayerDistance(layer=layer, distance=distance)
                for layer, distance in zip(policy.layers, of_class.tolist(), strict=True)
            ),
        )
        for name, of_class in zip(_CLASSES, evidence.distances, strict=True)
    ]
    return tuple(sorted(found, key=lambda each: each.distance))
