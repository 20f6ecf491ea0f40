"""What `GuardedGenerator` returns: a finished answer, or one while it is written, for loops and for event loops."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from mlpm_guard.background import aiterate, iterate
from mlpm_guard.cancelling import Cancellation
from mlpm_guard.conversation import Conversation
from mlpm_guard.errors import PromptBlocked, ResponseBlocked
from mlpm_guard.verdict import Verdict

if TYPE_CHECKING:
    from mlpm_guard.generation import GuardedGenerator

FinishReason: TypeAlias = Literal["stop", "length", "content_filter"]
Item: TypeAlias = "str | Verdict | Generation"


@dataclass(frozen=True)
class Generation:
    """What became of one prompt.

    Attributes:
        text: the answer, or the refusal where prompt or answer was blocked.
        verdict: on the prompt.
        response_verdict: on the answer; None without a moderator, and where there was no answer to judge.
        token_ids: tokens of the answer, end token included; empty where it was blocked.
        token_scores: probability of an unsafe answer after each token, where the moderator read the model's own states.
        finish_reason: "stop" (an end token), "length" (or a stopping criterion of the caller's), or "content_filter".
    """

    text: str = field(repr=False)
    verdict: Verdict
    response_verdict: Verdict | None = None
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    token_scores: tuple[float, ...] = field(default=(), repr=False)
    finish_reason: FinishReason = "stop"

    @property
    def blocked(self) -> bool:
        """Whether the text is the refusal."""
        return self.finish_reason == "content_filter"

    def enforce(self) -> Generation:
        """The generation itself, unless it was blocked.

        Raises:
            PromptBlocked: the prompt was blocked.
            ResponseBlocked: the answer was blocked.
        """
        if not self.blocked:
            return self
        if self.response_verdict is not None:
            raise ResponseBlocked(self.response_verdict)
        raise PromptBlocked(self.verdict)


class _Record:
    """What is known of one stream so far. The generators below refer to it and not to the stream, which ends when dropped."""

    def __init__(self, generator: GuardedGenerator, conversation: Conversation, arguments: Mapping[str, Any]) -> None:
        self.verdict: Verdict | None = None
        self.response_verdict: Verdict | None = None
        self.finish_reason: FinishReason | None = None
        self.work = generator.produce(conversation, arguments)
        self.moderator = generator.stream_moderator(conversation) if generator.moderates_text(arguments) else None
        self.cancelled = Cancellation()
        self.text_verdict: Callable[[], Verdict | None] = lambda: None
        self._raises = generator.raises
        self._result: Generation | None = None

    def text(self, item: str | Verdict | Generation) -> str | None:
        """The text of an item; anything else is kept."""
        if isinstance(item, str):
            return item
        if isinstance(item, Verdict):
            self.verdict = item
        else:
            self._result, self.verdict, self.finish_reason = item, item.verdict, item.finish_reason
            self.response_verdict = item.response_verdict
        return None

    def moderated(self, verdict: Verdict | None) -> None:
        """How the moderation of the text ended."""
        self.response_verdict = verdict
        if verdict is not None and verdict.blocked:
            self.finish_reason = "content_filter"

    @property
    def refused(self) -> bool:
        """Whether all text that is still to come is the refusal."""
        return self.finish_reason == "content_filter" or any(
            verdict is not None and verdict.blocked for verdict in (self.verdict, self.text_verdict())
        )

    def last_words(self) -> Iterator[str]:
        """The refusal, or the exception, where prompt or answer was blocked inside `generate`."""
        if self._result is not None and self._result.blocked:
            if self._raises:
                self._result.enforce()
            yield self._result.text


class _Stream:
    """What both kinds of stream tell."""

    def __init__(self, generator: GuardedGenerator, conversation: Conversation, arguments: Mapping[str, Any]) -> None:
        self._record = _Record(generator, conversation, arguments)

    @property
    def verdict(self) -> Verdict | None:
        """On the prompt; None until it is known, which is before the first piece of text."""
        return self._record.verdict

    @property
    def response_verdict(self) -> Verdict | None:
        """On the answer; None without a moderator, and until the stream has ended."""
        return self._record.response_verdict

    @property
    def refused(self) -> bool:
        """Whether prompt or answer was blocked, so that the piece of text at hand, if any, is the refusal."""
        return self._record.refused

    @property
    def finish_reason(self) -> FinishReason | None:
        """None until the answer has ended; see `Generation`."""
        return self._record.finish_reason


class GuardedStream(_Stream):
    """An answer as it is written, an iterator of text. See `GuardedGenerator.stream`."""

    def __init__(self, generator: GuardedGenerator, conversation: Conversation, arguments: Mapping[str, Any]) -> None:
        super().__init__(generator, conversation, arguments)
        self._text = _read(self._record)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._text)

    def close(self) -> None:
        """Stop the model, and wait until it has stopped. Another thread may call it too; the reader's loop then ends."""
        self._record.cancelled.set()
        # A generator that another thread is reading from cannot be closed; it ends with the model.
        with contextlib.suppress(ValueError):
            self._text.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGuardedStream(_Stream):
    """An answer as it is written, an async iterator of text. See `GuardedGenerator.astream`."""

    def __init__(self, generator: GuardedGenerator, conversation: Conversation, arguments: Mapping[str, Any]) -> None:
        super().__init__(generator, conversation, arguments)
        self._text = _aread(self._record)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await anext(self._text)

    async def aclose(self) -> None:
        """Stop the model. Another task may call it too; the reader's loop then ends."""
        self._record.cancelled.set()
        with contextlib.suppress(RuntimeError):
            await self._text.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _read(record: _Record) -> Generator[str]:
    if record.moderator is None:
        yield from _pieces(record)
    else:
        with record.moderator.stream(_pieces(record)) as moderated:
            record.text_verdict = lambda: moderated.verdict
            try:
                yield from moderated
            finally:
                record.moderated(moderated.verdict)
    yield from record.last_words()


def _pieces(record: _Record) -> Generator[str]:
    with closing(iterate(record.work, record.cancelled)) as source:
        for item in source:
            if (text := record.text(item)) is not None:
                yield text


async def _aread(record: _Record) -> AsyncGenerator[str]:
    if record.moderator is None:
        async with aclosing(_apieces(record)) as pieces:
            async for text in pieces:
                yield text
    else:
        async with record.moderator.astream(_apieces(record)) as moderated:
            record.text_verdict = lambda: moderated.verdict
            try:
                async for text in moderated:
                    yield text
            finally:
                record.moderated(moderated.verdict)
    for text in record.last_words():
        yield text


async def _apieces(record: _Record) -> AsyncGenerator[str]:
    async with aclosing(aiterate(record.work, record.cancelled)) as source:
        async for item in source:
            if (text := record.text(item)) is not None:
                yield text
