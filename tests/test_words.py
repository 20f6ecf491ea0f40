"""The list of common words: forms of words, shares, and letters cut into words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpm_guard.words import known, of_length, rank, ranks, share_known, split


@pytest.mark.parametrize("word", ["the", "The", "bomb", "bombs", "digestion", "stopped", "making", "cities", "ransomware"])
def test_words_and_their_forms_are_known(word: str) -> None:
    assert known(word)


@pytest.mark.parametrize("word", ["", "bmob", "xqzt", "h0w", "бомба"])
def test_other_letters_are_not(word: str) -> None:
    assert not known(word)


def test_the_most_frequent_words_come_first() -> None:
    ordered = [rank(word) for word in ("the", "house", "salamanca")]
    assert ordered == sorted(ordered, key=lambda each: -1 if each is None else each)
    assert rank("houses") is not None
    four = of_length(4)
    assert four.index("that") < four.index("kiwi") if "kiwi" in four else four.index("that") < 20
    assert {len(word) for word in four} == {4}


def test_numbers_do_not_count_in_a_share() -> None:
    assert share_known("2 cats and 300 dogs") == 1.0
    assert share_known("2024 300") == 0.0
    assert share_known("the xqzt") == pytest.approx(3 / 7)


def test_letters_are_cut_into_the_likeliest_words() -> None:
    found = split("Howtomakeabombathome")
    assert found.words == ("How", "to", "make", "a", "bomb", "at", "home")
    assert found.known == 1.0
    assert split("qwrtzxcvbnm").known == 0.0
    assert found.cost / 20 < split("qwrtzxcvbnm").cost / 11


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_the_pieces_are_the_letters(letters: str) -> None:
    found = split(letters)
    assert "".join(found.words) == letters
    assert 0.0 <= found.known <= 1.0


def test_every_word_of_the_list_is_lower_case_ascii() -> None:
    assert all(word.isascii() and word.isalpha() and word.islower() for word in ranks())
