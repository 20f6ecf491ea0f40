"""Synthetic prompts: everyday requests from templates and a small vocabulary, all different, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

_OPENINGS = (
    "Please explain how",
    "Write a short note about why",
    "Can you tell me whether",
    "I would like to know when",
    "Help me understand how",
    "Summarise for my class why",
    "Give me three reasons why",
    "Make a plan for the day on which",
)
_NOUNS, _VERBS, _ADJECTIVES = (
    line.split()
    for line in (
        "garden bakery river teacher village museum library kitchen bicycle window mountain orchestra market island farmer "
        "painting bridge recipe harbour forest lamp station neighbour season festival notebook engine meadow choir valley "
        "workshop basket holiday letter meeting budget invoice schedule printer keyboard",
        "visits paints repairs describes measures follows borrows cleans prepares compares supports delivers collects "
        "teaches records improves discovers arranges decorates explains",
        "small green quiet early modern wooden friendly bright northern useful gentle famous local simple warm",
    )
)
_LINKS = ("and then the", "while the", "because the", "before the", "near the", "together with the")


def words(count: int, generator: random.Random, *, opening: bool = True) -> str:
    """One sentence of exactly `count` words (at least 5), without a stop."""
    found: list[str] = generator.choice(_OPENINGS).split() if opening else ["The"]
    found = found[: max(count - 3, 1)]
    if opening:
        found.append("the")
    while len(found) < count:
        clause = f"{generator.choice(_ADJECTIVES)} {generator.choice(_NOUNS)} {generator.choice(_VERBS)} the"
        clause += f" {generator.choice(_ADJECTIVES)} {generator.choice(_NOUNS)} {generator.choice(_LINKS)}"
        found += clause.split()
    return " ".join(found[:count])


def prompts(count: int, low: int, high: int, *, seed: int = 0) -> Iterator[str]:
    """Different prompts of `low` to `high` words; a number keeps even the shortest ones apart."""
    generator = random.Random(seed)
    for index in range(count):
        yield f"{words(generator.randint(low, high) - 1, generator)} {index}?"


def padding(count: int, *, seed: int = 0, stops: bool = True) -> str:
    """`count` harmless words: sentences, or one run of words without any punctuation."""
    generator = random.Random(seed)
    sentences: list[str] = []
    left = count
    while left > 0:
        length = left if left < 16 else generator.randint(6, 11)
        sentences.append(words(length, generator, opening=False))
        left -= length
    return "".join(f"{each}. " for each in sentences) if stops else " ".join(sentences).lower() + " "
