"""OutputModeration: a step behind a model that releases an answer as it is judged. A guard decides."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, PrivateAttr, SkipValidation

from langchain_mlpm_guard.answers import AsyncReleased, Moderator, Released
from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.errors import ResponseBlockedError
from langchain_mlpm_guard.judging import atell, is_guard, stops, tell
from langchain_mlpm_guard.refusals import metadata, refusal_chunk, refusal_message, with_verdicts
from langchain_mlpm_guard.retrying import BlocksOnce
from mlpm_guard.errors import ConfigurationError, InvalidConversationError
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.verdict import Verdict


class OutputModeration(BlocksOnce, RunnableSerializable[Any, Any]):
    """Moderates text, messages and their chunks: `prompt | model | OutputModeration(moderator=m)`.

    Streams are judged by sentences, and nothing is released before it was judged; tool calls, reasoning and metadata wait for
    the end. On a block the model is stopped, and the refusal follows, or `ResponseBlockedError`. Tool calls of a blocked
    message are dropped. This step's own run records nothing of what came in.

    What the model's own run records, and what `astream_events` tells of it, stands before this step and is not held back: use
    `guard_chain` or `ModeratedChatModel` where that matters.

    Args:
        moderator: a `Guard` with `target="response"`, or anything with its `check` or `acheck`.
        refusal: what is said instead of a blocked answer.
        on_block: "replace" gives the refusal, "raise" raises.
        stream_options: of the `StreamModerator` that streams go through (`hold_back`, `every`, `context`, `unit`).

    Raises:
        ConfigurationError: the guard judges prompts, or an option has a bad value.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    moderator: SkipValidation[Any] = Field(exclude=True)
    refusal: str = DEFAULT_REFUSAL
    on_block: Literal["replace", "raise"] = "replace"
    stream_options: Mapping[str, Any] = Field(default_factory=dict)

    _moderator: Moderator = PrivateAttr()

    def __init__(self, moderator: Any = None, **options: Any) -> None:
        with checked(self):
            super().__init__(moderator=moderator, **options)  # type: ignore[call-arg]

    def model_post_init(self, context: Any, /) -> None:
        """Check the options."""
        super().model_post_init(context)
        is_guard(self.moderator, "response", "moderator")
        if not self.refusal:
            raise ConfigurationError("refusal: a text that is not empty")
        self._moderator = Moderator(self.moderator, self.stream_options)

    # -- whole answers ------------------------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """The answer, or the refusal in its form.

        Raises:
            ResponseBlockedError: it was blocked, with `on_block="raise"`.
            InvalidConversationError: it is neither text nor a message.
        """

        def moderate(_: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Any:
            _only_answers(input)
            (verdict,) = self._moderator.check([[]], [input])
            tell(run_manager, config, verdict, "response", blocked=stops(verdict))
            return self._released(input, verdict)

        # The input stays out of the run's record: it may be what is about to be blocked.
        return self._call_with_config(moderate, "", config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """`invoke` without blocking the event loop."""

        async def moderate(_: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Any:
            _only_answers(input)
            (verdict,) = await self._moderator.acheck([[]], [input])
            await atell(run_manager, config, verdict, "response", blocked=stops(verdict))
            return self._released(input, verdict)

        return await self._acall_with_config(moderate, "", config, **kwargs)

    # -- streams ------------------------------------------------------------------------------------------------------------

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None) -> Iterator[Any]:  # noqa: A002
        """A whole answer as its moderated chunks."""
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any | None,
    ) -> AsyncIterator[Any]:
        """`stream` for event loops."""

        async def one() -> AsyncIterator[Any]:
            yield input

        async for chunk in self.atransform(one(), config, **kwargs):
            yield chunk

    def transform(
        self,
        input: Iterator[Any],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any | None,
    ) -> Iterator[Any]:
        """Moderate an answer while it arrives."""

        # LangChain's driver reads a second copy of its input to the end, for its record: it is given none.
        def moderate(_: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Iterator[Any]:
            released = self._moderator.stream([], _stoppable(input))
            yield from released
            tell(run_manager, config, released.verdict, "response", blocked=released.blocked)
            yield from self._ending(released)

        yield from self._transform_stream_with_config(iter(()), moderate, config, **kwargs)

    async def atransform(
        self,
        input: AsyncIterator[Any],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any | None,
    ) -> AsyncIterator[Any]:
        """`transform` for event loops."""

        async def moderate(
            _: AsyncIterator[Any], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
        ) -> AsyncIterator[Any]:
            released = self._moderator.astream([], _astoppable(input))
            async for chunk in released:
                yield chunk
            await atell(run_manager, config, released.verdict, "response", blocked=released.blocked)
            for chunk in self._ending(released):
                yield chunk

        async for chunk in self._atransform_stream_with_config(_nothing(), moderate, config, **kwargs):
            yield chunk

    # -- how ----------------------------------------------------------------------------------------------------------------

    def _released(self, answer: Any, verdict: Verdict | None) -> Any:
        if verdict is None or not stops(verdict):
            return answer if isinstance(answer, str) else with_verdicts(answer, None, verdict)
        if self.on_block == "raise":
            raise ResponseBlockedError(verdict)
        if isinstance(answer, str):
            return self.refusal
        make: Any = refusal_chunk if isinstance(answer, AIMessageChunk) else refusal_message
        # The same id: where messages are merged by id, the refusal takes the answer's place.
        return make(self.refusal, verdict, "response", usage=answer.usage_metadata, id=answer.id)

    def _ending(self, released: Released | AsyncReleased) -> Iterator[Any]:
        verdict = released.verdict
        if not released.blocked or verdict is None:
            if released.as_message:
                yield AIMessageChunk(
                    content="", id=released.id, response_metadata=metadata(None, verdict), chunk_position="last"
                )
            return
        if self.on_block == "raise":
            raise ResponseBlockedError(verdict)
        if released.as_message:
            yield refusal_chunk(self.refusal, verdict, "response", usage=released.usage, id=released.id)
        else:
            yield self.refusal


class AnswerStoppedError(Exception):
    """Ends a step in front of a moderation that blocked; its own run shows it as its error."""

    def __init__(self) -> None:
        super().__init__("the answer was blocked, and its model was stopped")


def _only_answers(value: object) -> None:
    if not isinstance(value, (str, AIMessage)):
        raise InvalidConversationError(f"an answer is text or an AIMessage, not {type(value).__name__}: use guard_chain")


def _stoppable(chunks: Iterator[Any]) -> Iterator[Any]:
    """The same chunks; closing it stops what gives them.

    A plain `close` would not: a parser between model and moderation reads its model to the end when it is closed. An exception
    that is thrown into it ends it at once.
    """
    whole = False
    try:
        for chunk in chunks:
            _only_answers(chunk)
            yield chunk
        whole = True
    finally:
        if not whole:
            _stop(chunks)


def _stop(chunks: Any) -> None:
    if callable(getattr(chunks, "throw", None)):
        try:
            chunks.throw(AnswerStoppedError())
        except (AnswerStoppedError, StopIteration) as stopped:
            # Frames that a traceback holds would keep the model's generator open.
            traceback.clear_frames(stopped.__traceback__)
    if callable(getattr(chunks, "close", None)):
        chunks.close()


async def _astoppable(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
    whole = False
    try:
        async for chunk in chunks:
            _only_answers(chunk)
            yield chunk
        whole = True
    finally:
        if not whole:
            await _astop(chunks)


async def _astop(chunks: Any) -> None:
    if callable(getattr(chunks, "athrow", None)):
        try:
            await chunks.athrow(AnswerStoppedError())
        except (AnswerStoppedError, StopAsyncIteration) as stopped:
            traceback.clear_frames(stopped.__traceback__)
    if callable(getattr(chunks, "aclose", None)):
        await chunks.aclose()


async def _nothing() -> AsyncIterator[Any]:
    return
    yield
