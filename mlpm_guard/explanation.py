"""What `Guard.explain` returns: every piece of evidence behind a verdict, as data. It never holds the text.

Imports verdicts and pydantic only.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from mlpm_guard.verdict import LayerEvidence, Probability, Verdict, WindowEvidence


class WindowExplanation(BaseModel):
    """What one judged piece of a conversation says.

    Attributes:
        where: which piece.
        score: probability that it is unsafe, in [0, 1].
        log_odds: of the score, in nats: `intercept` plus every layer's contribution, exactly as in `Verdict`.
        layers: evidence per used layer.
        intercept: log-odds that no layer explains, in nats, `margin` deducted.
        margin: log-odds that were deducted because the piece is a fragment or a window of a longer text, in nats.
        novelty: see `Verdict.novelty`; None when not measured.
        categories: probability of every category, from this piece alone.
        decides: whether this piece's score is the verdict's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: WindowEvidence
    score: float = Field(ge=0.0, le=1.0)
    log_odds: FiniteFloat
    layers: tuple[LayerEvidence, ...]
    intercept: FiniteFloat
    margin: FiniteFloat
    novelty: float | None = Field(default=None, ge=0.0, le=1.0)
    categories: dict[str, Probability] = Field(default_factory=dict)
    decides: bool


class LayerDistance(BaseModel):
    """A distance at one layer.

    Attributes:
        layer: Hugging Face's `hidden_states` index.
        distance: squared Mahalanobis distance. It has no unit; about the encoder's `dim` for a text like those of training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    distance: FiniteFloat = Field(ge=0.0)


class PrototypeDistance(BaseModel):
    """How far the deciding piece is from one class of training prompts.

    Attributes:
        name: "safe" or "unsafe", or a category.
        distance: squared Mahalanobis distance, the sum over the used layers. It has no unit.
        layers: the distance at every used layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    distance: FiniteFloat = Field(ge=0.0)
    layers: tuple[LayerDistance, ...]


class CategoryContribution(BaseModel):
    """What one layer adds to a category's log-odds.

    Attributes:
        layer: Hugging Face's `hidden_states` index.
        contribution: in nats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    contribution: FiniteFloat


class CategoryEvidence(BaseModel):
    """What speaks for one category.

    Attributes:
        name: the category.
        probability: as in `Verdict.categories`.
        log_odds: of that probability, in nats: `intercept` plus every layer's contribution.
        layers: what every layer that the category reads adds.
        intercept: log-odds that no layer explains, in nats, less a margin where the piece is a part of a longer text.
        threshold: probability from which the category flags by itself; None where it does not.
        window: the piece that says so, where it is not the deciding one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    probability: float = Field(ge=0.0, le=1.0)
    log_odds: FiniteFloat
    layers: tuple[CategoryContribution, ...]
    intercept: FiniteFloat
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    window: WindowEvidence | None = None


class Explanation(BaseModel):
    """Everything behind a verdict. JSON-round-trippable, without text.

    Attributes:
        verdict: what `Guard.check` gives.
        windows: every piece that was judged, in order. Empty where a rule decided, and where nothing could be judged.
        prototypes: distances of the deciding piece to every class, the nearest first. Empty where they are not measured.
        categories: evidence on every category, the likeliest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    windows: tuple[WindowExplanation, ...] = ()
    prototypes: tuple[PrototypeDistance, ...] = ()
    categories: tuple[CategoryEvidence, ...] = ()
