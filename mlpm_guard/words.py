"""Common English words: is a word one of them, and which words do these letters spell without spaces?

Tells readable text from disguised text, and one way to undo a disguise from another. The list is the library's own, so that all
guards read alike whatever their encoder is. Knows no disguises, encoders or labels.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

_LIST = Path(__file__).with_name("words.txt")
_ADDED = "# Words of prompts"
_ADDED_RANK = 6000
_LETTERS = {"a": 4, "i": 12}
_ENDINGS = (
    ("s", ""), ("es", ""), ("ed", ""), ("ed", "e"), ("d", ""), ("ing", ""), ("ing", "e"), ("er", ""),
    ("er", "e"), ("ers", ""), ("ers", "e"), ("ies", "y"), ("ied", "y"), ("ly", ""), ("ion", ""), ("ion", "e"),
    ("ions", ""), ("ions", "e"), ("ment", ""), ("ness", ""), ("able", ""), ("able", "e"), ("ful", ""), ("less", ""),
    ("ity", ""), ("ity", "e"), ("al", ""), ("ist", ""), ("ism", ""), ("ive", ""), ("ive", "e"),
)  # fmt: skip
_LAST = frozenset(ending[-1] for ending, _ in _ENDINGS)
_DOUBLING = frozenset({"ed", "ing", "er", "ers"})
_STEM = 3
_FORM = 4
_LONGEST = 18
# Nats: what a run of letters that is no word costs, at its start and for every letter. More than any word of like length.
_UNKNOWN, _UNKNOWN_LETTER = 9.0, 2.6
_TOKEN = re.compile(r"[^\W_]+")
_AFTER_APOSTROPHE = frozenset({"s", "t", "m", "d", "ll", "re", "ve"})


class Split(NamedTuple):
    """Letters cut into words.

    Attributes:
        words: the pieces, in order; together they are the letters.
        cost: of all of them, in nats; less is likelier.
        known: share of the letters that are in words of the list, in [0, 1].
    """

    words: tuple[str, ...]
    cost: float
    known: float


@functools.cache
def ranks() -> Mapping[str, int]:
    """Every word of the list, in lower case, with its rank by frequency, from 0."""
    found = dict(_LETTERS)
    added = False
    for line in _LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            added = added or line.startswith(_ADDED)
            continue
        for word in line.split():
            found.setdefault(word, _ADDED_RANK if added else len(found))
    return found


@functools.cache
def _costs() -> Mapping[str, float]:
    # Zipf's law: a word's frequency is about 1 / (rank * log(number of words)).
    listed = ranks()
    scale = math.log(len(listed))
    return {word: math.log((rank + 2) * scale) for word, rank in listed.items()}


def _form_cost(word: str) -> float | None:
    found = rank(word)
    return None if found is None else math.log((found + 2) * math.log(len(ranks())))


@functools.cache
def of_length(length: int) -> tuple[str, ...]:
    """Words of that many letters, the most frequent first."""
    listed = ranks()
    return tuple(sorted((word for word in listed if len(word) == length), key=listed.__getitem__))


def rank(word: str) -> int | None:
    """The rank of a word in lower case, or of the word that it is a form of; None where the list has neither."""
    listed = ranks()
    found = listed.get(word)
    if found is not None:
        return found
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _STEM:
            stem = word[: -len(ending)]
            found = listed.get(stem + instead)
            if found is None and ending in _DOUBLING and not instead and len(stem) > _STEM and stem[-1] == stem[-2]:
                found = listed.get(stem[:-1])
            if found is not None:
                return found + _ADDED_RANK
    return None


def known(word: str) -> bool:
    """Whether a word, in any case, is in the list or a form of one that is."""
    return rank(word.lower()) is not None


def share_known(text: str) -> float:
    """Share of a text's letters and digits that stand in known words, in [0, 1]. Numbers do not count; 0 without any letter."""
    return share_of(_TOKEN.findall(text))


def share_of(tokens: Iterable[str]) -> float:
    """The same of runs of letters and digits."""
    inside = total = 0
    listed = ranks()
    for token in tokens:
        if token.isdecimal():
            continue
        total += len(token)
        word = token.lower()
        if word in listed or word in _AFTER_APOSTROPHE or rank(word) is not None:
            inside += len(token)
    return inside / total if total else 0.0


def split(letters: str) -> Split:
    """The likeliest words that these letters spell, by the frequency of each word alone. Time grows with their number only."""
    costs = _costs()
    lower = letters.lower()
    best = [0.0]
    came_from = [(0, True)]
    for end in range(1, len(lower) + 1):
        least, start, in_list = math.inf, end - 1, False
        for at in range(max(0, end - _LONGEST), end):
            cost = costs.get(lower[at:end])
            if cost is None and end - at > _FORM and lower[end - 1] in _LAST:
                cost = _form_cost(lower[at:end])
            listed = cost is not None
            if cost is None:
                cost = _UNKNOWN + _UNKNOWN_LETTER * (end - at)
            if best[at] + cost < least:
                least, start, in_list = best[at] + cost, at, listed
        best.append(least)
        came_from.append((start, in_list))
    words: list[str] = []
    inside, end = 0, len(lower)
    while end > 0:
        start, in_list = came_from[end]
        words.append(letters[start:end])
        inside += (end - start) if in_list else 0
        end = start
    return Split(tuple(reversed(words)), best[-1], inside / len(lower) if lower else 0.0)
