"""Short everyday prompts put together from phrases: messages to people, and minimal pairs around alarming words.

"How do I blow up" is followed by an airbed or by a dam; "arson" stands behind "how do police detect" or behind "how can I get
away with". Of such a pair one part is the same and the label is not, so that neither alarming words nor an opening alone says
much. The phrases (`phrases.json`) were written for this project. Deterministic: drawn by seeds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlpm_guard.bundles.augment import Amount, Copy, R, in_turns

MESSAGE = "message"
LONGEST = 120
"""Characters of a row that is sent as a message."""

MESSAGES_OF = "clinc150"
"""Requests to an assistant: what people ask of it, they also ask of each other."""
OF_ASSISTANTS, OF_ALL = 2600, Amount(1400, 300)
OPENERS_OF_AN_OBJECT, OPENERS_OF_A_DEED = 8, Amount(16, 8)

_PHRASES: dict[str, Any] = json.loads((Path(__file__).resolve().parent / "phrases.json").read_text(encoding="utf-8"))


class Pair(NamedTuple):
    """A prompt with its label (1 unsafe)."""

    text: str
    label: int


def message(text: str, seed: int) -> str:
    """A text as what somebody is to be told, asked or written."""
    chance = random.Random(f"{seed}|{text}")  # noqa: S311
    name, them = chance.choice(_PHRASES["messages"]["people"])
    opener: str = chance.choice(_PHRASES["messages"]["openers"])
    return opener.format(name=name, them=them, text=text[:1].lower() + text[1:])


def messages(rows: Sequence[R], *, seed: int) -> Iterator[Copy]:
    """Short rows as messages: requests to an assistant first of all, and some of every source.

    Args:
        rows: training rows of both labels.
        seed: of the drawing.
    """
    short = [row for row in rows if len(row.text) <= LONGEST]
    drawn = in_turns([row for row in short if row.source == MESSAGES_OF and row.label == 0], f"{seed}|{MESSAGE}")[
        :OF_ASSISTANTS
    ]
    for label, count in enumerate(OF_ALL):
        drawn += in_turns([row for row in short if row.label == label], f"{seed}|{MESSAGE}")[:count]
    for row in drawn:
        yield Copy(MESSAGE, row.source, message(row.text, seed), row.label)


def minimal_pairs(*, seed: int) -> list[Pair]:
    """Openings with harmless and with harmful endings; and deeds in harmless and in harmful questions.

    Args:
        seed: of which openings an ending gets.
    """
    found: list[Pair] = []
    for family in _PHRASES["families"]:
        for label, endings in enumerate((family["harmless"], family["harmful"])):
            for ending in endings:
                found += _filled(family["openers"], ending, OPENERS_OF_AN_OBJECT, label, seed)
    of_deeds = _PHRASES["deeds"]
    for deed in of_deeds["deeds"]:
        for label, (openers, count) in enumerate(
            zip((of_deeds["harmless"], of_deeds["harmful"]), OPENERS_OF_A_DEED, strict=True)
        ):
            found += _filled(openers, deed, count, label, seed)
    return found


def _filled(openers: Sequence[str], ending: str, count: int, label: int, seed: int) -> list[Pair]:
    chance = random.Random(f"{seed}|{label}|{ending}")  # noqa: S311
    return [Pair(opener.format(ending), label) for opener in chance.sample(openers, min(count, len(openers)))]
