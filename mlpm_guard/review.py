"""When a verdict that is not flagged asks for a person to look: borderline scores, and prompts unlike the training prompts."""

from __future__ import annotations

from dataclasses import dataclass

from mlpm_guard.errors import ConfigurationError
from mlpm_guard.options import is_number


@dataclass(frozen=True)
class Review:
    """What is let through only to be looked at: `Verdict.action` is then "review", in enforce mode.

    Attributes:
        score: probability from which a verdict that is not flagged is borderline. At or above the threshold it has no effect.
        novelty: percentile of novelty, in [0, 1], from which a verdict that is not flagged is novel; see `Verdict.novelty`.

    Raises:
        ConfigurationError: neither is given, or one is not in [0, 1].
    """

    score: float | None = None
    novelty: float | None = None

    def __post_init__(self) -> None:
        if self.score is None and self.novelty is None:
            raise ConfigurationError("review: give a score, a novelty, or both, from which a prompt is reviewed")
        for name, value in (("score", self.score), ("novelty", self.novelty)):
            if value is not None and not (is_number(value) and 0.0 <= value <= 1.0):
                raise ConfigurationError(f"review: {name}={value!r}: a number from 0 to 1, or None")

    def wants(self, score: float, novelty: float | None) -> bool:
        """Whether a verdict with this score and novelty, which is not flagged, is to be reviewed."""
        borderline = self.score is not None and score >= self.score
        return borderline or (self.novelty is not None and novelty is not None and novelty >= self.novelty)
