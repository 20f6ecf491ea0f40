"""StreamModerator: an answer is judged while it is written, and nothing of it is released before it was judged.

Chunks of text in, released text out, sync and async. Knows no model and no framework; what judges is a guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from typing import Any, Literal, Protocol, Self

from mlpm_guard.conversation import ConversationLike
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.moderation import Moderation, OnBlock, Question, Record, Settings, TextUnit, as_messages, token_starts
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.segments import Every
from mlpm_guard.sources import AsyncSource, Source, async_source
from mlpm_guard.verdict import OnReview, Verdict


class SyncModerator(Protocol):
    """What `StreamModerator.stream` needs of a guard."""

    def check(self, conversation: Any, /) -> Verdict:
        """Judge a conversation that ends with the assistant."""


class AsyncModerator(Protocol):
    """What `StreamModerator.astream` needs of a guard; one with `check` alone will do, it is then called on a thread."""

    async def acheck(self, conversation: Any, /) -> Verdict:
        """Judge a conversation that ends with the assistant, without blocking the event loop."""


class StreamModerator:
    """Judges an answer piece by piece while it arrives, and releases what the guard lets through.

    The pieces are sentences, or whole words of `every` tokens together. The guard sees each piece behind the last `context`
    characters of the answer, and behind the prompt where that is known. So every judgement costs about the same, and the whole
    answer costs time linear in its length. The gate acts on `Verdict.action` alone: "block" ends the stream, "allow" passes,
    and "review" does what `on_review` says. What is released, joined, is exactly the text that came in, up to the block.

    Fails closed: what the guard cannot judge is blocked as its `on_error` says; if it raises, the error reaches the consumer,
    and nothing that was not judged is released. Holds configuration only, so one moderator serves any number of streams,
    threads and tasks at once.

    Args:
        guard: a `Guard` with `target="response"`, or anything with its `check` or `acheck`.
        prompt: the conversation that is being answered; a string, or a list of messages.
        hold_back: how much of the judged text, in `unit`, stays back until more is judged or the answer ends, so that what only
            the next piece reveals can still be kept from the reader; "all" releases nothing before the end.
        every: "sentence", or after how many tokens to judge. A sentence is cut behind a word after 200 characters.
        on_block: "stop" ends the stream, "replace" ends it with `refusal`, "raise" raises `ResponseBlocked`.
        refusal: what "replace" says.
        context: characters of the answer that the guard sees in front of a piece. The default keeps piece and context together
            below the 96 tokens from which the embedded encoder's guard cuts English text into fragments and costs more.
        unit: of `hold_back`: "characters", or "tokens" of the guard's encoder (words, where the guard has no encoder).
        on_review: what an action of "review" does: "pass", or "block".

    Raises:
        ConfigurationError: an option has a bad value, or the guard judges prompts.
        InvalidConversationError: the prompt is not a conversation.
    """

    def __init__(
        self,
        guard: SyncModerator | AsyncModerator,
        *,
        prompt: ConversationLike | None = None,
        hold_back: int | Literal["all"] = 0,
        every: Every = "sentence",
        on_block: OnBlock = "stop",
        refusal: str = DEFAULT_REFUSAL,
        context: int = 200,
        unit: TextUnit = "characters",
        on_review: OnReview = "pass",
    ) -> None:
        if not (callable(getattr(guard, "check", None)) or callable(getattr(guard, "acheck", None))):
            raise ConfigurationError(
                f"guard is {type(guard).__name__}: pass a Guard with target='response', or anything with its check or acheck"
            )
        if getattr(guard, "target", "response") != "response":
            raise ConfigurationError("this guard judges prompts: moderate answers with one made with target='response'")
        if hold_back != "all" and not _whole(hold_back, 0):
            raise ConfigurationError(f"hold_back={hold_back!r}: a whole number, at least 0, or 'all'")
        if every != "sentence" and not _whole(every, 1):
            raise ConfigurationError(f"every={every!r}: 'sentence', or a whole number of tokens, at least 1")
        if on_block not in ("stop", "replace", "raise"):
            raise ConfigurationError(f"on_block={on_block!r}: choose one of stop, replace, raise")
        if on_review not in ("pass", "block"):
            raise ConfigurationError(f"on_review={on_review!r}: choose one of pass, block")
        if not isinstance(refusal, str) or not refusal:
            raise ConfigurationError("refusal: a text that is not empty; on_block='stop' ends the stream without one")
        if not _whole(context, 0):
            raise ConfigurationError(f"context={context!r}: a whole number of characters, at least 0")
        if unit not in ("characters", "tokens"):
            raise ConfigurationError(f"unit={unit!r}: choose one of characters, tokens")
        self._guard: Any = guard
        self._settings = Settings(
            prompt=as_messages(prompt),
            hold_back=None if hold_back == "all" else hold_back,
            every=every,
            on_block=on_block,
            refusal=refusal,
            context=context,
            unit=unit,
            starts=token_starts(guard),
            on_review=on_review,
        )
        self._record = Record()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._guard).__name__}, {self._settings!r})"

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of the stream that was started last; where several run at once, read each stream's own."""
        return self._record.verdict

    def stream(self, chunks: Iterable[str]) -> ModeratedStream:
        """Moderate an answer.

        Args:
            chunks: its text in pieces of any size, an iterator or any iterable. It is closed (`close()`, where it has one) as
                soon as it is no longer needed: when the answer is blocked, when the consumer closes or drops the stream, and
                when something raises.

        Returns:
            An iterator over the released text. Nothing is read before it is asked for.

        Raises:
            ConfigurationError: `chunks` is one text or an async iterator, or the guard has no `check`.
        """
        if not callable(getattr(self._guard, "check", None)):
            raise ConfigurationError(f"{type(self._guard).__name__} has acheck only: use astream, or a guard with check")
        return ModeratedStream(self._guard.check, self._moderation(), Source(chunks))

    def astream(self, chunks: AsyncIterable[str] | Iterable[str]) -> AsyncModeratedStream:
        """`stream` without blocking the event loop.

        Args:
            chunks: an async iterator, or a plain one, which is read on worker threads as its next chunk may block. Closed
                (`aclose()`, `close()`) as in `stream`, and when the task is cancelled; a plain iterator that is busy then is
                closed once it has given its next chunk.

        Returns:
            An async iterator over the released text.

        Raises:
            ConfigurationError: `chunks` is one text, or nothing to iterate over.
        """
        source = async_source(chunks)
        return AsyncModeratedStream(self._acheck, self._moderation(), source)

    async def _acheck(self, question: Question) -> object:
        if callable(getattr(self._guard, "acheck", None)):
            return await self._guard.acheck(question)
        return await asyncio.to_thread(self._guard.check, question)

    def _moderation(self) -> Moderation:
        self._record = record = Record()
        return Moderation(self._settings, record)


class ModeratedStream:
    """Released text of one answer: an iterator, and a context manager that closes it. For one consumer, like a generator."""

    def __init__(self, check: Callable[[Question], object], moderation: Moderation, source: Source) -> None:
        self._record = moderation.record
        self._source = source
        # The generator does not refer to this object, so that it ends, and closes its source, as soon as this is dropped.
        self._texts = _moderated(check, moderation, source)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict that blocked, else the worst so far: an error, or the highest score. None before anything is judged."""
        return self._record.verdict

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """Text that was judged and may be shown.

        Raises:
            ResponseBlocked: the answer was blocked, with `on_block="raise"`.
            InvalidConversationError: a chunk is not text.
        """
        return next(self._texts)

    def close(self) -> None:
        """End the stream and close its source."""
        self._texts.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncModeratedStream:
    """Released text of one answer: an async iterator, and an async context manager that closes it. For one consumer."""

    def __init__(self, check: Callable[[Question], Awaitable[object]], moderation: Moderation, source: AsyncSource) -> None:
        self._record = moderation.record
        self._source = source
        self._texts = _amoderated(check, moderation, source)

    @property
    def verdict(self) -> Verdict | None:
        """See `ModeratedStream.verdict`."""
        return self._record.verdict

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """See `ModeratedStream.__next__`."""
        return await anext(self._texts)

    async def aclose(self) -> None:
        """End the stream and close its source."""
        await self._texts.aclose()
        await self._source.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _moderated(check: Callable[[Question], object], moderation: Moderation, source: Source) -> Generator[str, None, None]:
    try:
        while moderation.open:
            moderation.take(source.pull())
            while (question := moderation.question()) is not None:
                if text := moderation.answer(check(question)):
                    yield text
    finally:
        source.close()
    if text := moderation.last():
        yield text


async def _amoderated(
    check: Callable[[Question], Awaitable[object]], moderation: Moderation, source: AsyncSource
) -> AsyncGenerator[str, None]:
    try:
        await asyncio.to_thread(moderation.prepare)
        while moderation.open:
            moderation.take(await source.pull())
            while (question := moderation.question()) is not None:
                if text := moderation.answer(await check(question)):
                    yield text
    finally:
        await source.aclose()
    if text := moderation.last():
        yield text


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
