"""Cutting a text that is still being written into units that are judged one after the other, and holding back its end.

The units do not depend on how the text was chunked, and cost time linear in the text. Knows no guard and no tokenizer.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Literal, TypeAlias

from mlpm_guard.windows import SENTENCE_BREAK

TokenStarts: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Takes texts; gives for each the character positions at which its tokens start."""

Every: TypeAlias = "Literal['sentence'] | int"

LONGEST_SENTENCE = 200
"""Characters after which a sentence that has not ended is cut."""

_CHARACTERS_PER_TOKEN = 10
_WORD = re.compile(r"\S+")
_WORD_AND_SPACE = re.compile(r"\S+(\s?)")
_UP_TO_LAST_SPACE = re.compile(r"(?s:.*)\s")
_BLANK = re.compile(r"\s+")
_LONG_BLANK = re.compile(r"(\s\s)\s{8,}")
_LETTER = re.compile(r"[^\W\d_]")


def word_starts(texts: Sequence[str]) -> list[list[int]]:
    """Words for tokens, where there is no tokenizer."""
    return [[found.start() for found in _WORD.finditer(text)] for text in texts]


def squeeze(text: str) -> str:
    """The text with two characters left of every blank run of ten or more, so that blanks cannot crowd words out of sight."""
    return _LONG_BLANK.sub(r"\1", text)


def tail(text: str, length: int) -> str:
    """The last `length` characters of a text, without the word that this cuts in two, unless there is nothing else."""
    if length == 0 or len(text) <= length:
        return text if length else ""
    start = len(text) - length
    if not text[start - 1].isspace():
        blank = _BLANK.search(text, start)
        if blank is not None and blank.end() < len(text):
            start = blank.end()
    return text[start:]


@dataclass(frozen=True, slots=True)
class Unit:
    """What is judged in one go.

    Attributes:
        lead: blank text in front that is too long to be part of the unit; there is nothing in it to judge.
        text: the unit itself; blank only at the end of a text.
    """

    lead: str = field(repr=False)
    text: str = field(repr=False)


class Segmenter:
    """Takes chunks, gives units.

    A sentence ends where `windows` sees a sentence break; one without a letter ("1.", "---") belongs to the next. Units end
    behind the blank character that follows a word, or in the middle of a word that alone is too long. A unit has at most
    `LONGEST_SENTENCE` characters or, of N tokens, ten times N where that is more, so that neither time nor memory grows with
    a text that never ends a sentence.

    Args:
        every: "sentence", or the number of tokens after which the word that holds the last of them ends a unit.
        starts: how tokens are counted, word by word.
    """

    def __init__(self, every: Every, starts: TokenStarts) -> None:
        self._tokens = None if every == "sentence" else every
        self._longest = max(LONGEST_SENTENCE, _CHARACTERS_PER_TOKEN * (self._tokens or 0))
        self._starts = starts
        self._text = ""
        self._lead: list[str] = []
        self._start = 0
        self._begin(0)

    def push(self, chunk: str) -> None:
        """Add a chunk. Take every unit that is complete (`next`) before the next one is added."""
        if self._start:
            self._text = self._text[self._start :]
            self._scan -= self._start
            self._start = 0
        self._text += chunk

    def next(self) -> Unit | None:
        """The next complete unit; None while more text is needed."""
        while (end := self._end()) is not None:
            text = self._text[self._start : end]
            self._begin(end)
            if not text.isspace():
                return self._unit(text)
            self._lead.append(text)
        return None

    def rest(self) -> Unit:
        """What is left at the end of the text, possibly nothing or only blanks."""
        text = self._text[self._start :]
        self._text = ""
        self._begin(0)
        return self._unit(text)

    def _unit(self, text: str) -> Unit:
        lead = "".join(self._lead)
        self._lead.clear()
        return Unit(lead, text)

    def _begin(self, start: int) -> None:
        self._start = self._scan = start
        self._counted = 0
        self._lettered = False

    def _end(self) -> int | None:
        limit = self._start + self._longest
        end = self._sentence_end(limit) if self._tokens is None else self._token_end(limit, self._tokens)
        if end is None and len(self._text) > limit:
            words = _UP_TO_LAST_SPACE.match(self._text, self._start, limit)
            end = words.end() if words else limit
        return end

    def _sentence_end(self, limit: int) -> int | None:
        while found := SENTENCE_BREAK.search(self._text, self._scan, limit):
            visible = len(found[0].rstrip())
            # One blank goes with the sentence, as no more need have arrived; behind a full-width stop, none need come at all.
            self._advance(found.start() + visible + (found[0][0] in ".!?…\r\n"))
            if self._lettered:
                return self._scan
        # What ends a sentence may have begun in the word that is still being written.
        if words := _UP_TO_LAST_SPACE.match(self._text, self._scan, limit):
            self._advance(words.end())
        return None

    def _advance(self, end: int) -> None:
        self._lettered = self._lettered or _LETTER.search(self._text, self._scan, end) is not None
        self._scan = end

    def _token_end(self, limit: int, tokens: int) -> int | None:
        while True:
            words = _WORD_AND_SPACE.finditer(self._text, self._scan, limit)
            ends = [word.end() for word in islice(words, tokens - self._counted) if word[1]]
            if not ends:
                return None
            pieces = [self._text[start:end] for start, end in pairwise([self._scan, *ends])]
            for end, starts in zip(ends, self._starts(pieces), strict=True):
                self._scan = end
                self._counted += len(starts)
                if self._counted >= tokens:
                    return end


class HoldBack:
    """Lets text through except for its last part.

    Args:
        amount: how much stays back; None for everything.
        starts: counts it in these tokens; None counts it in characters.
    """

    def __init__(self, amount: int | None, starts: TokenStarts | None) -> None:
        self._amount = amount
        self._starts = starts
        self._pieces: deque[str] = deque()
        self._size = 0

    def add(self, text: str) -> str:
        """Append text; returns what may go."""
        if self._amount == 0:
            return text
        for piece in self._split(text):
            self._pieces.append(piece)
            self._size += self._weight(piece)
        released: list[str] = []
        while self._amount is not None and (excess := self._size - self._amount) > 0:
            piece = self._pieces.popleft()
            if self._weight(piece) > excess:
                self._pieces.appendleft(piece[excess:])
                piece = piece[:excess]
            self._size -= self._weight(piece)
            released.append(piece)
        return "".join(released)

    def rest(self) -> str:
        """Everything that was still held back."""
        text = "".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return text

    def _weight(self, piece: str) -> int:
        return len(piece) if self._starts is None else 1

    def _split(self, text: str) -> list[str]:
        if self._starts is None or not text:
            return [text] if text else []
        starts = [] if text.isspace() else sorted(set(self._starts([text])[0]))
        if not starts and self._pieces:
            text = self._pieces.pop() + text
            self._size -= 1
        return [text[start:end] for start, end in pairwise([0, *starts[1:], len(text)])]
