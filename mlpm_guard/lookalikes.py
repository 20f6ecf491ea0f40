"""Letters of other scripts, and signs, that are drawn like a Latin letter.

Chosen by eye, as the everyday and the playful part of what Unicode calls confusables (UTS #39). What NFKC folds already
(full-width, mathematical, circled letters) is not repeated here. Imports nothing of the library.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping

_DRAWN_ALIKE = {
    "a": "аɑα⍺", "b": "ЬƄьᏏᖯƅв", "c": "сϲςᴄⲥꮯ", "d": "ԁɗᏧᑯժ", "e": "еҽєε℮ꬲ", "f": "ғẝքϝ", "g": "ɡցᶃ", "h": "һհᏂн",
    "i": "іıɩιꙇᎥɪ⍳", "j": "јϳյ", "k": "кκқҡᴋⲕ", "l": "ⅼӏӀⵏǀ∣ⲓʟ", "m": "мᴍ", "n": "пոηռ", "o": "оοօσ๐ᴏⲟဝჿ૦໐ഠ", "p": "рρⲣ⍴",
    "q": "ԛգզ", "r": "гᴦⲅꭇꮁ", "s": "ѕꜱƽꮪ", "t": "тτᴛƭ", "u": "υսᴜʋꞟц", "v": "νѵᴠ∨⋁ꮩ", "w": "ԝѡᴡωաɯꮃшщ", "x": "хχҳⲭ᙮",
    "y": "уγүʏყყɣўჸ", "z": "ᴢꮓ",
    "A": "АΑᎪᗅꓮΛ", "B": "ВΒᏴᗷꓐ฿", "C": "СϹᏟⲤꓚ", "D": "Ꭰᗞᗪꓓ", "E": "ЕΕᎬꓰⴹΞ", "F": "ϜᖴꓝҒ", "G": "ԌᏀᏳꓖ", "H": "НΗᎻᕼꓧⲎ",
    "I": "ІΙ", "J": "ЈͿᎫᒍꓙ", "K": "КΚᏦꓗⲔ", "L": "ᏞᒪꓡᏓᏐԼ", "M": "МΜᎷᗰꓟⲘϺ", "N": "ΝꓠⲚИ", "O": "ОΟՕꓳⲞⵔ", "P": "РΡᏢᑭꓑⲢ", "Q": "Ԛⵕ",
    "R": "ᎡᏒᖇꓣЯ", "S": "ЅՏᏚᏕꓢ", "T": "ТΤᎢꓔⲦ", "U": "ՍᑌꓴԱ", "V": "ѴᏙꓦⴸ", "W": "ԜᎳᏔꓪШ", "X": "ХΧꓫⲬⵝ", "Y": "ҮΥᎩᎽꓬⲨ", "Z": "ΖᏃꓜ",
}  # fmt: skip
_NAMED = re.compile(
    r"(?:LATIN LETTER SMALL CAPITAL|(?:NEGATIVE|CROSSED NEGATIVE) (?:SQUARED|CIRCLED) LATIN CAPITAL LETTER"
    r"|TAG LATIN (?:SMALL|CAPITAL) LETTER) ([A-Z])$"
)
# Blocks in which such names stand, so that not every character of Unicode has to be asked.
_BLOCKS = (range(0x0250, 0x02B0), range(0x1D00, 0x1D80), range(0xA700, 0xA800), range(0x1F130, 0x1F190))
_STROKES = {
    "ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "ɓ": "b", "ƙ": "k", "ŋ": "n", "ƀ": "b", "ɨ": "i", "ɏ": "y",
    "ƶ": "z", "ɇ": "e", "ɍ": "r", "ɵ": "o", "ʉ": "u", "ɛ": "e", "ə": "e", "ɔ": "c", "þ": "p", "ß": "b", "æ": "a", "œ": "o",
    "ǝ": "e", "ɐ": "a", "ɥ": "h", "ʇ": "t", "ʍ": "w", "ʎ": "y", "ɹ": "r", "ʞ": "k", "€": "e", "£": "l", "¥": "y", "¢": "c",
    "§": "s", "¡": "i", "µ": "u", "ƒ": "f", "ⱥ": "a", "ȼ": "c", "ꞓ": "c", "ᵽ": "p", "ꝁ": "k", "₳": "a", "₵": "c", "₭": "k",
    "₱": "p", "₮": "t", "₦": "n", "₩": "w", "฿": "b", "₴": "s",
}  # fmt: skip


def _folds() -> dict[int, str]:
    found = {ord(alike): latin for latin, alikes in _DRAWN_ALIKE.items() for alike in alikes}
    for block in _BLOCKS:
        for code in block:
            if named := _NAMED.match(unicodedata.name(chr(code), "")):
                found.setdefault(code, named[1].lower() if code < 0x10000 else named[1])
    return found


FOLDS: Mapping[int, str] = _folds()
"""Code points of letters that look like a Latin one, and that one; for `str.translate`."""

SIGNS = "".join(chr(code) for code in FOLDS if not chr(code).isalnum())
"""Those of them that are no letters or digits by Unicode's properties."""


@functools.lru_cache(maxsize=4096)
def plain_letter(char: str) -> str | None:
    """The ASCII letter, in lower case, that a Latin letter with accents or strokes is made from; None for any other character.

    Languages need these letters, so the answer says what they may stand for in a disguise, not that they are one.
    """
    lower = char.lower()
    if lower in _STROKES:
        return _STROKES[lower]
    base = unicodedata.normalize("NFD", lower)[:1]
    return base if base.isascii() and base.isalpha() else None
