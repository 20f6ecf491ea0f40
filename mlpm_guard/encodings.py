"""Text that is written as something else: base64, base32, hexadecimal, binary or decimal codes, escapes, ROT13, mirror writing.

Finds such passages and gives what they say. A passage counts as encoded only if it decodes to text that can be read, so that
hashes, keys, identifiers and pictures stay what they are. Time grows with the length of the text only. Imports words only.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from mlpm_guard.words import known, ranks, share_known

LEVELS = 2
"""How often text is decoded that was encoded more than once."""

_SHORTEST_BLOB = 12
_SHORTEST_PART = 4
_SHORTEST_FOREIGN = 8
_READABLE = 0.5
_PRINTABLE = 0.97
_BLOB = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{4,}={0,6}")
_BETWEEN = re.compile(r"(?:\s|\\n|>){1,64}")
_JOINTS = re.compile(r"[+/_-]")
_CHUNK = re.compile(r"\S+")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?(?:[2-7][0-9a-fA-F]|0[aAdD9]|[cC][23][89abAB][0-9a-fA-F]){6,}(?![0-9A-Za-z])")
_CODES = re.compile(
    r"(?<![0-9A-Za-z\\])(?:(?:0[xXbB]|\\x)?[0-9a-fA-F]{2,8}(?:[^0-9A-Za-z\\]{1,3}|(?=\\x))){4,}"
    r"(?:0[xXbB]|\\x)?[0-9a-fA-F]{2,8}(?![0-9A-Za-z])"
)
_CODE = re.compile(r"[0-9a-fA-F]{2,8}(?![0-9A-Za-z])")
_BITS = re.compile(r"(?<![0-9A-Za-z])(?:[01]{8}){4,}(?![0-9A-Za-z])")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ESCAPE = re.compile(r"\\u\{?([0-9A-Fa-f]{4,6})\}?|\\x([0-9A-Fa-f]{2})|&#(?:x([0-9A-Fa-f]{1,6})|[0-9]{1,7});")
_FEWEST_ESCAPES = 3
_WORD = re.compile(r"[^\W\d_]+(?:'[A-Za-z]+)?")
_SHORTEST_RUN = 3


class Decoded(NamedTuple):
    """A text with its encoded passages decoded.

    Attributes:
        text: the whole, contents in the places of the passages.
        contents: what the passages say, in order.
    """

    text: str
    contents: tuple[str, ...]


class _Passage(NamedTuple):
    start: int
    end: int
    content: str


def decode(text: str) -> Decoded:
    """Undo every encoding, up to `LEVELS` times; the text itself, without contents, where there is none."""
    contents: tuple[str, ...] = ()
    for level in range(LEVELS):
        whole, found = text, contents
        for finder in (_escapes, _blobs, _numbers, _ciphers):
            passages = list(finder(whole))
            if passages:
                whole = _replaced(whole, passages)
                inside = tuple(passage.content for passage in passages)
                if finder is _ciphers and len(passages) > 1:
                    inside = ()  # pieces of one text, broken by words that mean something both ways
                # What was inside of something else is told in its last form only.
                found = inside if level and inside else (*found, *inside)
        if whole == text:
            break
        text, contents = whole, found
    return Decoded(text, contents)


def _replaced(text: str, passages: Sequence[_Passage]) -> str:
    pieces: list[str] = []
    at = 0
    for passage in passages:
        pieces += [text[at : passage.start], passage.content]
        at = passage.end
    return "".join([*pieces, text[at:]])


def readable(text: str) -> bool:
    """Whether decoded bytes make text that a person could read: printable, in words or in another script than Latin."""
    if not text or sum(map(_is_text, text)) < _PRINTABLE * len(text):
        return False
    letters = sum(char.isalpha() for char in text)
    if letters < 3 or (letters + sum(char.isspace() for char in text)) < 0.6 * len(text):
        # Decoded text may be encoded once more, or disguised otherwise; that it is ASCII without a fault is then no accident.
        return text.isascii() and len(text) >= 2 * _SHORTEST_BLOB
    if not text.isascii():
        return len(text) >= _SHORTEST_FOREIGN or share_known(text) >= _READABLE
    return share_known(text) >= _READABLE or len(text) >= 2 * _SHORTEST_BLOB


def _is_text(char: str) -> bool:
    return char.isprintable() or char in "\n\r\t"


def _text_of(data: bytes) -> str | None:
    if not data:
        return None
    if len(data) >= 4 and len(data) % 2 == 0 and not any(data[1::2]):
        data = data[::2]
    for cut in range(4):
        # What was cut off may end inside a character.
        try:
            text = data[: len(data) - cut].decode("utf-8")
        except UnicodeDecodeError as error:
            if error.start < len(data) - 4:
                return None
            continue
        return text if readable(text) else None
    return None


# -- base64 and base32 -------------------------------------------------------------------------------------------------------


def _blobs(text: str) -> Iterator[_Passage]:
    if not may_hold_blobs(text):
        return
    run: list[re.Match[str]] = []
    for found in _BLOB.finditer(text):
        if not _looks_encoded(found[0], inside=bool(run)):
            yield from _of_run(run)
            run = []
            continue
        if run and not _BETWEEN.fullmatch(text, run[-1].end(), found.start()):
            yield from _of_run(run)
            run = []
        if run or _looks_encoded(found[0], inside=False):
            run.append(found)
    yield from _of_run(run)


def may_hold_blobs(text: str) -> bool:
    """A quick look: is there any word long enough?"""
    return "=" in text or max(map(len, text.split()), default=0) >= _SHORTEST_BLOB


def _looks_encoded(piece: str, *, inside: bool) -> bool:
    if len(piece) < _SHORTEST_BLOB and not piece.endswith("="):
        # A short piece may go on with one that was broken off, unless it is a word.
        return inside and len(piece) >= _SHORTEST_PART and not known(piece)
    if (piece.islower() or piece.istitle()) and piece.isalpha():
        return False
    return len(_JOINTS.findall(piece)) * 5 <= len(piece)


def _of_run(run: Sequence[re.Match[str]]) -> Iterator[_Passage]:
    """Pieces that stand side by side: together, where they make sense together, else each for itself."""
    if not run:
        return
    if len(run) > 1:
        # Words may stand beside the last piece; take as many pieces as decode.
        for last in dict.fromkeys((len(run), max(len(run) - 1, 2))):
            content = _from_base("".join(each[0] for each in run[:last]))
            if content is not None:
                yield _Passage(run[0].start(), run[last - 1].end(), content)
                return
    for each in run:
        content = _from_base(each[0])
        if content is not None:
            yield _Passage(each.start(), each.end(), content)
            continue
        if "/" in each[0] or "-" in each[0] or "_" in each[0]:
            # A path or a list may hold one.
            for part in re.finditer(r"[A-Za-z0-9+]{12,}={0,2}", each[0]):
                if _looks_encoded(part[0], inside=False) and (content := _from_base(part[0])) is not None:
                    yield _Passage(each.start() + part.start(), each.start() + part.end(), content)


def _from_base(blob: str) -> str | None:
    digits = blob.rstrip("=")
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    altered = digits.replace("-", "+").replace("_", "/")
    try:
        text = _text_of(base64.b64decode(altered + "=" * (-len(altered) % 4), validate=True))
    except (binascii.Error, ValueError):
        text = None
    if text is None and re.fullmatch(r"[A-Z2-7]{16,}|[a-z2-7]{16,}", digits := blob.rstrip("=")):
        try:
            text = _text_of(base64.b32decode(digits.upper() + "=" * (-len(digits) % 8)))
        except (binascii.Error, ValueError):
            text = None
    return text


# -- numbers -----------------------------------------------------------------------------------------------------------------


def _numbers(text: str) -> Iterator[_Passage]:
    for pattern, content_of in ((_HEX, _from_hex), (_BITS, _from_bits), (_CODES, _from_codes)):
        passages = [
            _Passage(*found.span(), content)
            for found in pattern.finditer(text)
            if (content := content_of(found[0])) is not None
        ]
        if passages:
            yield from passages
            return


def _from_hex(digits: str) -> str | None:
    return _text_of(bytes.fromhex(digits.removeprefix("0x")))


def _from_bits(bits: str) -> str | None:
    return _text_of(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)))


def _from_codes(passage: str) -> str | None:
    codes = _CODE.findall(passage)
    return next((content for radix in (2, 16, 10, 8) if (content := _in_radix(codes, radix)) is not None), None)


def _in_radix(codes: Sequence[str], radix: int) -> str | None:
    try:
        numbers = [int(code, radix) for code in codes]
    except ValueError:
        return None
    if max(numbers) > 255 or (radix == 2 and max(map(len, codes)) < 7):
        return None
    return _text_of(bytes(numbers))


# -- escapes -----------------------------------------------------------------------------------------------------------------


def _escapes(text: str) -> Iterator[_Passage]:
    if "%" in text and len(_PERCENT.findall(text)) >= _FEWEST_ESCAPES:
        for found in _CHUNK.finditer(text):
            if "%" not in found[0]:
                continue
            content = unquote(found[0], errors="replace").replace("+", " ")
            if content != found[0] and "\ufffd" not in content and all(map(_is_text, content)):
                yield _Passage(found.start(), found.end(), content)
        return
    if ("\\" in text or "&#" in text) and len(_ESCAPE.findall(text)) >= _FEWEST_ESCAPES:
        for found in re.finditer(rf"(?:{_ESCAPE.pattern})+", text):
            content = _ESCAPE.sub(_escaped, found[0])
            if all(map(_is_text, content)):
                yield _Passage(found.start(), found.end(), content)


def _escaped(found: re.Match[str]) -> str:
    digits = found[1] or found[2]
    if digits is None:
        return html.unescape(found[0])
    code = int(digits, 16)
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"


# -- ROT13 and mirror writing ------------------------------------------------------------------------------------------------

_COMMON = (
    "the", "and", "you", "that", "was", "for", "are", "with", "this", "have", "from", "how",
    "what", "make", "can", "your", "write", "about", "explain", "give", "tell", "which", "who", "why",
    "when", "where", "would", "should", "could", "people", "into", "some", "them", "than", "then", "will",
    "their", "there", "please", "without", "step", "steps", "someone", "using", "like",
)  # fmt: skip


def _rot13(word: str) -> str:
    return codecs.encode(word, "rot13")


def _mirrored(word: str) -> str:
    return word[::-1]


MARKERS = frozenset(turned for word in _COMMON for turn in (_rot13, _mirrored) if (turned := turn(word)) not in ranks())
"""Common words in ROT13 and in mirror writing. Where none of them stands, no sentence is written so."""


def _ciphers(text: str) -> Iterator[_Passage]:
    if MARKERS.isdisjoint(_WORD.findall(text.lower())):
        return
    words = list(_WORD.finditer(text))
    lower = [each[0].lower() for each in words]
    ways = {
        turn: [each for each in _stretches(lower, turn) if each[2] > 1 and 2 * each[2] > each[1] - each[0]]
        for turn in (_rot13, _mirrored)
    }
    turn = max(ways, key=lambda way: sum(only for _, _, only in ways[way]))
    if max((only for *_, only in ways[turn]), default=0) < _SHORTEST_RUN:
        return
    for first, last, _ in ways[turn]:
        start, end = words[first].start(), words[last].end()
        if turn is _rot13:
            yield _Passage(start, end, codecs.encode(text[start:end], "rot13"))
            continue
        # Whole sentences are mirrored from their last sign on; a sign at the left end belongs to them.
        while start > 0 and text[start - 1] in "?!.":
            start -= 1
        yield _Passage(start, end, text[start:end][::-1])


def _stretches(words: Sequence[str], turn: Callable[[str], str]) -> Iterator[tuple[int, int, int]]:
    """Stretches of words: first and last index, and how many words of each make sense only when turned.

    A word that makes sense only as it stands ends a stretch, so that nothing can be turned away.
    """
    first = last = only = 0
    for at, word in enumerate(words):
        turned = turn(word)
        as_it_stands, otherwise = known(word), known(turned)
        if as_it_stands and not otherwise:
            if only:
                yield first, last, only
            first, only = at + 1, 0
        elif otherwise:
            last = at
            only += not as_it_stands
    if only:
        yield first, last, only
