"""Cutting long text into pieces that are judged on their own, so that harmless padding cannot dilute a harmful sentence.

A pooled state is an average: one harmful sentence in a hundred harmless words is lost in it. Text longer than a window is
therefore judged in overlapping windows, and text longer than three quarters of one also fragment by fragment: sentence by
sentence, and a run of words without any punctuation in short overlapping spans. Works on token spans; knows no tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["whole", "window", "fragment"]
Spans = npt.NDArray[np.int64]

SENTENCE_BREAK = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？؟।]\s*|[\r\n]+\s*")
_SHORTEST = 5
_LONGEST = 40
_SPAN, _STEP = 24, 12
_EDGES = (8, 10, 12, 16)


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters `start` to `end` of a text."""

    start: int
    end: int
    kind: Kind


def surely_whole(text: str, window: int) -> bool:
    """Whether a text is one piece however it is tokenised, so that it need not be.

    No tokenizer gives more tokens than there are ASCII characters, but for one that stands for the text's beginning.
    """
    return len(text) < window * 3 // 4 and text.isascii()


def cut(text: str, spans: Spans, window: int) -> list[Piece]:
    """The pieces of a text that are to be judged.

    Args:
        text: the text.
        spans: character spans of its tokens, shape (tokens, 2).
        window: tokens of a judging window. Windows overlap by a quarter.

    Returns:
        One whole piece for a short text; for a longer one, its windows first, then its fragments.
    """
    count = len(spans)
    if count <= window:
        pieces = [Piece(0, len(text), "whole")]
    else:
        pieces = [
            _piece(text, spans, start, start + window, "window") for start in _starts(count, window, max(1, window * 3 // 4))
        ]
    if count > window * 3 // 4:
        fragments = _fragments(text, spans)
        if len(fragments) > 1:
            pieces += [_piece(text, spans, start, end, "fragment") for start, end in fragments]
    return pieces


def training_pieces(text: str, spans: Spans, window: int, limit: int) -> list[Piece]:
    """The windows of a text that a fit learns from: all, or `limit` of them, spread evenly from the first to the last."""
    pieces = [piece for piece in cut(text, spans, window) if piece.kind != "fragment"]
    if len(pieces) <= limit:
        return pieces
    chosen = np.unique(np.linspace(0, len(pieces) - 1, limit).round().astype(int))
    return [pieces[index] for index in chosen]


def _starts(count: int, size: int, step: int) -> list[int]:
    return [*range(0, count - size, step), count - size]


def _piece(text: str, spans: Spans, start: int, end: int, kind: Kind) -> Piece:
    # A piece that starts inside a word goes back to the word's beginning, unless the script has no spaces.
    for back in range(start, max(start - 8, -1), -1):
        if back == 0 or spans[back, 0] > spans[back - 1, 1] or text[spans[back, 0]].isspace():
            start = back
            break
    return Piece(int(spans[start, 0]), int(spans[end - 1, 1]), kind)


def _fragments(text: str, spans: Spans) -> list[tuple[int, int]]:
    breaks = [found.end() for found in SENTENCE_BREAK.finditer(text)]
    edges = np.unique(np.searchsorted(spans[:, 0], [0, *breaks, len(text)], side="left")).tolist()
    sentences: list[tuple[int, int]] = []
    start = 0
    for edge in edges:
        if edge - start >= _SHORTEST:
            sentences.append((start, edge))
            start = edge
    if start < len(spans):
        # What is left at the end is too short to stand alone; it belongs to the sentence before.
        first = sentences.pop()[0] if sentences else start
        sentences.append((first, len(spans)))
    fragments: list[tuple[int, int]] = []
    for start, end in sentences:
        length = end - start
        if length <= _LONGEST:
            fragments.append((start, end))
        else:
            fragments += [(start + at, start + at + _SPAN) for at in _starts(length, _SPAN, _STEP)]
            # What is hidden in such a run mostly stands at one of its ends, and spans there hold it with less around it.
            fragments += [(start, start + edge) for edge in _EDGES] + [(end - edge, end) for edge in _EDGES]
    return fragments
