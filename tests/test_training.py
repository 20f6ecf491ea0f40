"""Training windows come in chunks: which ones of a text, which together, in which order, and how far is read ahead for that."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from mlpm_guard import Guard, UnknownPromptError
from mlpm_guard.conversation import Conversation
from mlpm_guard.encoders.base import States
from mlpm_guard.judging import Reading
from mlpm_guard.testing import MockEncoder
from mlpm_guard.training import examples
from mlpm_guard.verdict import Target

CHUNK = 512
READING = Reading("prompt", 32, True, 0.6)


class Recorder(MockEncoder):
    """Keeps the length of everything it is asked to encode, call by call."""

    def __init__(self) -> None:
        super().__init__(layers=2, dim=4)
        self.lengths: list[list[int]] = []
        self.keys: list[bytes] = []

    def encode(self, conversations, *, layers=None) -> States:
        self.lengths.append([conversation.characters for conversation in conversations])
        self.keys += [conversation.key() for conversation in conversations]
        return super().encode(conversations, layers=layers)


def rows(count: int, *, longest: int = 20) -> list[str]:
    """Different prompts of all lengths, mixed."""
    generator = random.Random(0)
    return [" ".join([f"{index}", *["word"] * generator.randint(1, longest)]) for index in range(count)]


def labels(count: int) -> list[int]:
    return [index % 2 for index in range(count)]


def test_windows_of_like_length_are_encoded_together_each_once() -> None:
    encoder, prompts = Recorder(), rows(1_500)
    names = ["fraud" if label else None for label in labels(1_500)]
    chunks = list(examples(prompts, labels(1_500), encoder, READING, progress=False, categories=names, by_length=True))
    assert [len(chunk.keys) for chunk in chunks] == [CHUNK, CHUNK, 476]
    for shorter, longer in zip(encoder.lengths, encoder.lengths[1:], strict=False):
        assert max(shorter) <= min(longer)
    given = list(examples(prompts, labels(1_500), encoder, READING, progress=False, categories=names))
    assert row_by_row(chunks) == row_by_row(given)


def row_by_row(chunks) -> dict[int, tuple[bytes, int, str | None]]:
    return {
        key: (states.tobytes(), label, name)
        for chunk in chunks
        for states, label, key, name in zip(chunk.states, chunk.labels, chunk.keys.tolist(), chunk.categories, strict=True)
    }


def test_windows_come_in_the_order_of_their_prompts_unless_they_are_wanted_by_length() -> None:
    encoder, prompts = Recorder(), rows(1_500)
    list(examples(prompts, labels(1_500), encoder, READING, progress=False))
    assert [length for lengths in encoder.lengths for length in lengths] == [len(prompt) for prompt in prompts]


def test_no_chunk_has_more_windows_than_it_may_where_prompts_have_several() -> None:
    encoder = Recorder()
    list(examples(rows(400, longest=200), labels(400), encoder, READING, progress=False, by_length=True))
    assert max(map(len, encoder.lengths)) == CHUNK
    assert sum(map(len, encoder.lengths)) > 400


@pytest.mark.parametrize(
    ("target", "label", "windows"), [("prompt", 0, 4), ("prompt", 1, 4), ("response", 0, 2), ("response", 1, 1)]
)
def test_a_long_text_gives_some_windows_and_a_harmful_answer_its_first(target: Target, label: int, windows: int) -> None:
    encoder, reading = Recorder(), Reading(target, 32, True, 0.6)
    long = " ".join(f"word{index}" for index in range(400))
    turn = [{"role": "user" if target == "prompt" else "assistant", "content": long}]
    (chunk,) = examples([turn], [label], encoder, reading, progress=False)
    assert chunk.labels == [label] * windows
    first = " ".join(f"word{index}" for index in range(32))
    assert Conversation.parse([{**turn[0], "content": first}], target=target).key() == encoder.keys[0]


@pytest.mark.parametrize(("length", "read"), [(1, 4_096), (2_000, 2_560), (1_000_000, 5)])
def test_prompts_are_read_ahead_as_long_as_they_stay_few_and_small(length: int, read: int) -> None:
    taken: list[int] = []

    def prompts() -> Iterator[str]:
        for index in range(6_000):
            taken.append(index)
            yield f"{index:04d}{'x' * (length - 4)}"

    chunks = examples(prompts(), labels(6_000), Recorder(), READING, progress=False, by_length=True)
    next(chunks)
    assert len(taken) == read
    if length < 1_000:
        assert sum(len(chunk.keys) for chunk in chunks) == 6_000 - CHUNK


def test_a_fit_is_the_same_whatever_the_order_of_lengths() -> None:
    encoder, prompts = MockEncoder(lambda text: int(text.split()[0]) % 2 == 1), rows(1_200)
    fitted = Guard(encoder).fit(prompts, labels(1_200), progress=False)
    classifier = type(fitted.classifier)(C=1.0, sample_size=1024, folds=5)
    for chunk in examples(prompts, labels(1_200), encoder, READING, progress=False):
        classifier.update(chunk.states, chunk.labels, chunk.keys)
    classifier.refit()
    np.testing.assert_allclose(fitted.classifier.coef_, classifier.coef_, rtol=1e-9)
    np.testing.assert_allclose(fitted.classifier.layer_weights_, classifier.layer_weights_, rtol=1e-6)


def test_forgetting_names_the_positions_of_prompts_as_they_were_given() -> None:
    prompts = rows(1_200)
    guard = Guard(MockEncoder()).fit(prompts, labels(1_200), progress=False)
    with pytest.raises(UnknownPromptError) as caught:
        guard.forget([*prompts[:700], "x", *prompts[700:900]], [*labels(700), 1, *labels(200)])
    assert caught.value.indices == (700,)


class Reader(MockEncoder):
    """Tokenises for itself: a token a word, one in front and one behind, as encoders of texts do. Counts what it tokenises."""

    def __init__(self) -> None:
        super().__init__(layers=2, dim=4)
        self.tokenised: list[str] = []
        self.measured: list[str] = []
        self.known: list[tuple[str, list[int] | None]] = []

    def prompt_ids(self, conversations) -> list[list[int]]:
        texts = [conversation.messages[-1].content for conversation in conversations]
        self.tokenised += texts
        return [[0, *(len(word) for word in text.split()), 1] for text in texts]

    def spans(self, texts):
        self.measured += texts
        return super().spans(texts)

    def encode(self, conversations, *, layers=None) -> States:
        self.known += [(conversation.messages[-1].content, conversation.token_ids) for conversation in conversations]
        return super().encode(conversations, layers=layers)


def test_a_prompt_that_fits_into_a_window_is_tokenised_once_and_encoded_with_its_ids() -> None:
    encoder, window = Reader(), READING.window
    whole, edge, longer = ("ab " * count for count in (window - 2, window - 1, 3 * window))
    chunks = list(examples([whole, edge, longer], [0, 1, 0], encoder, READING, progress=False))
    assert encoder.tokenised == [whole, edge, longer]
    assert set(encoder.measured) == {edge, longer}, "only what may be too long for a window has to be measured"
    ids = dict(encoder.known)
    assert ids[whole] == [0, *[2] * (window - 2), 1]
    assert ids[edge] is None
    assert [text for text, known in encoder.known if known is not None] == [whole]
    assert sum(len(chunk.keys) for chunk in chunks) == len(encoder.known) > 3


def test_ids_are_those_of_what_a_disguised_prompt_says() -> None:
    encoder = Reader()
    list(examples(["wh4t 1s th3 w34th3r l1ke t0d4y"], [0], encoder, READING, progress=False))
    assert encoder.known == [("what is the weather like today", [0, 4, 2, 3, 7, 4, 5, 1])]


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "x" * 10_000,
    ],
    ids=["several turns", "long text"],
)
def test_what_is_cut_or_put_together_is_not_tokenised_before(prompt) -> None:
    encoder = Reader()
    list(examples([prompt], [0], encoder, READING, progress=False))
    assert not encoder.tokenised
    assert all(ids is None for _, ids in encoder.known)


def test_an_encoder_that_reads_roles_is_asked_for_no_ids() -> None:
    class ReadsRoles(Reader):
        reads_roles = True

    encoder = ReadsRoles()
    list(examples(["how are you"], [0], encoder, READING, progress=False))
    assert not encoder.tokenised
