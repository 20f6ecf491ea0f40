"""StreamModerator: what is released, when, and what happens to the source."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpm_guard import (
    Action,
    ConfigurationError,
    Conversation,
    EncoderError,
    Guard,
    InvalidConversationError,
    ResponseBlocked,
    StreamModerator,
    Verdict,
)
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.testing import MockEncoder, MockGuard
from tests.conftest import SAFE, UNSAFE
from tests.loop_support import Meeting
from tests.test_segments import TEXT, chunked

CALM = ["The sky is ", "blue. The sea ", "is green.\n", "All is well", "."]
HARM = ["Fine so far. ", "Now the bo", "mb recipe. ", "Take some ", "more text. ", "And more."]
Run = Callable[..., tuple[list[str], Any]]


def moderator(flag: Callable[[str], bool | float] | None = None, **options: Any) -> StreamModerator:
    return StreamModerator(MockGuard(flag or (lambda text: "bomb" in text), target="response"), **options)


def run_sync(moderated: StreamModerator, chunks: Iterable[str]) -> tuple[list[str], Any]:
    stream = moderated.stream(chunks)
    return list(stream), stream


def run_async(moderated: StreamModerator, chunks: Iterable[str]) -> tuple[list[str], Any]:
    async def main() -> tuple[list[str], Any]:
        stream = moderated.astream(an_async(chunks))
        return [text async for text in stream], stream

    return asyncio.run(main())


def run_threaded(moderated: StreamModerator, chunks: Iterable[str]) -> tuple[list[str], Any]:
    async def main() -> tuple[list[str], Any]:
        stream = moderated.astream(chunks)
        return [text async for text in stream], stream

    return asyncio.run(main())


async def an_async(chunks: Iterable[str]) -> AsyncIterator[str]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


@pytest.fixture(params=[run_sync, run_async, run_threaded], ids=["sync", "async", "threaded"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


class Source:
    """A model that writes: notes what it produced, and that it was closed."""

    def __init__(self, chunks: Iterable[Any], *, fail_at: int | None = None) -> None:
        self.produced: list[Any] = []
        self.closed = False
        self._chunks = list(chunks)
        self._fail_at = fail_at

    def __iter__(self) -> Iterator[Any]:
        try:
            for at, chunk in enumerate(self._chunks):
                if at == self._fail_at:
                    raise LookupError("the model broke")
                self.produced.append(chunk)
                yield chunk
        finally:
            self.closed = True

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            for chunk in self._chunks:
                await asyncio.sleep(0)
                self.produced.append(chunk)
                yield chunk
        finally:
            await asyncio.sleep(0)
            self.closed = True


# -- what is released ---------------------------------------------------------------------------------------------------------


def test_an_allowed_answer_comes_out_as_it_went_in(run: Run) -> None:
    released, stream = run(moderator(), CALM)
    assert released == ["The sky is blue. ", "The sea is green.\n", "All is well."]
    assert stream.verdict.action is Action.ALLOW


OPTIONS = st.fixed_dictionaries(
    {
        "every": st.sampled_from(["sentence", 1, 5, 50]),
        "hold_back": st.sampled_from([0, 1, 30, "all"]),
        "unit": st.sampled_from(["characters", "tokens"]),
        "context": st.sampled_from([0, 10, 200]),
    }
)


@given(TEXT, st.lists(st.integers(0, 1000), max_size=20), OPTIONS)
@settings(max_examples=150, deadline=None)
def test_any_allowed_text_in_any_chunks_comes_out_exactly(text: str, cuts: list[int], options: dict[str, Any]) -> None:
    moderated = moderator(lambda text: False, **options)
    assert "".join(run_sync(moderated, chunked(text, cuts))[0]) == text
    assert "" not in run_sync(moderated, chunked(text, cuts))[0]


@given(st.text(max_size=300), st.lists(st.integers(0, 1000), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_unicode_comes_out_exactly_in_async_too(text: str, cuts: list[int]) -> None:
    assert "".join(run_async(moderator(lambda text: False, hold_back=5), chunked(text, cuts))[0]) == text


@given(TEXT, st.lists(st.integers(0, 1000), max_size=20), OPTIONS)
@settings(max_examples=150, deadline=None)
def test_nothing_is_released_that_was_not_judged_first(text: str, cuts: list[int], options: dict[str, Any]) -> None:
    recorder = Recorder()
    stream = StreamModerator(recorder, **{**options, "context": 0}).stream(chunked(text, cuts))
    seen = ""
    for released in stream:
        seen += released
        judged = "".join(question["content"] for (question,) in recorder.asked)
        assert without_blanks(judged).startswith(without_blanks(seen))


def without_blanks(text: str) -> str:
    return "".join(text.split())


def test_a_blocked_answer_stops_before_the_unit_that_was_blocked(run: Run) -> None:
    released, stream = run(moderator(), HARM)
    assert released == ["Fine so far. "]
    assert stream.verdict.action is Action.BLOCK
    assert stream.verdict.target == "response"


def test_text_is_released_as_soon_as_it_is_judged_and_read_only_when_asked_for() -> None:
    source = Source(HARM)
    stream = moderator().stream(source)
    assert source.produced == []
    assert next(stream) == "Fine so far. "
    assert source.produced == HARM[:1]


def test_a_word_split_over_chunks_is_judged_whole(run: Run) -> None:
    for every in ("sentence", 1, 3):
        released, stream = run(moderator(every=every), list("well the bomb code"))
        assert "b" not in "".join(released)
        assert stream.verdict.blocked


def test_what_straddles_two_units_is_seen_in_the_context(run: Run) -> None:
    flag = lambda text: "red. button" in text  # noqa: E731
    assert run(moderator(flag), ["It is red. ", "button"])[0] == ["It is red. "]
    assert "".join(run(moderator(flag, context=0), ["It is red. ", "button"])[0]) == "It is red. button"


def test_held_back_text_is_dropped_when_the_next_unit_is_blocked(run: Run) -> None:
    assert run(moderator(hold_back=4), HARM)[0] == ["Fine so f"]
    assert run(moderator(hold_back=2, unit="tokens"), HARM)[0] == ["Fine so "]
    assert run(moderator(hold_back="all"), HARM)[0] == []
    assert run(moderator(hold_back="all"), CALM)[0] == ["".join(CALM)]


def test_blank_text_is_never_sent_to_the_guard(run: Run) -> None:
    judged: list[str] = []
    moderated = moderator(lambda text: bool(judged.append(text)))
    released, stream = run(moderated, ["  ", "\n\n", "", "\t"])
    assert "".join(released) == "  \n\n\t"
    assert judged == []
    assert stream.verdict is None
    assert run(moderated, [])[0] == []
    assert "".join(run(moderated, ["\n\n", "Hello.", "\n\n"])[0]) == "\n\nHello.\n\n"
    assert judged == ["\n\nHello.\n"]


def test_blank_text_waits_for_the_unit_behind_it(run: Run) -> None:
    assert run(moderator(), ["\n" * 5000, "the bomb"])[0] == []
    released = run(moderator(), ["\n" * 5000, "the sky"])[0]
    assert "".join(released) == "\n" * 5000 + "the sky"


def test_long_blanks_neither_glue_words_nor_crowd_out_the_context() -> None:
    judged: list[str] = []
    list(moderator(lambda text: bool(judged.append(text))).stream(["one.", " " * 200, "two.", " " * 1000, "three." + " " * 90]))
    assert [text.split() for text in judged] == [["one."], ["one.", "two."], ["one.", "two.", "three."]]
    assert max(map(len, judged)) < 30


@pytest.mark.parametrize("chunks", [HARM, ["a bomb"]])
def test_the_refusal_comes_last_and_once(run: Run, chunks: list[str]) -> None:
    released, _ = run(moderator(on_block="replace"), chunks)
    assert released[-1] == DEFAULT_REFUSAL
    assert released.count(DEFAULT_REFUSAL) == 1
    assert "bomb" not in "".join(released)
    assert run(moderator(on_block="replace", refusal="No."), chunks)[0][-1] == "No."
    assert DEFAULT_REFUSAL not in run(moderator(on_block="replace"), CALM)[0]


def test_a_block_can_be_raised_and_says_nothing_of_the_text(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ResponseBlocked) as caught:
        run(moderator(on_block="raise"), HARM)
    assert caught.value.verdict.blocked
    assert "bomb" not in str(caught.value) + repr(caught.value) + caplog.text
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_the_action_alone_decides(run: Run) -> None:
    monitored = StreamModerator(MockGuard(lambda text: True, target="response", mode="monitor"))
    released, stream = run(monitored, HARM)
    assert "".join(released) == "".join(HARM)
    assert stream.verdict.flagged

    class Reviewing:
        def check(self, conversation: object) -> Verdict:
            return MockGuard(lambda text: True, target="response").check("x").model_copy(update={"action": Action.REVIEW})

    assert "".join(run(StreamModerator(Reviewing()), HARM)[0]) == "".join(HARM)


# -- what the guard receives --------------------------------------------------------------------------------------------------


class Recorder:
    """A guard of another make: has `check` alone, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.threads: set[int] = set()
        self._guard = MockGuard(lambda text: "bomb" in text, target="response")

    def check(self, conversation: Any) -> Verdict:
        self.asked.append(conversation)
        self.threads.add(threading.get_ident())
        return self._guard.check(conversation)


def test_the_guard_receives_the_prompt_and_the_answer(run: Run) -> None:
    recorder = Recorder()
    run(StreamModerator(recorder, prompt="What is up?"), ["The sky. ", "The birds."])
    assert recorder.asked == [
        [{"role": "user", "content": "What is up?"}, {"role": "assistant", "content": text}]
        for text in ("The sky. ", "The sky. The birds.")
    ]


def test_without_a_prompt_the_guard_receives_the_assistants_turn_alone(run: Run) -> None:
    recorder = Recorder()
    run(StreamModerator(recorder, context=0), ["The sky. ", "The birds."])
    assert recorder.asked == [[{"role": "assistant", "content": text}] for text in ("The sky. ", "The birds.")]


@pytest.mark.parametrize("parsed", [False, True])
def test_every_turn_of_the_prompt_is_passed_on_with_what_is_not_text(parsed: bool) -> None:
    prompt: Any = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
    ]
    given_prompt = Conversation.parse(prompt) if parsed else prompt
    moderated = StreamModerator(MockGuard(lambda text: text != "A cat.", target="response"), prompt=given_prompt)
    stream = moderated.stream(["A cat."])
    assert list(stream) == ["A cat."]
    assert stream.verdict is not None
    assert stream.verdict.not_judged == ("image_url",)


def test_the_context_is_bounded_and_begins_at_a_word() -> None:
    recorder = Recorder()
    sentences = [f"Sentence number {i} says nothing. " for i in range(50)]
    list(StreamModerator(recorder, context=60).stream(sentences))
    for at, (question,) in enumerate(recorder.asked):
        context = question["content"].removesuffix(sentences[at])
        assert len(context) <= 60
        assert f" {''.join(sentences[:at])}".endswith(f" {context}")
        assert at < 2 or len(context) > 45


# -- verdicts -----------------------------------------------------------------------------------------------------------------


def test_the_verdict_is_the_worst_so_far() -> None:
    scores = {"one": 0.1, "two": 0.4, "three": 0.2}
    moderated = moderator(lambda text: scores[text.split()[-1].strip(".")], context=0)
    assert moderated.verdict is None
    stream = moderated.stream(["It is one. ", "It is two. ", "It is three. "])
    assert stream.verdict is None
    seen = []
    for _ in stream:
        assert stream.verdict is not None
        seen.append(stream.verdict.score)
    assert seen == pytest.approx([0.1, 0.4, 0.4])
    assert moderated.verdict == stream.verdict


def test_an_error_that_is_let_through_counts_as_worse_than_any_score(run: Run) -> None:
    def flag(text: str) -> float:
        if "broken" in text:
            raise RuntimeError(text)
        return 0.45

    guard = MockGuard(flag, target="response", on_error="allow")
    released, stream = run(StreamModerator(guard, context=0), ["All fine. ", "Now broken. ", "Fine again. "])
    assert len(released) == 3
    assert stream.verdict.error == "encoder_error"
    assert "".join(run(StreamModerator(MockGuard(flag, target="response"), context=0), ["All fine. ", "Now broken. "])[0]) == (
        "All fine. "
    )


def test_the_blocking_verdict_counts_even_against_a_worse_score() -> None:
    class Odd(Recorder):
        def check(self, conversation: Any) -> Verdict:
            verdict = super().check(conversation)
            return verdict if len(self.asked) > 1 else verdict.model_copy(update={"score": 0.999})

    stream = StreamModerator(Odd()).stream(["Fine. ", "A bomb. "])
    assert list(stream) == ["Fine. "]
    assert stream.verdict is not None
    assert stream.verdict.blocked


def test_streams_at_once_do_not_mix() -> None:
    moderated = moderator(context=50)

    def one(number: int) -> tuple[str, Verdict | None]:
        stream = moderated.stream([f"Text {number} is ", "long. ", "bomb" if number % 2 else "calm", f" {number}."])
        return "".join(stream), stream.verdict

    with ThreadPoolExecutor(32) as pool:
        for number, (text, verdict) in enumerate(pool.map(one, range(200))):
            assert text == f"Text {number} is long. " + ("" if number % 2 else f"calm {number}.")
            assert verdict is not None
            assert verdict.blocked == bool(number % 2)


async def test_interleaved_streams_of_one_moderator_keep_their_own_state() -> None:
    moderated = moderator()
    first, second = moderated.astream(an_async(HARM)), moderated.astream(an_async(CALM))
    assert await anext(second) == "The sky is blue. "
    assert await anext(first) == "Fine so far. "
    assert [text async for text in first] == []
    assert [text async for text in second] == ["The sea is green.\n", "All is well."]
    assert first.verdict is not None
    assert first.verdict.blocked
    assert moderated.verdict is second.verdict


def test_a_finished_stream_stays_finished(run: Run) -> None:
    stream = moderator(on_block="replace").stream(HARM)
    assert list(stream)[-1] == DEFAULT_REFUSAL
    assert list(stream) == []


# -- the source ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_block", ["stop", "replace", "raise"])
def test_a_block_closes_the_source_first(on_block: str) -> None:
    source = Source(HARM)
    stream = moderator(on_block=on_block).stream(source)
    assert next(stream) == "Fine so far. "
    try:
        last = next(stream, None)
    except ResponseBlocked:
        last = "raised"
    assert last == {"stop": None, "replace": DEFAULT_REFUSAL, "raise": "raised"}[on_block]
    assert source.closed
    assert source.produced == HARM[:3]


@pytest.mark.parametrize("on_block", ["stop", "replace", "raise"])
async def test_a_block_closes_an_async_source_first(on_block: str) -> None:
    source = Source(HARM)
    stream = moderator(on_block=on_block).astream(source)
    assert await anext(stream) == "Fine so far. "
    try:
        last = await anext(stream, None)
    except ResponseBlocked:
        last = "raised"
    assert last == {"stop": None, "replace": DEFAULT_REFUSAL, "raise": "raised"}[on_block]
    assert source.closed
    assert source.produced == HARM[:3]


def test_a_consumer_that_walks_away_closes_the_source() -> None:
    source = Source(CALM)
    for _ in moderator().stream(source):
        break
    assert source.closed
    source = Source(CALM)
    with moderator().stream(source) as stream:
        next(stream)
    assert source.closed
    assert list(stream) == []
    source = Source(CALM)
    stream = moderator().stream(source)
    next(stream)
    stream.close()
    stream.close()
    assert source.closed


async def test_an_async_consumer_that_walks_away_closes_the_source() -> None:
    source = Source(CALM)
    async with moderator().astream(source) as stream:
        await anext(stream)
    assert source.closed
    source = Source(CALM)
    stream = moderator().astream(source)
    await anext(stream)
    await stream.aclose()
    assert source.closed
    source = Source(CALM)
    async for _ in moderator().astream(source):
        break
    gc.collect()
    for _ in range(10):
        await asyncio.sleep(0)
    assert source.closed


async def test_a_cancelled_task_closes_the_source() -> None:
    class Slow(Recorder):
        async def acheck(self, conversation: Any) -> Verdict:
            await asyncio.sleep(30)
            raise AssertionError

    source = Source(CALM)

    async def consume() -> None:
        async for _ in StreamModerator(Slow()).astream(source):
            pass

    task = asyncio.create_task(consume())
    while len(source.produced) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


class Response:
    """Like the stream of an HTTP client: gives an iterator, and is itself what must be closed."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self.closed = 0
        self._chunks = chunks

    def __iter__(self) -> Iterator[str]:
        return iter(self._chunks)

    def close(self) -> None:
        self.closed += 1


class AsyncResponse(Response):
    """The same, async; its `close` is a coroutine."""

    __iter__ = None  # type: ignore[assignment]

    def __aiter__(self) -> AsyncIterator[str]:
        return an_async(self._chunks)

    async def close(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.closed += 1


def test_what_owns_the_iterator_is_closed_too_but_not_after_its_own_end() -> None:
    response = Response(HARM)
    list(moderator().stream(response))
    assert response.closed == 1
    response = Response(CALM)
    list(moderator().stream(response))
    assert response.closed == 0
    response = Response(CALM)
    moderator().stream(response).close()
    assert response.closed == 1


async def test_what_owns_an_async_iterator_is_closed_too() -> None:
    response = AsyncResponse(HARM)
    assert [text async for text in moderator().astream(response)] == ["Fine so far. "]
    assert response.closed == 1
    response = AsyncResponse(HARM)
    await moderator().astream(response).aclose()
    assert response.closed == 1


def test_an_error_of_the_source_arrives_unchanged_and_what_was_not_judged_stays_back(run: Run) -> None:
    error = LookupError("the model broke")

    def broken() -> Iterator[str]:
        yield "All fine. Not yet jud"
        raise error

    with pytest.raises(LookupError) as caught:
        run(moderator(), broken())
    assert caught.value is error
    stream = moderator(hold_back=3).stream(Source(["All fine. ", "x"], fail_at=1))
    assert next(stream) == "All fin"
    with pytest.raises(LookupError):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("kind", [LookupError, EncoderError])
def test_a_guard_that_raises_closes_the_source_and_releases_nothing(kind: type[Exception]) -> None:
    class Raising:
        def check(self, conversation: Any) -> Verdict:
            raise kind("not now")

    source = Source(CALM)
    stream = StreamModerator(Raising(), on_block="replace").stream(source)
    with pytest.raises(kind):
        next(stream)
    assert source.closed
    assert list(stream) == []

    async def main() -> None:
        source = Source(CALM)
        stream = StreamModerator(Raising()).astream(source)
        with pytest.raises(kind):
            await anext(stream)
        assert source.closed

    asyncio.run(main())


class Stubborn(Source):
    """Cannot be closed."""

    def close(self) -> None:
        self.closed = True
        raise RuntimeError("a secret bomb")

    async def aclose(self) -> None:
        self.close()


def test_a_source_whose_closing_fails_does_not_hide_the_verdict(caplog: pytest.LogCaptureFixture) -> None:
    source = Stubborn(HARM)
    with pytest.raises(ResponseBlocked):
        list(moderator(on_block="raise").stream(source))
    assert source.closed

    async def main() -> None:
        source = Stubborn(HARM)
        released = [text async for text in moderator(on_block="replace").astream(source)]
        assert released == ["Fine so far. ", DEFAULT_REFUSAL]
        assert source.closed

    asyncio.run(main())
    assert caplog.text.count("RuntimeError") == 2
    assert "secret" not in caplog.text


# -- async --------------------------------------------------------------------------------------------------------------------


async def test_a_guard_without_acheck_and_a_plain_iterator_do_not_block_the_loop() -> None:
    judged, written = Meeting(), Meeting()

    class Slow(Recorder):
        def check(self, conversation: Any) -> Verdict:
            judged()
            return super().check(conversation)

    def slow_source() -> Iterator[str]:
        written()
        yield "Hello there. "
        written()

    guard = Slow()
    assert [text async for text in StreamModerator(guard).astream(slow_source())] == ["Hello there. "]
    assert judged.held
    assert written.held
    assert threading.get_ident() not in guard.threads


async def test_an_async_guard_shares_its_forward_passes_among_streams() -> None:
    guard = MockGuard(delay=0.02, target="response")
    moderated = StreamModerator(guard)

    async def one() -> str:
        return "".join([text async for text in moderated.astream(an_async(CALM))])

    assert await asyncio.gather(*(one() for _ in range(50))) == ["".join(CALM)] * 50
    assert sum(guard.calls) == 150
    assert len(guard.calls) < 75


async def test_cancelling_does_not_wait_for_a_plain_iterator_that_blocks() -> None:
    entered, release, closed = threading.Event(), threading.Event(), threading.Event()

    def blocking() -> Iterator[str]:
        try:
            entered.set()
            release.wait(30)
            yield "late"
        finally:
            closed.set()

    async def consume() -> None:
        async for _ in moderator().astream(blocking()):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(entered.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not closed.is_set()
    release.set()
    assert await asyncio.to_thread(closed.wait, 30)


async def test_a_guard_with_acheck_alone_serves_astream_only() -> None:
    class AsyncOnly:
        async def acheck(self, conversation: Any) -> Verdict:
            return await MockGuard(target="response").acheck(conversation)

    moderated = StreamModerator(AsyncOnly())
    assert [text async for text in moderated.astream(CALM)] == ["The sky is blue. ", "The sea is green.\n", "All is well."]
    with pytest.raises(ConfigurationError, match="astream"):
        moderated.stream(CALM)


# -- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"hold_back": -1}, {"hold_back": 1.5}, {"hold_back": True}, {"hold_back": "some"}, {"hold_back": None},
        {"every": 0}, {"every": "word"}, {"every": True}, {"every": None}, {"on_block": "ignore"}, {"refusal": ""},
        {"refusal": None}, {"context": -1}, {"context": "200"}, {"unit": "words"},
    ],
)  # fmt: skip
def test_a_bad_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        moderator(**options)


def test_a_guard_for_prompts_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="target='response'"):
        StreamModerator(MockGuard())


def test_something_that_is_no_guard_is_refused() -> None:
    for wrong in (None, "default-response", object()):
        with pytest.raises(ConfigurationError, match="check"):
            StreamModerator(wrong)  # type: ignore[arg-type]


def test_a_prompt_that_is_no_conversation_is_refused() -> None:
    with pytest.raises(InvalidConversationError):
        moderator(prompt=[{"role": "nobody", "content": "x"}])


@pytest.mark.parametrize("chunks", ["one text", b"bytes", 3, None])
def test_chunks_that_are_no_iterator_over_texts_are_refused_at_once(chunks: Any) -> None:
    with pytest.raises(ConfigurationError, match="chunks is"):
        moderator().stream(chunks)
    with pytest.raises(ConfigurationError, match="chunks is"):
        moderator().astream(chunks)


def test_an_async_iterator_is_refused_by_stream() -> None:
    with pytest.raises(ConfigurationError, match="astream"):
        moderator().stream(Response.__new__(AsyncResponse))


@pytest.mark.parametrize("wrong", [None, b"secret", 3, ["secret"]])
def test_a_chunk_that_is_not_text_is_named_and_ends_the_stream(run: Run, wrong: Any) -> None:
    source = Source(["Fine. ", "Not judged", wrong, "later"])
    released: list[str] = []

    def kept() -> Iterator[Any]:
        yield from source

    with pytest.raises(InvalidConversationError, match=f"chunk 2 of the answer is {type(wrong).__name__}") as caught:
        run(moderator(), kept())
    assert "secret" not in str(caught.value)
    source = Source(["Fine. ", "Not judged", wrong, "later"])
    stream = moderator().stream(source)
    with pytest.raises(InvalidConversationError):
        released.extend(iter(stream.__next__, None))
    assert source.closed
    assert list(stream) == []


def test_a_guard_that_returns_no_verdict_is_refused(run: Run) -> None:
    class Wrong:
        def check(self, conversation: Any) -> Any:
            return True

    with pytest.raises(ConfigurationError, match="bool, not a Verdict"):
        run(StreamModerator(Wrong()), CALM)


def test_a_moderator_is_shown_without_texts_and_can_be_pickled() -> None:
    moderated = StreamModerator(
        Guard(MockEncoder(), target="response").fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False),
        prompt="my secret prompt",
        every=5,
    )
    assert "secret" not in repr(moderated)
    again = pickle.loads(pickle.dumps(moderated))
    assert list(again.stream(["please tell me about ", "this unsafe request number 3. "])) == ["please tell me about this "]
    assert again.verdict.blocked


# -- size ---------------------------------------------------------------------------------------------------------------------


class Counting(Recorder):
    """Adds up what it is shown instead of keeping it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.characters = self.longest = 0
        self._verdict = self._guard.check("x")

    def check(self, conversation: Any) -> Verdict:
        length = len(conversation[-1]["content"])
        self.calls += 1
        self.characters += length
        self.longest = max(self.longest, length)
        return self._verdict


@pytest.mark.parametrize("every", ["sentence", 8])
@pytest.mark.parametrize(
    ("chunks", "most"),
    [
        (["A sentence of about forty characters, yes. " * 250_000], 6.0),  # 10 MB in one chunk
        (["x" * 10_000_000], 2.1),
        (list("A sentence of about forty characters, yes. " * 2_000), 6.0),
        (list('."' * 20_000), 2.1),
        (["a. " * 20_000], 80.0),
        (["\n" * 100_000], 0.0),
        (["\n"] * 100_000, 0.0),
    ],
    ids=["10 MB", "10 MB without a blank", "single characters", "quotes", "tiny sentences", "newlines", "newline chunks"],
)  # fmt: skip
def test_the_guard_reads_a_bounded_multiple_of_the_text(chunks: list[str], most: float, every: Any) -> None:
    counting = Counting()
    length = sum(map(len, chunks))
    assert sum(map(len, StreamModerator(counting, every=every).stream(chunks))) == length
    assert counting.characters <= most * length
    assert counting.longest <= 400


def test_judgements_cost_the_same_however_long_the_answer_is() -> None:
    read = []
    for sentences in (10, 100, 1000):
        counting = Counting()
        list(StreamModerator(counting).stream("This sentence has six words, really. " for _ in range(sentences)))
        assert counting.calls == sentences
        read.append(counting.characters / sentences)
    assert read[2] < 1.05 * read[1]
    assert read[2] < 200 + 40


def test_memory_does_not_grow_with_the_answer() -> None:
    import tracemalloc

    def words() -> Iterator[str]:
        for _ in range(50_000):
            yield "and so on "

    stream = StreamModerator(Counting(), hold_back=50).stream(words())
    next(stream)
    tracemalloc.start()
    for _ in stream:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


# -- a real encoder -----------------------------------------------------------------------------------------------------------


async def test_tokens_are_those_of_the_guards_encoder() -> None:
    fitted = Guard(MockEncoder(), target="response").fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    stream = StreamModerator(fitted, every=4, hold_back=2, unit="tokens").astream(["a, b, c, d, e"])
    assert [text async for text in stream] == ["a, ", "b, c, ", "d", ", e"]


def test_a_fitted_response_guard_stops_an_unsafe_answer() -> None:
    fitted = Guard(MockEncoder(), target="response").fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    stream = StreamModerator(fitted, prompt="hello", on_block="replace").stream(
        ["please tell me. ", "this is an unsafe ", "plan."]
    )
    assert list(stream) == ["please tell me. ", DEFAULT_REFUSAL]
    assert stream.verdict is not None
    assert stream.verdict.window is not None
