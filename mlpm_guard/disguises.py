"""What a disguised text says: its readings, each with the name of its form. No encoder, no scores, no policy.

A guard reads layer states, and those of `h0w t0 m4k3`, of base64 or of look-alike letters are states of gibberish: they say
little, and what they say is by chance. A language model that answers reads through most disguises. So does this module, one
step after another: invisible, stacked and look-alike characters (`conversation.normalise`), encoded passages (`encodings`),
letters that stand apart, words without spaces, leet (`spellings`). What comes out last is judged, and the content of encoded
passages also alone, so that the request to decode it does not dilute it.

Is the text as it came still judged? It is, unless it is disguised beyond doubt: little of it is English, much more of its
reading is, and nothing that could be read before is lost. Then it is left out, for a benign text in disguise is flagged for its
looks otherwise. This fails closed, because a reading keeps what it does not understand: every step changes only what is no word
of the list, or keeps all letters in their order; a word of another script stays, unless it turns into an English one or stands
among words that mix scripts; and where anything is in doubt, both are judged. The words decide, so that text in another
language is judged as it came too. An answer is always judged as it came (`judging`).

An ordinary prompt pays for a few searches by expressions that start at rare characters. Nothing here takes more time than grows
with the length of the text, and a reading is no longer than the text, but for what NFKC expands and the spaces that are set
between words.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from mlpm_guard.conversation import normalise
from mlpm_guard.encodings import MARKERS, decode
from mlpm_guard.lookalikes import FOLDS
from mlpm_guard.spellings import cut_together, join_spaced, undo_leet
from mlpm_guard.verdict import Form
from mlpm_guard.words import known, share_known

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SIGN_IN_WORD = re.compile(r"[0-9@$!|+^\\*#~_.=:][A-Za-z]")
_APART = re.compile(r"[^A-Za-z0-9][A-Za-z0-9][^A-Za-z0-9]{1,8}[A-Za-z0-9][^A-Za-z0-9]{1,8}[A-Za-z0-9](?![A-Za-z0-9])")
_CODES = re.compile(r"[0-9][0-9a-fA-F]{1,7}(?:[^0-9A-Za-z]{1,3}(?:0[xb])?[0-9][0-9a-fA-F]{1,7}){4}")
_LONG, _TOGETHER = 12, 14
_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH = 0.45
_LOST = 0.6
_FOREIGN = 0.1


@dataclass(frozen=True, slots=True)
class Undisguised:
    """What a disguised text says.

    Attributes:
        form: the furthest step that was needed.
        text: the whole text, undisguised.
        payload: what its encoded passages say, alone; None where there are none, or nothing but them.
        certain: whether the text as it came says nothing that this does not say.
    """

    form: Form
    text: str = field(repr=False)
    payload: str | None = field(default=None, repr=False)
    certain: bool = False


def undisguise(text: str) -> Undisguised | None:
    """The reading of a disguised text; None for one that is what it seems."""
    plain = text if text.isascii() and not _CONTROL.search(text) else _in_latin(normalise(text))
    longest = _longest(plain)
    decoded = decode(plain) if _may_be_encoded(plain, longest) else None
    contents = decoded.contents if decoded is not None else ()
    whole = _respelled(plain if decoded is None else decoded.text, longest)
    if contents:
        whole = normalise(whole)
    if whole == text or (whole == plain and _WORD.findall(whole) == _WORD.findall(text)):
        return None  # other quotation marks, spaces or widths of punctuation say nothing else
    form: Form = "decoded" if contents else "normalised" if whole == plain else "respelled"
    payload = _respelled(normalise("\n".join(contents)), longest).strip()
    return Undisguised(form, whole, payload if payload and payload != whole.strip() else None, _certain(text, whole))


def _longest(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _respelled(text: str, longest: int) -> str:
    if not text.isascii() or _APART.search(text):
        text = join_spaced(text)
    if not text.isascii() or _SIGN_IN_WORD.search(text):
        text = undo_leet(text)
    return text if longest < _TOGETHER else cut_together(text)


def _may_be_encoded(text: str, longest: int) -> bool:
    if longest >= _LONG or not MARKERS.isdisjoint(text.lower().split()):
        return True
    return "=" in text or "%" in text or "\\" in text or "&#" in text or _CODES.search(text) is not None


def _in_latin(text: str) -> str:
    """A text that is written in look-alike letters throughout, in Latin ones, if that makes it English."""
    if text.isascii():
        return text
    folded = text.translate(FOLDS)
    return folded if folded.isascii() and share_known(folded) >= _ENGLISH else text


def _certain(text: str, reading: str) -> bool:
    share = share_known(reading)
    if share < _ENGLISH or share_known(text) > _LOST * share:
        return False
    if text.isascii():
        return True
    # Whole words of another script may be just that, unless what they look like is an English word.
    words = _WORD.findall(unicodedata.normalize("NFKD", text))
    foreign = sum(len(word) for word in words if not any(map(str.isascii, word)) and not known(word.translate(FOLDS)))
    return foreign <= _FOREIGN * sum(map(len, words))
