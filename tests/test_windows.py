"""Long texts are cut so that no sentence is judged only as part of an average."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlpm_guard.windows import Piece, cut, surely_whole, training_pieces

WORD = re.compile(r"\w+|[^\w\s]")
CHARACTER = re.compile(r"\S")
SENTENCE = "The quick brown fox jumps over {} lazy dogs today."
HARM = "Tell me how to poison the well"
WINDOW = 64


def spans(text: str, pattern: re.Pattern[str] = WORD) -> Any:
    return np.array([found.span() for found in pattern.finditer(text)], np.int64).reshape(-1, 2)


def pieces(text: str, window: int = WINDOW, pattern: re.Pattern[str] = WORD) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = {"whole": [], "window": [], "fragment": []}
    for piece in cut(text, spans(text, pattern), window):
        found[piece.kind].append(piece)
    return found


def uncovered(text: str, among: list[Piece]) -> set[str]:
    """Characters, other than spaces, that lie in no piece."""
    inside = np.zeros(len(text), bool)
    for piece in among:
        inside[piece.start : piece.end] = True
    return {char for char, seen in zip(text, inside, strict=True) if not seen and not char.isspace()}


def sentences(count: int) -> list[str]:
    return [SENTENCE.format(number) for number in range(count)]


TEXTS = {
    "prose": " ".join(sentences(40)),
    "lines": "\n".join(f"line {number} of a list without any full stop" for number in range(60)),
    "unpunctuated": " ".join(f"word{number}" for number in range(500)),
    "short sentences": "No. " * 300,
    "one long word": "a" * 3000,
    "indented": "   \n\n " + " ".join(sentences(20)) + "  \n ",
    "chinese": "今天天气很好我们去公园散步吧。" * 30,
    "thai": "วันนี้อากาศดีมากเราไปเดินเล่นกันเถอะ" * 20,
    "arabic": "هل يمكنك مساعدتي في كتابة رسالة؟ " * 30,
    "punctuation": "?!.,;" * 100,
}
texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
patterns = pytest.mark.parametrize("pattern", [WORD, CHARACTER], ids=["words", "characters"])


@texts
@patterns
@pytest.mark.parametrize("window", [8, 64, 128])
def test_every_character_of_a_long_text_is_in_some_window_and_some_fragment(
    text: str, pattern: re.Pattern[str], window: int
) -> None:
    found = pieces(text, window, pattern)
    assert uncovered(text, found["whole"] + found["window"]) == set()
    if found["fragment"]:
        assert uncovered(text, found["fragment"]) == set()


@texts
@patterns
def test_windows_overlap_and_are_no_longer_than_a_window_and_a_word(text: str, pattern: re.Pattern[str]) -> None:
    windows = pieces(text, 64, pattern)["window"]
    starts = spans(text, pattern)[:, 0]
    for one, two in itertools.pairwise(windows):
        assert one.start < two.start < one.end < two.end
    assert all(((starts >= piece.start) & (starts < piece.end)).sum() <= 64 + 8 for piece in windows)
    assert windows == [] or len(windows) > 1


@texts
@patterns
def test_a_fragment_is_short(text: str, pattern: re.Pattern[str]) -> None:
    starts = spans(text, pattern)[:, 0]
    for piece in pieces(text, 128, pattern)["fragment"]:
        assert ((starts >= piece.start) & (starts < piece.end)).sum() <= 40 + 8


@pytest.mark.parametrize("position", [0, 1, 7, 20, 38, 39])
@pytest.mark.parametrize("separator", [" ", "\n", "\r\n\r\n", "  "], ids=repr)
@pytest.mark.parametrize("end", [".", "!", "?", "…", '."'])
def test_a_sentence_at_any_position_of_a_long_text_is_a_fragment_of_its_own(position: int, separator: str, end: str) -> None:
    several = sentences(39)
    several.insert(position, HARM + end)
    text = separator.join(several)
    fragments = {text[piece.start : piece.end] for piece in pieces(text)["fragment"]}
    assert HARM + end in fragments


@pytest.mark.parametrize("position", [0, 10, 29])
@pytest.mark.parametrize("stop", ["。", "！", "？"])
def test_a_sentence_of_a_script_without_spaces_is_a_fragment_of_its_own(position: int, stop: str) -> None:
    several = ["今天天气很好我们去公园散步吧。"] * 29
    several.insert(position, f"告诉我怎么下毒{stop}")
    text = "".join(several)
    fragments = {text[piece.start : piece.end] for piece in pieces(text, pattern=CHARACTER)["fragment"]}
    assert f"告诉我怎么下毒{stop}" in fragments


@pytest.mark.parametrize("position", [0, 1, 50, 99, 150, 199])
def test_six_words_in_an_unpunctuated_run_lie_whole_in_a_short_fragment(position: int) -> None:
    words = [f"word{number}" for number in range(200)]
    words[position:position] = HARM.split()
    text = " ".join(words)
    holding = [text[p.start : p.end] for p in pieces(text)["fragment"] if HARM in text[p.start : p.end]]
    assert holding
    assert min(len(each.split()) for each in holding) <= 24


@pytest.mark.parametrize("position", [0, 200], ids=["start", "end"])
def test_at_either_end_of_an_unpunctuated_run_six_words_lie_in_a_still_shorter_fragment(position: int) -> None:
    words = [f"word{number}" for number in range(200)]
    words[position:position] = HARM.split()
    text = " ".join(words)
    holding = [text[p.start : p.end] for p in pieces(text)["fragment"] if HARM in text[p.start : p.end]]
    assert min(len(each.split()) for each in holding) <= 12


def test_a_sentence_too_short_to_stand_alone_goes_with_its_neighbour() -> None:
    text = " ".join(["No.", *sentences(20), "Yes."])
    fragments = [text[piece.start : piece.end] for piece in pieces(text)["fragment"]]
    assert fragments[0] == f"No. {sentences(20)[0]}"
    assert fragments[-1] == f"{sentences(20)[-1]} Yes."


@pytest.mark.parametrize("text", ["", " ", "hello", "Hello there. Who are you?", *sentences(2), " ".join(sentences(4))])
def test_a_text_of_at_most_three_quarters_of_a_window_is_one_whole(text: str) -> None:
    assert cut(text, spans(text), WINDOW) == [Piece(0, len(text), "whole")]


def test_a_text_a_little_shorter_than_a_window_is_a_whole_and_its_sentences() -> None:
    text = " ".join(sentences(5))
    found = pieces(text)
    assert found["whole"] == [Piece(0, len(text), "whole")]
    assert found["window"] == []
    assert [text[piece.start : piece.end] for piece in found["fragment"]] == sentences(5)


def test_windows_come_before_fragments() -> None:
    text = " ".join(sentences(40))
    kinds = [piece.kind for piece in cut(text, spans(text), WINDOW)]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"window", "fragment"}


def test_a_window_does_not_start_inside_a_word() -> None:
    # Tokens of three characters, as a tokenizer cuts long words.
    text = " ".join(["supercalifragilistic"] * 100)
    tokens = np.array(
        [(m.start() + i, min(m.start() + i + 3, m.end())) for m in WORD.finditer(text) for i in range(0, len(m[0]), 3)]
    )
    starts = {piece.start for piece in cut(text, tokens, WINDOW) if piece.kind == "window"}
    assert len(starts) > 5
    assert all(start == 0 or text[start - 1] == " " for start in starts)


@pytest.mark.parametrize("window", range(1, 9))
def test_even_the_smallest_window_covers_everything(window: int) -> None:
    text = " ".join(sentences(3))
    assert uncovered(text, pieces(text, window)["window"]) == set()


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=300),
        st.text(alphabet="ab .!?\n。", max_size=400),
        st.lists(st.sampled_from(["word", "No.", "。", "\n", "?!", "\u200b", "e\u0301", "🙂", "  "]), max_size=120).map(
            " ".join
        ),
    ),
    window=st.integers(1, 70),
    pattern=st.sampled_from([WORD, CHARACTER]),
)
@example(text="a." * 40, window=8, pattern=CHARACTER)
def test_pieces_of_any_text_are_ordered_spans_within_it_and_leave_no_token_out(
    text: str, window: int, pattern: re.Pattern[str]
) -> None:
    tokens = spans(text, pattern)
    found = cut(text, tokens, window)
    assert found
    assert all(0 <= piece.start <= piece.end <= len(text) for piece in found)
    assert all(piece.start < piece.end for piece in found if len(tokens))
    for group in ([p for p in found if p.kind != "fragment"], [p for p in found if p.kind == "fragment"]):
        for start, end in tokens if group else ():
            assert any(piece.start <= start and end <= piece.end for piece in group)
    assert len(found) <= 2 + 2 * len(tokens)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 1000])
def test_a_fit_learns_from_windows_spread_over_the_text(limit: int) -> None:
    text = " ".join(sentences(60))
    windows = [piece for piece in cut(text, spans(text), WINDOW) if piece.kind == "window"]
    chosen = training_pieces(text, spans(text), WINDOW, limit)
    assert len(chosen) == min(limit, len(windows))
    assert [piece for piece in windows if piece in chosen] == chosen
    assert chosen[0] == windows[0]
    if limit > 1:
        assert chosen[-1] == windows[-1]


def test_a_fit_learns_from_a_short_text_as_a_whole() -> None:
    text = " ".join(sentences(4))
    assert training_pieces(text, spans(text), WINDOW, 4) == [Piece(0, len(text), "whole")]


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60), st.integers(8, 80))
def test_what_is_surely_whole_is_cut_into_nothing_by_any_tokens(text: str, window: int) -> None:
    if surely_whole(text, window):
        every_character = np.array([(0, 0), *((at, at + 1) for at in range(len(text)))], np.int64)
        assert cut(text, every_character, window) == [Piece(0, len(text), "whole")]
    else:
        assert len(text) >= window * 3 // 4


def test_text_beyond_ascii_is_never_surely_whole() -> None:
    assert surely_whole("naive", WINDOW)
    assert not surely_whole("naïve", WINDOW)
