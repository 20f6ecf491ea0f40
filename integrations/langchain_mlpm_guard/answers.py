"""An answer on its way through moderation: text is released as it is judged, everything else waits for the end.

Tool calls, reasoning and metadata leave with the last chunk, and only if nothing was blocked. Knows no model and no chain.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.runnables.utils import AddableDict

from langchain_mlpm_guard.judging import EVENT, Judge, Stage
from langchain_mlpm_guard.messages import Turns, answered, message_text, other_texts, output_texts, strings, without_text
from langchain_mlpm_guard.refusals import blocked_stage
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.policy import worse
from mlpm_guard.streaming import StreamModerator
from mlpm_guard.verdict import Verdict

_OURS = frozenset({"prompt", "on_block", "refusal"})


@dataclass(frozen=True)
class Moderator:
    """What judges answers, whole or while they arrive.

    Attributes:
        guard: a guard with `target="response"`, or anything with its `check` or `acheck`.
        options: of the `StreamModerator` that streams go through.
    """

    guard: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := _OURS & set(self.options):
            raise ConfigurationError(f"stream_options: {', '.join(sorted(unknown))} cannot be set; known are hold_back, every, "
                                     "context, unit")  # fmt: skip
        try:
            self._stream_moderator(None)  # a bad option shows here, not in the middle of an answer
        except TypeError as error:
            raise ConfigurationError(
                f"stream_options={sorted(self.options)}: known are hold_back, every, context, unit"
            ) from error

    def check(self, prompts: Sequence[Turns], outputs: Sequence[object]) -> list[Verdict | None]:
        """The deciding verdict on every whole answer, all judged together; None where there is no text to judge."""
        return Judge(self.guard).worst([_conversations(*each) for each in zip(prompts, outputs, strict=True)])

    async def acheck(self, prompts: Sequence[Turns], outputs: Sequence[object]) -> list[Verdict | None]:
        """`check` without blocking the event loop."""
        return await Judge(self.guard).aworst([_conversations(*each) for each in zip(prompts, outputs, strict=True)])

    def stream(self, prompt: Turns, chunks: Iterator[Any]) -> Released:
        """Moderate an answer while it arrives."""
        return Released(self, prompt, chunks)

    def astream(self, prompt: Turns, chunks: AsyncIterator[Any]) -> AsyncReleased:
        """`stream` for event loops."""
        return AsyncReleased(self, prompt, chunks)

    def _stream_moderator(self, prompt: Turns | None) -> StreamModerator:
        return StreamModerator(self.guard, prompt=prompt or None, on_block="stop", **self.options)


class _Outcome:
    """What is known of a moderated stream so far.

    Attributes:
        verdict: the verdict that blocked, else the worst so far; None before anything was judged.
        blocked: whether nothing more of the answer is released.
        usage: tokens that the model counted so far.
        id: of the message.
        as_message: whether the answer comes in message chunks.
        within: what a guard within has blocked, if it told so.
    """

    def __init__(self, moderator: Moderator, prompt: Turns) -> None:
        self.verdict: Verdict | None = None
        self.blocked = False
        self._moderator = moderator
        self._prompt = prompt
        self._pieces = _Pieces()

    @property
    def usage(self) -> UsageMetadata | None:
        return self._pieces.usage

    @property
    def id(self) -> str | None:
        return self._pieces.id

    @property
    def as_message(self) -> bool:
        return self._pieces.as_message

    @property
    def within(self) -> Stage | None:
        return self._pieces.within

    def failed(self, verdict: Verdict | None) -> None:
        """The answer ended with an error; this is the verdict on what that says."""
        self._judged(verdict)

    def _judged(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.verdict = verdict if self.verdict is None else worse(self.verdict, verdict)
            self.blocked = self.blocked or verdict.blocked

    def _rest(self) -> list[Turns]:
        text = self._pieces.other_text()
        return [answered(self._prompt, text)] if text.strip() else []


class Released(_Outcome):
    """Chunks of an answer that may be shown: an iterator for one consumer. Its end says by `blocked` whether it is whole."""

    def __init__(self, moderator: Moderator, prompt: Turns, chunks: Iterator[Any]) -> None:
        super().__init__(moderator, prompt)
        self._chunks = chunks

    def __iter__(self) -> Iterator[Any]:
        with self._moderator._stream_moderator(self._prompt).stream(self._texts()) as texts:
            try:
                for text in texts:
                    yield self._pieces.piece(text)
            finally:
                self._judged(texts.verdict)
        if self.blocked:
            return
        for verdict in Judge(self._moderator.guard).check(self._rest()):
            self._judged(verdict)
        if not self.blocked:
            yield from self._pieces.held()

    def _texts(self) -> Iterator[str]:
        whole = False
        try:
            for chunk in self._chunks:
                if text := self._pieces.take(chunk):
                    yield text
            whole = True
        finally:
            if not whole:
                close = getattr(self._chunks, "close", None)
                if callable(close):
                    close()


class AsyncReleased(_Outcome):
    """`Released` for event loops."""

    def __init__(self, moderator: Moderator, prompt: Turns, chunks: AsyncIterator[Any]) -> None:
        super().__init__(moderator, prompt)
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[Any]:
        async with self._moderator._stream_moderator(self._prompt).astream(self._texts()) as texts:
            try:
                async for text in texts:
                    yield self._pieces.piece(text)
            finally:
                self._judged(texts.verdict)
        if self.blocked:
            return
        for verdict in await Judge(self._moderator.guard).acheck(self._rest()):
            self._judged(verdict)
        if not self.blocked:
            for chunk in self._pieces.held():
                yield chunk

    async def _texts(self) -> AsyncIterator[str]:
        whole = False
        try:
            async for chunk in self._chunks:
                if text := self._pieces.take(chunk):
                    yield text
            whole = True
        finally:
            if not whole:
                close = getattr(self._chunks, "aclose", None)
                if callable(close):
                    await close()


class _Pieces:
    """Takes chunks apart, and puts released text and what was held into chunks again."""

    def __init__(self) -> None:
        self._message: AIMessageChunk | None = None
        self._others: list[Any] = []
        self.as_message = False
        self.within: Stage | None = None

    @property
    def id(self) -> str | None:
        return None if self._message is None else self._message.id

    @property
    def usage(self) -> UsageMetadata | None:
        return None if self._message is None else self._message.usage_metadata

    def take(self, chunk: Any) -> str:
        """The text of a chunk; the rest of it is held."""
        if isinstance(chunk, str):
            return chunk
        if not isinstance(chunk, AIMessage):
            self._others.append(chunk)
            return ""
        self.as_message = True
        self.within = self.within or blocked_stage(chunk)
        rest = as_chunk(chunk, without_text(chunk))
        self._message = rest if self._message is None else self._message + rest
        return message_text(chunk)

    def piece(self, text: str) -> Any:
        """Released text in the form in which the answer comes."""
        return AIMessageChunk(content=text, id=self.id) if self.as_message else text

    def other_text(self) -> str:
        """What can be read in all that is held."""
        found = [] if self._message is None else other_texts(_parsed(self._message))
        if self._others:
            found += strings(reduce(_together, self._others))
        return "\n".join(dict.fromkeys(text for text in found if text.strip()))

    def held(self) -> Iterator[Any]:
        """All that is held; the chunk that ends the answer is up to who told the verdict."""
        yield from self._others
        if self._message is not None:
            yield self._message


def _conversations(prompt: Turns, output: object) -> list[Turns]:
    text, others = output_texts(output)
    found = [text] if text.strip() else []
    if others:
        found.append("\n".join(others))
    return [answered(prompt, each) for each in found]


def as_chunk(message: AIMessage, content: str | list[str | dict[str, Any]]) -> AIMessageChunk:
    """A message, or a chunk of one, as a chunk with another content."""
    # What a guard within has told is left out: chunks are added up, and two verdicts would run into one another.
    told = {key: value for key, value in message.response_metadata.items() if key != EVENT}
    if isinstance(message, AIMessageChunk):
        return message.model_copy(update={"content": content, "chunk_position": None, "response_metadata": told})
    calls = [
        tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
        for index, call in enumerate(message.tool_calls)
    ]
    calls += [
        tool_call_chunk(name=call["name"], args=call["args"], id=call["id"], index=len(calls) + index)
        for index, call in enumerate(message.invalid_tool_calls)
    ]
    return AIMessageChunk(
        content=content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=told,
        usage_metadata=message.usage_metadata,
        tool_call_chunks=calls,
        id=message.id,
        name=message.name,
    )


def _together(before: Any, new: Any) -> Any:
    """Chunks of data as one, so that a text that came in pieces is judged whole."""
    if isinstance(before, str) and isinstance(new, str):
        return new if new.startswith(before) else before + new
    if isinstance(before, (AddableDict, BaseMessage)):
        try:
            return before + new
        except TypeError:
            return [before, new]
    if isinstance(before, Mapping) and isinstance(new, Mapping):
        return {**before, **{key: _together(before[key], each) if key in before else each for key, each in new.items()}}
    if isinstance(before, list) and isinstance(new, list):
        both = [_together(*each) for each in zip(before, new, strict=False)]
        return both + (before if len(before) > len(new) else new)[len(both) :]
    return [before, new] if not isinstance(before, list) else [*before, new]


def _parsed(message: AIMessageChunk) -> AIMessage:
    """Tool calls of merged chunks, read from all of their pieces."""
    whole = AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        tool_call_chunks=message.tool_call_chunks,
    )
    raw = [call["args"] for call in message.tool_call_chunks if call["args"]]
    # An argument that is cut off parses to less than it says: the raw form is judged too where the parser had to guess.
    guessed = [text for text in raw if not _is_json(text)]
    return whole.model_copy(update={"additional_kwargs": {**message.additional_kwargs, "arguments": guessed}})


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
