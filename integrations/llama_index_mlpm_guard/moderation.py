"""Answers on their way out of a wrapped engine or model, whole or streamed: judged by one moderator, reported as events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from llama_index_mlpm_guard.events import emit
from llama_index_mlpm_guard.gates import OnBlock, choice
from mlpm_guard import ConfigurationError, ResponseBlocked, StreamModerator, Verdict
from mlpm_guard.conversation import ConversationLike
from mlpm_guard.segments import Every
from mlpm_guard.verdict import OnReview

Conclude = Callable[[Verdict | None], None]
"""Told the verdict on an answer once its stream has ended; None where nothing of it was judged."""


@dataclass(frozen=True)
class AnswerModeration:
    """How a component moderates answers. Holds configuration only.

    Attributes:
        moderator: a guard with `target="response"`, or anything with its `check`.
        component: name of the component that acts on the verdicts.
        on_block: "replace" or "raise".
        refusal: what "replace" says.
        hold_back: judged characters of a stream that stay back, or "all".
        every: "sentence", or a number of tokens after which a stream is judged.
        on_review: what an action of "review" does: "pass", or "block".
    """

    moderator: Any
    component: str
    on_block: OnBlock
    refusal: str
    hold_back: int | Literal["all"]
    every: Every
    on_review: OnReview = "pass"

    def __post_init__(self) -> None:
        choice("on_block", self.on_block, ("replace", "raise"))
        choice("on_review", self.on_review, ("pass", "block"))
        if not callable(getattr(self.moderator, "check", None)):
            raise ConfigurationError(
                f'moderator is {type(self.moderator).__name__}: pass a Guard with target="response", or anything with its check'
            )
        self.of(None)  # a bad option shows here, not in the middle of an answer

    def of(self, prompt: ConversationLike | None) -> StreamModerator:
        """What the stream of an answer to this prompt goes through."""
        return StreamModerator(
            self.moderator,
            prompt=prompt,
            hold_back=self.hold_back,
            every=self.every,
            on_block=self.on_block,
            refusal=self.refusal,
            on_review=self.on_review,
        )

    def judge(self, prompt: list[dict[str, Any]], answer: str) -> Verdict | None:
        """The verdict on a whole answer; None for one without text.

        Raises:
            ResponseBlocked: it is blocked, with `on_block="raise"`.
        """
        if not answer.strip():
            return None
        return self._settled(self.moderator.check([*prompt, {"role": "assistant", "content": answer}]))

    async def ajudge(self, prompt: list[dict[str, Any]], answer: str) -> Verdict | None:
        """`judge` without blocking the event loop."""
        if not answer.strip():
            return None
        question = [*prompt, {"role": "assistant", "content": answer}]
        if callable(getattr(self.moderator, "acheck", None)):
            return self._settled(await self.moderator.acheck(question))
        return self._settled(await asyncio.to_thread(self.moderator.check, question))

    def stream(self, prompt: ConversationLike | None, pieces: Iterator[str], conclude: Conclude) -> Generator[str, None, None]:
        """Released text of an answer. Ends with the refusal, or raises `ResponseBlocked`, where the answer is blocked."""
        with self.of(prompt).stream(pieces) as stream:
            try:
                yield from stream
            finally:
                self._concluded(stream.verdict, conclude)

    async def astream(
        self, prompt: ConversationLike | None, pieces: AsyncIterator[str], conclude: Conclude
    ) -> AsyncGenerator[str, None]:
        """`stream` without blocking the event loop."""
        async with self.of(prompt).astream(pieces) as stream:
            try:
                async for text in stream:
                    yield text
            finally:
                self._concluded(stream.verdict, conclude)

    def _settled(self, verdict: Verdict) -> Verdict:
        if not isinstance(verdict, Verdict):
            raise ConfigurationError(f"the moderator returned {type(verdict).__name__}, not a Verdict")
        verdict = emit("response", self.component, verdict.resolved(self.on_review))
        if verdict.blocked and self.on_block == "raise":
            raise ResponseBlocked(verdict)
        return verdict

    def _concluded(self, verdict: Verdict | None, conclude: Conclude) -> None:
        if verdict is not None:
            emit("response", self.component, verdict)
        conclude(verdict)
