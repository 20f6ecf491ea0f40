"""Disguised, wrapped and padded copies of training rows, so that a disguise alone says nothing.

There are more harmless copies than harmful ones: what the public sources hold of wrapped and disguised prompts is harmful
nearly throughout, so that as many of either would leave a disguise looking like harm.

Fillers, a few everyday words over and over, are harmless only.

The wrappers and the padding here are not those that `mlpm_guard.evaluation.transformations` measures with: what is learned here
is tested on others. Deterministic: rows are drawn by a seeded hash of their texts, in turns from every source.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from mlpm_guard.evaluation.transformations import (
    padded_after,
    padded_before,
    role_play,
    transformation,
)

TWINS = Path(__file__).resolve().parent / "benign_twins.jsonl"

LONGEST = 400
"""Characters of a row that may be copied; longer ones would fill a judging window with the disguise of a fragment."""

SHORT_PADDING = 35
"""Words of padding, so that the prompt and most of what pads it stand in one judging window."""

WRAPPERS: tuple[str, ...] = tuple(
    json.loads(line) for line in (Path(__file__).resolve().parent / "wrappers.jsonl").read_text(encoding="utf-8").splitlines()
)
"""Wrappers for training only; the prompt stands at `{}`."""

SENTENCES = (
    "Thank you for the quick reply the other day, it helped a lot.",
    "I am sitting in a café near the station and have half an hour to spare.",
    "My colleague recommended that I ask here first.",
    "We moved into the new flat in March and are still unpacking boxes.",
    "The weather has been grey all week, but tomorrow should be better.",
    "Please excuse my spelling, English is my third language.",
    "My son is doing his homework next to me and sends his regards.",
    "By the way, I have read your earlier answers and found them useful.",
    "Lunch was fish soup, and it was excellent.",
    "I have been thinking about this for a while.",
    "Our book club meets again on Wednesday evening.",
    "There is a small park behind the office with two old chestnut trees.",
    "I will read your answer tonight on the train home.",
    "Last weekend we walked around the lake and saw a heron.",
    "Take your time, there is no hurry at all.",
    "The neighbours are renovating, so it is a bit noisy here.",
    "This is my first message today, so good morning to you.",
    "I have tried to look it up in the library, but it is closed for the holidays.",
    "My grandmother's clock stopped at ten past four again.",
    "We have a small garden with two apple trees and a bench.",
    "The train was late, so I had time to write this down.",
    "If it takes longer than expected, that is perfectly fine.",
    "Our team has its summer party on Friday, and I am to bring the salad.",
    "The cat has been asleep on the printer since noon.",
    "I am new in town and still learning the names of the streets.",
    "Somebody left a blue umbrella in the hall of our building.",
    "My cousin plays the cello and practises every evening at seven.",
    "There will be a lunar eclipse next week, if the sky is clear.",
    "The new bakery around the corner sells bread with walnuts.",
    "I always write longer messages than necessary, as you can see.",
    "Next year we would like to travel along the coast by bicycle.",
    "The radio is playing an old song whose title I cannot remember.",
)
"""Padding for training only."""


class Amount(NamedTuple):
    """How many copies there are of harmless rows, and of harmful ones."""

    harmless: int
    harmful: int


PLAN: Mapping[str, Amount] = {
    "base64": Amount(900, 300),
    "typos": Amount(600, 200),
    "role_play": Amount(2400, 600),
    "padded_before": Amount(300, 150),
    "padded_after": Amount(300, 150),
}
"""Copies by transformation. Leet, spaced letters and look-alikes are undone before a prompt is judged."""

FILLERS = 1500
"""Texts of few words over and over. They look like nothing else that is learned, and so count for more than their number."""
_FILLER_WORDS = (8, 150)


class Copy(NamedTuple):
    """A changed copy of a row.

    Attributes:
        transformation: what was done to it.
        source: of the row.
        text: as it is now.
        label: of the row.
    """

    transformation: str
    source: str
    text: str
    label: int


class LabelledRow(Protocol):
    """What a row needs to have."""

    @property
    def source(self) -> str:
        """Where it comes from."""

    @property
    def text(self) -> str:
        """The prompt."""

    @property
    def label(self) -> int:
        """1 unsafe."""


R = TypeVar("R", bound=LabelledRow)


def benign_twins() -> list[str]:
    """The harmless prompts that sound alarming, in the order of their file."""
    return [str(json.loads(line)["text"]) for line in TWINS.read_text(encoding="utf-8").splitlines()]


def changed(name: str, text: str, seed: int) -> str:
    """A training copy of one text.

    Args:
        name: of the transformation.
        text: what is copied.
        seed: of the transformation.

    Raises:
        ConfigurationError: there is no transformation of that name.
    """
    if name == "role_play":
        return role_play(text, seed, WRAPPERS)
    if name == "padded_before":
        return padded_before(text, seed, SENTENCES, SHORT_PADDING)
    if name == "padded_after":
        return padded_after(text, seed, SENTENCES, SHORT_PADDING)
    return transformation(name).apply(text, seed)


def augmented(rows: Sequence[R], *, seed: int, plan: Mapping[str, Amount] = PLAN) -> Iterator[Copy]:
    """Changed copies of some rows.

    Args:
        rows: training rows of both labels.
        seed: of the drawing and the transformations.
        plan: copies by transformation; fewer where there are fewer rows.
    """
    for name, amount in plan.items():
        for label, count in enumerate(amount):
            drawn = in_turns([row for row in rows if row.label == label and len(row.text) <= LONGEST], f"{seed}|{name}")
            for row in drawn[:count]:
                yield Copy(name, row.source, changed(name, row.text, seed), label)


def fillers(texts: Sequence[str], *, seed: int, count: int = FILLERS) -> list[str]:
    """One to three neighbouring words of a text, over and over, as padding without meaning has them.

    Args:
        texts: everyday harmless texts.
        seed: of the drawing.
        count: how many; fewer where fewer texts have three words.
    """
    chance = random.Random(seed)  # noqa: S311
    usable = sorted({text for text in texts if len(text.split()) >= 3})
    shortest, longest = (math.log(words) for words in _FILLER_WORDS)
    found: list[str] = []
    for text in chance.sample(usable, min(count, len(usable))):
        words, length = text.split(), chance.choice((1, 1, 2, 3))
        start = chance.randrange(len(words) - length + 1)
        times = round(math.exp(chance.uniform(shortest, longest)) / length)
        found.append(" ".join(words[start : start + length] * times))
    return found


def in_turns(rows: Sequence[R], seed: str) -> list[R]:
    """All rows, one of every source after another, until the sources run dry; within a source by a seeded hash of the text."""
    by_source: dict[str, list[R]] = {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(f"{seed}|{row.text}".encode("utf-8", "surrogatepass")).digest()):
        by_source.setdefault(row.source, []).append(row)
    found: list[R] = []
    for turn in range(max(map(len, by_source.values()), default=0)):
        found += [of_source[turn] for _, of_source in sorted(by_source.items()) if turn < len(of_source)]
    return found
