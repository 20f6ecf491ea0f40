"""What `GuardedGenerator` returns: a finished answer, or one while it is written, for loops and for event loops."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from mlpm_guard.background import aiterate, iterate
from mlpm_guard.conversation import Conversation
from mlpm_guard.errors import PromptBlocked, ResponseBlocked
from mlpm_guard.streaming import StreamModerator
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


class _Stream:
    """What both kinds of stream tell.

    Attributes:
        verdict: on the prompt; None until it is known.
        response_verdict: on the answer; None without a moderator and until something was judged.
        finish_reason: None until the answer has ended; see `Generation`.
    """

    def __init__(self, generator: GuardedGenerator, conversation: Conversation, arguments: Mapping[str, Any]) -> None:
        self.verdict: Verdict | None = None
        self.response_verdict: Verdict | None = None
        self.finish_reason: FinishReason | None = None
        self._generator = generator
        self._conversation = conversation
        self._work = generator.produce(conversation, arguments)
        self._by_text = generator.moderates_text(arguments)
        self._result: Generation | None = None

    def _noted(self, item: str | Verdict | Generation) -> str | None:
        """The text of an item; anything else is kept."""
        if isinstance(item, str):
            return item
        if isinstance(item, Verdict):
            self.verdict = item
        else:
            self._result, self.verdict, self.finish_reason = item, item.verdict, item.finish_reason
            self.response_verdict = item.response_verdict
        return None

    def _moderator(self) -> StreamModerator:
        return self._generator.stream_moderator(self._conversation)

    def _moderated(self, verdict: Verdict | None) -> None:
        self.response_verdict = verdict
        if verdict is not None and verdict.blocked:
            self.finish_reason = "content_filter"

    def _last_words(self) -> Iterator[str]:
        """The refusal, or the exception, where prompt or answer was blocked inside `generate`."""
        if self._result is not None and self._result.blocked:
            if self._generator.raises:
                self._result.enforce()
            yield self._result.text


class GuardedStream(_Stream):
    """An answer as it is written, an iterator of text. See `GuardedGenerator.stream`."""

    def __init__(self, generator: GuardedGenerator, conversation: Conversation, arguments: Mapping[str, Any]) -> None:
        super().__init__(generator, conversation, arguments)
        self._text = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._text)

    def close(self) -> None:
        """Stop the model, and wait until it has stopped."""
        self._text.close()

    def _read(self) -> Generator[str]:
        if self._by_text:
            moderated = self._moderator().stream(self._pieces())
            try:
                yield from moderated
            finally:
                moderated.close()
                self._moderated(moderated.verdict)
        else:
            yield from self._pieces()
        yield from self._last_words()

    def _pieces(self) -> Generator[str]:
        source = iterate(self._work)
        try:
            for item in source:
                if (text := self._noted(item)) is not None:
                    yield text
        finally:
            source.close()


class AsyncGuardedStream(_Stream):
    """An answer as it is written, an async iterator of text. See `GuardedGenerator.astream`."""

    def __init__(self, generator: GuardedGenerator, conversation: Conversation, arguments: Mapping[str, Any]) -> None:
        super().__init__(generator, conversation, arguments)
        self._text = self._read()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await anext(self._text)

    async def aclose(self) -> None:
        """Stop the model."""
        await self._text.aclose()

    async def _read(self) -> AsyncGenerator[str]:
        if self._by_text:
            moderated = self._moderator().astream(self._pieces())
            try:
                async for text in moderated:
                    yield text
            finally:
                await moderated.aclose()
                self._moderated(moderated.verdict)
        else:
            async with aclosing(self._pieces()) as pieces:
                async for text in pieces:
                    yield text
        for text in self._last_words():
            yield text

    async def _pieces(self) -> AsyncGenerator[str]:
        async with aclosing(aiterate(self._work)) as source:
            async for item in source:
                if (text := self._noted(item)) is not None:
                    yield text
