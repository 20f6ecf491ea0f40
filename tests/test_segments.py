"""Cutting a growing text into units, and holding back its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlpm_guard.segments import LONGEST_SENTENCE, Every, HoldBack, Segmenter, squeeze, tail, word_starts

TEXT = st.text(alphabet=st.sampled_from("ab.!?…\"')1 \t\r\n\u2028。।é🙂\ud83d\ude00\u200b\u0301"), max_size=900)
SENTENCES: Every = "sentence"


def units(chunks: Iterable[str], every: Every = SENTENCES) -> list[str]:
    segmenter = Segmenter(every, word_starts)
    found = []
    for chunk in chunks:
        segmenter.push(chunk)
        while (unit := segmenter.next()) is not None:
            found.append(unit.lead + unit.text)
    rest = segmenter.rest()
    return [*found, rest.lead + rest.text] if rest.lead + rest.text else found


def chunked(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@given(TEXT, st.lists(st.integers(0, 1000), max_size=40), st.sampled_from([SENTENCES, 1, 3, 40]))
@example("One。Two. \r\n\r\nThree", [4, 9, 10, 11], SENTENCES)
@example(" " * 500 + "a" * 500 + ". b", [250, 600], SENTENCES)
@settings(max_examples=300, deadline=None)
def test_units_join_to_the_text_and_do_not_depend_on_the_chunks(text: str, cuts: list[int], every: Every) -> None:
    whole = units([text], every)
    assert "".join(whole) == text
    assert units(chunked(text, cuts), every) == whole
    assert units(text, every) == whole


def test_a_sentence_is_a_unit_with_the_blank_behind_it() -> None:
    assert units(["Hello there. How are you?\nFine!  (Really.) He said.\nBye"]) == [
        "Hello there. ", "How are you?\n", "Fine! ", " (Really.) ", "He said.\n", "Bye",
    ]  # fmt: skip
    assert units(["你好。再见！好"]) == ["你好。", "再见！", "好"]


def test_what_has_no_letter_belongs_to_the_next_sentence() -> None:
    assert units(["1. Mix.\n\n---\n2. Bake.\n"]) == ["1. Mix.\n", "\n---\n2. Bake.\n"]


def test_a_sentence_is_complete_only_when_a_blank_shows_it() -> None:
    segmenter = Segmenter("sentence", word_starts)
    segmenter.push("It costs 3.")
    assert segmenter.next() is None
    segmenter.push("50 or e.")
    segmenter.push("g")
    assert segmenter.next() is None
    segmenter.push('. "four." ')
    unit = segmenter.next()
    assert unit is not None
    assert unit.text == "It costs 3.50 or e.g. "


def test_a_run_without_a_break_is_cut_between_words() -> None:
    text = "words " * 500
    found = units([text])
    assert "".join(found) == text
    assert all(unit.endswith("words ") and 100 < len(unit) <= LONGEST_SENTENCE for unit in found[:-1])


def test_only_a_word_that_is_too_long_alone_is_cut() -> None:
    found = units(["short " + "x" * 450 + " end"])
    assert [len(unit) for unit in found] == [6, 200, 200, 54]


@pytest.mark.parametrize("every", [1, 4, 25])
def test_n_tokens_are_a_unit(every: int) -> None:
    found = units(f"w{i} " for i in range(100))
    assert len(units((f"w{i} " for i in range(100)), every)) == 100 // every
    assert units(["one two thr", "ee four five"], 2) == ["one two ", "three four ", "five"]
    assert len(found) < 5


def test_a_unit_of_tokens_has_a_longest_length_too() -> None:
    found = units(["x" * 5000], 100)
    assert max(len(unit) for unit in found) == 1000


def test_units_of_tokens_use_the_tokens_they_are_given() -> None:
    calls: list[int] = []

    def letters(texts: Sequence[str]) -> list[list[int]]:
        calls.append(sum(map(len, texts)))
        return [[at for at, char in enumerate(text) if not char.isspace()] for text in texts]

    segmenter = Segmenter(6, letters)
    segmenter.push("abc de fgh i ")
    first = segmenter.next()
    assert first is not None
    assert first.text == "abc de fgh "
    assert sum(calls) <= 2 * len("abc de fgh i ")


def test_long_blanks_travel_in_front_of_the_unit() -> None:
    segmenter = Segmenter("sentence", word_starts)
    segmenter.push("\n" * 1000 + "Hello. ")
    unit = segmenter.next()
    assert unit is not None
    assert len(unit.lead) == 1000
    assert unit.text == "Hello. "


@given(st.lists(TEXT, max_size=8), st.sampled_from([None, 0, 1, 7, 100]), st.sampled_from([None, word_starts]))
@settings(max_examples=200, deadline=None)
def test_what_is_held_back_is_released_at_the_end(pieces: list[str], amount: int | None, starts: object) -> None:
    held = HoldBack(amount, starts)  # type: ignore[arg-type]
    released = ""
    given_so_far = ""
    for piece in pieces:
        released += held.add(piece)
        given_so_far += piece
        assert given_so_far.startswith(released)
        if amount is None:
            assert released == ""
        elif starts is None:
            assert len(given_so_far) - len(released) == min(amount, len(given_so_far))
    assert released + held.rest() == given_so_far


def test_tokens_are_held_back_whole() -> None:
    held = HoldBack(2, word_starts)
    assert held.add("one two three four. ") == "one two "
    assert held.add("five ") == "three "
    assert held.add("  ") == ""
    assert held.rest() == "four. five   "


def test_the_tail_of_a_text_begins_at_a_word() -> None:
    assert tail("alpha beta gamma", 7) == "gamma"
    assert tail("alpha beta gamma", 5) == "gamma"
    assert tail("alpha beta gamma", 6) == "gamma"
    assert tail("alpha beta gamma", 10) == "beta gamma"
    assert tail("alpha beta gamma", 100) == "alpha beta gamma"
    assert tail("alphabetagamma", 5) == "gamma"
    assert tail("alpha", 0) == ""


def test_long_blank_runs_are_squeezed() -> None:
    assert squeeze("a" + " " * 500 + "b" + " " * 9 + "c") == "a  b" + " " * 9 + "c"
