"""What the encoder's adapter learns from: labelled texts, how much each weighs, and how it varies from epoch to epoch.

Prompts are the rows of the default recipe and what this project wrote: harmless prompts that sound alarming, unsafe requests
that resemble them, and minimal pairs. Answers are the rows of the response recipe; they have an output of their own, so that a
harmful prompt and a harmful answer need not look alike.

A text is read as it is or varied: with typos, wrapped, padded, as a message to somebody, beside a harmless prompt, as an exam
question, or, where it is long and harmless, as one of its sentences. Both labels vary in the same ways, so that a variation
alone says nothing; harmless ones somewhat more often, since what the public sources hold of wrapped prompts is harmful nearly
throughout.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from mlpm_guard.bundles import fit_default, fit_default_response
from mlpm_guard.bundles.augment import changed
from mlpm_guard.bundles.phrases import LONGEST as LONGEST_MESSAGE
from mlpm_guard.bundles.phrases import MESSAGE, message

Kind: TypeAlias = Literal["prompt", "answer"]

SOURCE_POWER = 0.5
"""A source weighs as its size to this power, so that no large source drowns the small ones."""

WEIGHTS = {
    # Many rows that are not unsafe as they are written, or whose label is about a statement rather than a request.
    **dict.fromkeys(("harmfulqa", "ailuminate_demo", "aart", "realtoxicityprompts_sub", "safetext", "hatecheck"), 0.5),
    # The border between the classes.
    **dict.fromkeys(fit_default.TWINS, 3.0),
    **dict.fromkeys((*fit_default.TRAFFIC, fit_default.PAIRS), 2.0),
}
HEAVIEST = 6.0

VARIED = {0: 0.32, 1: 0.25}
LONGEST_VARIED = 400
READ, BEGINNING = 260, 120
"""Characters of a prompt that are surely read in training, and of an unsafe one that must be among them when it is varied."""
EXAM = {0: 0.06, 1: 0.015}
LONGEST_EXAM = 300
FRAGMENT = 0.4
SHORTEST_CUT = 160

FEWER_ROWS_OF = {**fit_default.ROWS_OF, "banking77": 2600}
# More than the prototypes learn: weights, not rows, keep the large sources small here.
ANSWERS_PER_QUESTION = 8

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One labelled text.

    Attributes:
        text: prompt or answer.
        label: 1 unsafe.
        source: where it comes from.
        category: of an unsafe prompt, where it is known.
        kind: which of the two it is.
        weight: in the loss; 1 on average over a kind and label.
    """

    text: str
    label: int
    source: str
    category: str | None = None
    kind: Kind = "prompt"
    weight: float = 1.0


def prompts(data: Path) -> list[Lesson]:
    """Prompts to learn from, in a fixed order."""
    rows = fit_default.rows_and_pairs(data / "train")
    return weighted([Lesson(row.text, row.label, row.source, row.category) for row in rows])


def fewer_prompts(data: Path) -> list[Lesson]:
    """Those of public sources and twins only: no traffic, no pairs, and no more of a source than its share."""
    rows = fit_default.rows_to_learn(data / "train", FEWER_ROWS_OF, {}, {}, fit_default.TWINS)
    return weighted([Lesson(row.text, row.label, row.source, row.category) for row in rows])


def answers(data: Path) -> list[Lesson]:
    """Answers to learn from, in a fixed order, without the prompts before them: the encoder is not shown those either."""
    rows = fit_default_response.training_rows(data, ANSWERS_PER_QUESTION, prompts=False)
    return weighted([Lesson(row.text, row.label, row.source, kind="answer") for row in rows])


def weighted(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The same lessons with their weights: as much for either label, and its sources by `SOURCE_POWER` and `WEIGHTS`."""
    sizes = Counter((lesson.source, lesson.label) for lesson in lessons)
    weights = np.array(
        [sizes[each.source, each.label] ** (SOURCE_POWER - 1.0) * WEIGHTS.get(each.source, 1.0) for each in lessons]
    )
    labels = np.array([lesson.label for lesson in lessons])
    for label in np.unique(labels):
        weights[labels == label] /= weights[labels == label].mean()
    return [replace(each, weight=float(weight)) for each, weight in zip(lessons, np.minimum(weights, HEAVIEST), strict=True)]


class Variation:
    """Varies texts by chance.

    Args:
        harmless: prompts to stand beside others, and to take the words of exam answers from.
        generator: of chance.
        messages: short prompts are also read as messages to somebody.
    """

    def __init__(self, harmless: Sequence[str], generator: random.Random, *, messages: bool = True) -> None:
        self._harmless = harmless
        self._random = generator
        self._longest_message = LONGEST_MESSAGE if messages else 0

    def __call__(self, lesson: Lesson) -> str:
        """A text as it is read this time. Answers are not varied."""
        text, chance = lesson.text, self._random
        if lesson.kind == "answer":
            return text
        if lesson.label == 0 and len(text) > SHORTEST_CUT and chance.random() < FRAGMENT:
            text = self._fragment(text)
        if len(text) < LONGEST_EXAM and chance.random() < EXAM[lesson.label]:
            return self._exam(text)
        if len(text) < LONGEST_VARIED and chance.random() < VARIED[lesson.label]:
            varied = self._varied(text)
            # Around an unsafe prompt that is itself no longer read, what varies it would be learned as unsafe.
            return text if lesson.label and varied.find(text) + min(len(text), BEGINNING) > READ else varied
        return text

    def _fragment(self, text: str) -> str:
        """A sentence or two, or a span of words."""
        chance = self._random
        sentences = [each for each in _SENTENCE_END.split(text) if len(each.split()) >= 5]
        if len(sentences) > 1 and chance.random() < 0.7:
            start = chance.randrange(len(sentences))
            return " ".join(sentences[start : start + chance.choice((1, 1, 2))])
        words = text.split()
        if len(words) <= 30:
            return text
        start = chance.randrange(len(words) - 16)
        return " ".join(words[start : start + chance.choice((10, 16, 24))])

    def _exam(self, text: str) -> str:
        """The text as a question with four answers."""
        chance = self._random
        choices: list[str] = []
        for letter in "ABCD":
            words = chance.choice(self._harmless).split()
            start = chance.randrange(max(1, len(words) - 6))
            choices.append(f"{letter}. {' '.join(words[start : start + chance.randint(1, 6)])[:60]}")
        return "\n".join((text, "", *choices))

    def _varied(self, text: str) -> str:
        chance = self._random
        names = ("typos", "role_play", "padded_before", "padded_after", "beside", MESSAGE)
        name = chance.choices(names, (30, 30, 13, 17, 10, 15 if len(text) <= self._longest_message else 0))[0]
        if name == MESSAGE:
            return message(text, chance.randrange(1 << 30))
        if name != "beside":
            return changed(name, text, chance.randrange(1 << 30))
        pair = [text, chance.choice(self._harmless)]
        chance.shuffle(pair)
        return " ".join(pair)
