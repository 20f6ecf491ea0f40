"""The one verdict that every gate, wrapper and command returns. It is data: it never holds the text, nor a hash of it.

Imports pydantic only.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Target = Literal["prompt", "response"]
Mode = Literal["enforce", "monitor"]
Form = Literal["raw", "normalised", "respelled", "decoded", "payload"]
"""How a text was read: as it came; with look-alike, invisible and stacked characters undone; with leet undone and spaced
letters joined as well; with encoded passages replaced by what they say as well; or what those passages say, alone."""
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
OnReview = Literal["pass", "block"]
"""What a gate does with an action of "review"."""


class Action(StrEnum):
    """What a gate does. Every gate acts on this alone."""

    ALLOW = "allow"
    REVIEW = "review"
    BLOCK = "block"


class LayerEvidence(BaseModel):
    """What one layer adds to the score.

    Attributes:
        layer: Hugging Face's `hidden_states` index.
        log_odds: the layer's discriminant g_l, in nats; positive leans unsafe.
        probability: sigmoid of `log_odds`.
        weight: the layer's weight in the aggregation.
        contribution: `weight * log_odds`, in nats. The contributions of all layers plus `Verdict.intercept` are the
            log-odds of the score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    log_odds: FiniteFloat
    probability: float = Field(ge=0.0, le=1.0)
    weight: FiniteFloat
    contribution: FiniteFloat


class WindowEvidence(BaseModel):
    """Where in the conversation the score comes from.

    Attributes:
        view: "turn" (the judged turn alone), "context" (the turn together with what came before it), "prefill" (the
            conversation as the answering model read it), or "decode" (the answer as that model wrote it; `index` counts its
            tokens).
        form: "raw" text, or what a disguised text says: "normalised" (look-alike and invisible characters folded), "respelled"
            (also leet undone and spaced letters joined), "decoded" (also encoded passages such as base64 replaced by what they
            say), or "payload" (what the encoded passages say, alone).
        kind: "whole" text, an overlapping "window" of a longer one, or a "fragment" (a sentence, or part of a very long one).
        index: position of this piece within its view and form, from 0.
        count: pieces of that view and form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: Literal["turn", "context", "prefill", "decode"]
    form: Form
    kind: Literal["whole", "window", "fragment"]
    index: int = Field(ge=0)
    count: int = Field(ge=1)


class RuleMatch(BaseModel):
    """Which of the user's own rules decided.

    Attributes:
        kind: "allow" or "block", the list.
        entry: the entry's index in the list, from 0, or the name that the user gave it.
        form: "raw" text, or "normalised" (look-alike and invisible characters folded).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["allow", "block"]
    entry: int | str
    form: Literal["raw", "normalised"] = "raw"


class Verdict(BaseModel):
    """A judgement on one conversation.

    Frozen and JSON-round-trippable: `Verdict.model_validate_json(v.model_dump_json()) == v`.

    Attributes:
        flagged: the judgement itself. True also when nothing could be judged (`error`).
        score: calibrated probability that the text is unsafe, in [0, 1]; None when `error` is set. 1 or 0 where a rule decided.
        threshold: `flagged` is `score >= threshold`, unless a rule decided or `flagged_by` names a category.
        action: what a gate does with it. "allow" in monitor mode; after an error it follows the guard's `on_error`. "review"
            where the guard was told to have some verdicts reviewed that are not flagged, and where a category asks for it.
        category: likeliest category of a flagged verdict, or None when none is confident.
        categories: probability, in [0, 1], of every category the guard knows. Of one with a threshold of its own, the highest
            of all windows, less a margin for fragments; of the others, that of the worst window. Empty when `error` or
            `rule` is set.
        flagged_by: categories whose own threshold is reached, which flags a verdict whatever its score.
        layers: evidence per used layer, of the worst window.
        intercept: log-odds of the score that no layer explains, in nats; None when `error` or `rule` is set.
        novelty: how unlike the training prompts this one is, as a percentile in [0, 1]; None when not measured.
        window: where the worst window lies; None when `error` or `rule` is set.
        windows: how many windows were judged.
        not_judged: kinds of content parts that the guard cannot read ("image_url", "tool_calls", ...).
        error: None, or the kind of failure ("invalid_input", "empty_input", "too_long", "encoder_error", "non_finite",
            "timeout").
        rule: the user's own rule that decided before the model was asked, or None.
        target: "prompt" or "response".
        mode: "enforce" or "monitor".
        bundle_id: which saved guard judged; None for one that was not saved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flagged: bool
    score: float | None = Field(ge=0.0, le=1.0)
    threshold: float = Field(ge=0.0, le=1.0)
    action: Action
    category: str | None = None
    categories: dict[str, Probability] = Field(default_factory=dict)
    flagged_by: tuple[str, ...] = ()
    layers: tuple[LayerEvidence, ...] = ()
    intercept: FiniteFloat | None = None
    novelty: float | None = Field(default=None, ge=0.0, le=1.0)
    window: WindowEvidence | None = None
    windows: int = Field(default=0, ge=0)
    not_judged: tuple[str, ...] = ()
    error: str | None = None
    rule: RuleMatch | None = None
    target: Target = "prompt"
    mode: Mode = "enforce"
    bundle_id: str | None = None

    @model_validator(mode="after")
    def _score_or_error(self) -> Verdict:
        if (self.score is None) != (self.error is not None):
            raise ValueError("a verdict has either a score or an error")
        if self.error is not None and not self.flagged:
            raise ValueError("a verdict with an error is always flagged")
        if self.rule is not None and (self.error is not None or self.score != float(self.rule.kind == "block")):
            raise ValueError("a verdict by a rule has no error, and a score of 1 where it blocks, of 0 where it allows")
        if self.flagged_by and not (self.flagged and self.score is not None and self.rule is None):
            raise ValueError("a verdict that categories flag is flagged, by them and not by an error or a rule")
        if not {*self.flagged_by, *([] if self.category is None else [self.category])} <= self.categories.keys():
            raise ValueError("a verdict names categories whose probabilities it holds")
        return self

    @property
    def allowed(self) -> bool:
        """Whether a gate lets the text through."""
        return self.action is Action.ALLOW

    @property
    def blocked(self) -> bool:
        """Whether a gate stops the text."""
        return self.action is Action.BLOCK

    def resolved(self, on_review: OnReview) -> Verdict:
        """The verdict as a gate with two ways acts on it: "pass" leaves it as it is, "block" turns a review into a block."""
        if on_review == "pass" or self.action is not Action.REVIEW:
            return self
        return self.model_copy(update={"action": Action.BLOCK})

    @property
    def log_odds(self) -> float | None:
        """Log-odds of the score in nats: `intercept` plus every layer's contribution. None when `error` or `rule` is set."""
        if self.intercept is None:
            return None
        return math.fsum([self.intercept, *(layer.contribution for layer in self.layers)])
