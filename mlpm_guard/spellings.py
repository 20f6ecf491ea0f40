"""Words spelt with other signs (leet), with something between their letters, or without anything between the words.

Undone where what comes out is English, by the list of common words: numbers, units, names of models, identifiers and code stay
what they are. Time grows with the length of the text only. Imports words and look-alike letters only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product

from mlpm_guard.lookalikes import plain_letter
from mlpm_guard.words import Split, known, of_length, rank, share_known, split

# -- letters with something between them -------------------------------------------------------------------------------------

_SPACED = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,8}[^\W_](?![^\W_])){2,}")
_FEWEST_LETTERS = 3
_ABBREVIATION = 8
_KNOWN, _KNOWN_MARKED = 0.6, 0.4
_MARKED = 1.3
_CLEAR = 12
_LONGEST_WORD = 16
_MOSTLY_LETTERS = 0.6
_BETWEEN_LETTERS = re.compile(r"[\s._*~•·-]+|(?P<sign>[|+:/^,;'’])(?P=sign)?")
_ODD = 0.25
_END_OF_WORD = re.compile(r"[,;:?!.]")
_SIGNS = "@$!|+("
_WORDS_OF_ONE = frozenset("ai")


def join_spaced(text: str) -> str:
    """Words whose letters stand apart, together. Where nothing marks the ends of words, the likeliest words are taken."""
    pieces: list[str] = []
    at = 0
    for found in _SPACED.finditer(text):
        start, joined = _joined(text, found)
        if joined is not None:
            pieces += [text[at:start], joined]
            at = found.end()
    return "".join([*pieces, text[at:]]) if pieces else text


def _joined(text: str, found: re.Match[str]) -> tuple[int, str | None]:
    run, start = found[0], found.start()
    letters = [char for char in run if char.isalnum()]
    between = re.split(r"[^\W_]", run)[1:-1]
    inner = Counter(between).most_common(1)[0][0]
    letters, between = _with_signs(letters, between, inner)
    before = start - len(inner) - 1
    if (
        before >= 0
        and text[before] in _SIGNS
        and text[before + 1 : start] == inner
        and (before == 0 or text[before - 1].isspace())
    ):
        letters, between, start = [text[before], *letters], [inner, *between], before
    plain = sum(map(str.isalpha, letters))
    if plain < _FEWEST_LETTERS or plain < _MOSTLY_LETTERS * len(letters):
        return start, None
    if inner == " " and {char.lower() for char in letters} <= _WORDS_OF_ONE:
        return start, None
    odd = sum(not _BETWEEN_LETTERS.fullmatch(gap) for gap in between)
    if odd > (_ODD * len(between) if len(letters) >= _ABBREVIATION else 0):
        return start, None  # a list, a formula, code
    if len(letters) < _ABBREVIATION and plain < len(letters) and rank("".join(map(_first_option, letters)).lower()) is None:
        return start, None
    if inner == "." and len(letters) < _ABBREVIATION and "".join(letters).isupper():
        return start, None
    free = _spelt("".join(letters))
    parts, signs, needed = [free], [""], _KNOWN
    for ends in _WORD_ENDS:
        words, marks = _cut(letters, between, inner, ends)
        pieces = [_one(word) for word in words]
        # Without ends, words are only guessed; what marks them costs little more than the best guess.
        if len(words) > 1 and sum(part.cost for part in pieces) <= _MARKED * free.cost:
            parts, signs = pieces, marks
            needed = _KNOWN if len(letters) < _CLEAR else _KNOWN_MARKED
            break
    total = sum(len(word) for part in parts for word in part.words)
    share = sum(part.known * sum(map(len, part.words)) for part in parts) / total
    if share < needed or (len(letters) <= _FEWEST_LETTERS and len(parts[0].words) > 1):
        return start, None
    return start, "".join(" ".join(part.words) + sign for part, sign in zip(parts, signs, strict=True))


_Ends = Callable[[str, str], bool]
_WORD_ENDS: tuple[_Ends, ...] = (
    lambda between, inner: between != inner,
    lambda between, inner: len(between) > len(inner),
    lambda between, inner: any(char.isspace() for char in between) and between != inner,
)
"""What may mark the end of a word, by what stands between two letters and what mostly stands there."""


def _first_option(char: str) -> str:
    return _options(char)[0]


def _with_signs(letters: Sequence[str], between: Sequence[str], inner: str) -> tuple[list[str], list[str]]:
    """Signs that stand for letters (`h @ c k`) are letters, not what is between them."""
    found, gaps = [letters[0]], []
    for gap, letter in zip(between, letters[1:], strict=True):
        if len(gap) == 2 * len(inner) + 1 and gap[len(inner)] in _SIGNS and gap.startswith(inner) and gap.endswith(inner):
            found.append(gap[len(inner)])
            gaps.append(inner)
            gap = inner
        found.append(letter)
        gaps.append(gap)
    return found, gaps


def _cut(letters: Sequence[str], between: Sequence[str], inner: str, ends: _Ends) -> tuple[list[str], list[str]]:
    words, signs = [letters[0]], []
    for gap, letter in zip(between, letters[1:], strict=True):
        if ends(gap, inner):
            mark = None if inner.strip() and _END_OF_WORD.search(inner) else _END_OF_WORD.search(gap)
            signs.append(f"{mark[0] if mark else ''} ")
            words.append(letter)
        else:
            words[-1] += letter
    return words, [*signs, ""]


def _one(word: str) -> Split:
    """A word that was marked as one: it stays one, unless it is clearly several, or too long for one."""
    if word.isdecimal():
        return Split((word,), 0.0, 1.0)
    found = _spelt(word)
    if (
        len(found.words) > 1
        and len(word) <= _LONGEST_WORD
        and (found.known < 1.0 or (len(word) < _ABBREVIATION and min(map(len, found.words)) < _FEWEST_LETTERS))
    ):
        return found._replace(words=("".join(found.words),), known=float(known("".join(found.words))))
    return found


def _spelt(word: str) -> Split:
    """The likeliest reading of letters that stood apart, leet undone."""
    if word.isalpha():
        return split(word)
    if (found := _best_reading(word)) is not None:
        return split(found)
    return min((split("".join(variant)) for variant in islice(_variants(word), 2)), key=lambda each: each.cost)


# -- words without anything between them -------------------------------------------------------------------------------------

_RUN_TOGETHER = re.compile(r"(?<![^\W_])[A-Za-z]{14,}(?![^\W_])")
_SHARE_TOGETHER, _SHARE_CAPITALS = 0.4, 0.8
_FEWEST_WORDS = 3
_KNOWN_TOGETHER = 0.85
_SENSE = 2.5  # nats a letter; English as it is written has less, letters by chance more


def cut_together(text: str) -> str:
    """Sentences written as one word, cut into words, where they make up much of the text."""
    found = [each for each in _RUN_TOGETHER.finditer(text) if not known(each[0])]
    # Names in code are written so too, with capitals inside.
    needed = _SHARE_TOGETHER if all(each[0][1:].islower() or each[0].isupper() for each in found) else _SHARE_CAPITALS
    if sum(len(each[0]) for each in found) < needed * max(sum(map(str.isalpha, text)), 1):
        return text
    pieces: list[str] = []
    at = 0
    for each in found:
        parts = split(each[0])
        if parts.known >= _KNOWN_TOGETHER and len(parts.words) >= _FEWEST_WORDS and parts.cost <= _SENSE * len(each[0]):
            pieces += [text[at : each.start()], " ".join(parts.words)]
            at = each.end()
    return "".join([*pieces, text[at:]])


# -- leet --------------------------------------------------------------------------------------------------------------------

_LEET = {
    "0": "o", "1": "il", "2": "zr", "3": "e", "4": "a", "5": "s", "6": "gb", "7": "t", "8": "b", "9": "gq",
    "@": "a", "!": "il", "|": "il", "$": "s", "+": "t", "(": "c", "<": "c", "{": "c", "[": "c", "^": "a",
    "€": "e", "£": "l", "¥": "y", "¢": "c", "§": "s", "¡": "i", "µ": "u", "ƒ": "f",
}  # fmt: skip
_DRAWN = {
    "|\\/|": "m", "/\\/\\": "m", "\\/\\/": "w", "|/\\|": "w", "/\\/": "n", "|\\|": "n", "/-\\": "a", "|-|": "h", "]-[": "h",
    "}{": "h", "(_)": "u", "|_|": "u", "\\_/": "u", "()": "o", "[]": "o", "|)": "d", "|]": "d", "[)": "d", "|3": "b", "|8": "b",
    "|<": "k", "|{": "k", "|_": "l", "_|": "j", "|=": "f", "|2": "r", "|>": "p", "|*": "p", "><": "x", "`/": "y", "'/": "y",
    "\\|/": "y", "\\/": "v", "/\\": "a",
}  # fmt: skip
_DRAWN_PATTERN = re.compile("|".join(map(re.escape, sorted(_DRAWN, key=len, reverse=True))))
_CHUNK = re.compile(r"\S+")
_LEADING = "\"'“‘«([{<*_~`¿¡"
_TRAILING = "\"'”’».,;:?!)]}>*_~`…"
_JOINTS = re.compile(r"([-/.,:;'’_\"“”]+)")
_ENCLOSED = re.compile(r"[0-9]+[A-Za-z]{1,3}")
_IN_WORD = re.compile(r"(?<=[A-Za-z])[.*~^|]+(?=[A-Za-z])")
_MASK = re.compile(r"[A-Za-z]+(?:[*#]+[A-Za-z]+)+")
_ADDRESS = re.compile(r"://|www\.|[\w.+-]+@\w+\.\w")
_MOST_VARIANTS = 64
_SHORTEST = 4
_FUNCTION_WORD = 300
_AROUND = "0123456789@$!|+(<{[^"
_INSIDE = re.compile(r"[A-Za-z][^A-Za-z]+[A-Za-z]")
_LONG_WORD = 5
_HEAVY_SHARE, _HEAVY_WORDS = 0.25, 2
_ENGLISH, _SURELY_ENGLISH = 0.45, 0.75
_SANDWICH = re.compile(r"[A-Za-z][0-9@$!|+]+[A-Za-z]")
_LONGEST_CHUNK = 64


def undo_leet(text: str) -> str:
    """Letters for digits and signs.

    A word alone is read so only if it is one of four letters or more, most of them letters. Where many words are spelt so, all
    are: short ones and numbers that make common words, and words that are not in the list.
    """
    chunks = list(_CHUNK.finditer(text))
    readings: dict[int, str] = {}
    spelt = accented = words = 0
    for index, chunk in enumerate(chunks):
        words += 1
        if (chunk[0].isalpha() and chunk[0].isascii()) or len(chunk[0]) > _LONGEST_CHUNK or _ADDRESS.search(chunk[0]):
            continue
        reading, likely = _read(chunk[0], sure=True)
        spelt += likely
        accented += likely and chunk[0].strip(_LEADING + _TRAILING).isalpha()
        if reading != chunk[0]:
            readings[index] = reading
    reading = _with(text, chunks, readings)
    if spelt >= _HEAVY_WORDS and spelt >= _HEAVY_SHARE * words:
        all_read = {
            index: _read(chunk[0], sure=False)[0]
            for index, chunk in enumerate(chunks)
            if not chunk[0].isalpha() or not chunk[0].isascii()
            if len(chunk[0]) <= _LONGEST_CHUNK
        }
        heavy = _with(text, chunks, all_read)
        # Accents alone are what other languages have.
        if share_known(heavy) >= (_ENGLISH if spelt > accented else _SURELY_ENGLISH):
            return heavy
    return reading


def _with(text: str, chunks: Sequence[re.Match[str]], readings: Mapping[int, str]) -> str:
    pieces: list[str] = []
    at = 0
    for index, reading in readings.items():
        pieces += [text[at : chunks[index].start()], reading]
        at = chunks[index].end()
    return "".join([*pieces, text[at:]]) if pieces else text


def _read(chunk: str, *, sure: bool) -> tuple[str, bool]:
    """What a run of signs without spaces says, and whether it looks like leet."""
    start = len(chunk) - len(chunk.lstrip(_LEADING))
    end = max(len(chunk.rstrip(_TRAILING)), start)
    core = chunk[start:end]
    if core.isalpha() and core.isascii() and (sure or known(core) or not set(chunk) & set(_SIGNS)):
        return chunk, False
    if _DRAWN_PATTERN.search(chunk) and (not sure or "|" in chunk or "\\" in chunk):
        plain = _DRAWN_PATTERN.sub(lambda each: _DRAWN[each[0]], chunk)
        reading, likely = (plain, False) if plain.isalpha() else _read_plain(plain, sure=sure)
        bare = reading.strip(_LEADING + _TRAILING)
        if len(bare) >= (_SHORTEST if sure else 1) and bare.isalpha() and (known(bare) or not sure):
            return reading, True
        if likely:
            return reading, True
    return _read_plain(chunk, sure=sure)


def _read_plain(chunk: str, *, sure: bool) -> tuple[str, bool]:
    start = len(chunk) - len(chunk.lstrip(_LEADING))
    end = max(len(chunk.rstrip(_TRAILING)), start)
    looks = False
    # A sign at an end may be punctuation or a letter: what makes a word decides, punctuation first.
    for first, last in dict.fromkeys(
        ((start, end), (start, _upto_signs(chunk, end)), (_from_signs(chunk, start), end), (0, len(chunk)))
    ):
        core = chunk[first:last]
        if core.isalpha() and core.isascii():
            if known(core):
                return chunk, False
            continue
        found, likely = _read_core(core, sure=sure)
        looks |= likely
        if found is not None:
            return chunk[:first] + found + chunk[last:], looks
    reading, likely = _read_parts(chunk, start, end, sure=sure)
    return reading, looks or likely


def _upto_signs(chunk: str, end: int) -> int:
    while end < len(chunk) and chunk[end] in _LEET:
        end += 1
    return end


def _from_signs(chunk: str, start: int) -> int:
    while start > 0 and chunk[start - 1] in _LEET:
        start -= 1
    return start


def _read_parts(chunk: str, start: int, end: int, *, sure: bool) -> tuple[str, bool]:
    parts = _JOINTS.split(chunk[start:end])
    if len(parts) == 1:
        return chunk, False
    likely = False
    for index in range(0, len(parts), 2):
        if parts[index] and not parts[index].isalpha():
            found, looks = _read_core(parts[index], sure=sure)
            likely |= looks
            if found is None and not sure and index and parts[index - 1] in "'’" and parts[index] in _LEET:
                found = _LEET[parts[index]][0]
            parts[index] = parts[index] if found is None else found
    return chunk[:start] + "".join(parts) + chunk[end:], likely


def _read_core(core: str, *, sure: bool) -> tuple[str | None, bool]:
    """A word for signs and letters, or None; and whether it looks like leet."""
    if not core:
        return None, False
    joined = _IN_WORD.sub("", core)
    if joined != core and joined.isalpha() and len(joined) >= _SHORTEST and known(joined):
        pieces = _IN_WORD.split(core)
        longest = max(map(len, pieces))
        if longest > 1 and not any(known(piece) and len(piece) >= _SHORTEST for piece in pieces) and not joined.isupper():
            return joined, True
    if _MASK.fullmatch(core) and len(core) >= _SHORTEST:
        return _unmasked(core), False
    letters = sum(map(str.isalpha, core))
    if letters == len(core) and core.isascii():
        return None, False
    if not all(char.isalpha() or char in _LEET for char in core):
        return None, False
    word = _best_reading(core)
    if word is None:
        if sure and letters >= 2 and len(core) > _SHORTEST and _SANDWICH.search(core):
            return None, True
        if sure or letters == 0 or core.isalpha() or any(char in _JOINTS.pattern for char in core):
            return None, False
        return min(("".join(each) for each in islice(_variants(core), 4)), key=lambda each: split(each).cost), False
    if letters == 0:
        # Mostly a number, unless it makes one of the words that every sentence has.
        common = rank(word)
        return (None if sure or common is None or common > _FUNCTION_WORD else word), False
    strange = sum(not (char.isascii() and char.isalpha()) for char in core)
    accents = all(char.isalpha() for char in core)
    bare = core.strip(_AROUND)
    numbered = _ENCLOSED.fullmatch(core) is not None or (bare != core and (len(bare) < 2 or (bare.isalpha() and known(bare))))
    if accents and sure:
        return None, len(core) >= 3
    likely = not numbered and len(core) >= 3
    if not sure:
        return (None if numbered and len(bare) >= 3 and known(bare) else word), likely
    if likely and len(word) >= _SHORTEST and letters > strange and (_INSIDE.search(core) or len(word) >= _LONG_WORD):
        return word, True
    return None, likely


def _unmasked(core: str) -> str | None:
    """The commonest word behind `k*ll`."""
    pattern = re.compile(re.sub(r"[*#]", "[a-z]", core.lower()))
    return next((word for word in of_length(len(core)) if pattern.fullmatch(word)), None)


def _options(char: str) -> str:
    if char.isalpha() and char.isascii():
        return char
    return _LEET.get(char) or plain_letter(char) or char


def _variants(core: str) -> Iterator[tuple[str, ...]]:
    options: list[str] = []
    total = 1
    for char in core:
        found = _options(char)
        found = found if total * len(found) <= _MOST_VARIANTS else found[:1]
        total *= len(found)
        options.append(found)
    return product(*options)


def _best_reading(core: str) -> str | None:
    """The commonest word that the signs may spell."""
    best: tuple[int, str] | None = None
    for variant in _variants(core):
        word = "".join(variant)
        place = rank(word.lower())
        if place is not None and (best is None or place < best[0]):
            best = place, word
    return None if best is None else best[1]
