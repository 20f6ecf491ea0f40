"""A model's stream taken apart: its text, piece by piece, for a moderator; and what else it said, for the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse

from llama_index_mlpm_guard.messages import thoughts
from llama_index_mlpm_guard.withholding import aquietly, quietly

R = TypeVar("R", ChatResponse, CompletionResponse)

_THINKING = "thinking_delta"


class Taken(Generic[R]):
    """One stream of a model: reads it, and remembers its last response.

    Attributes:
        last: the last response; None before the first one.
        released: text that has left.
    """

    def __init__(self) -> None:
        self.last: R | None = None
        self.released = ""
        self._seen = ""
        self._thinking: list[str] = []

    def pieces(self, source: Iterator[R]) -> Generator[str, None, None]:
        """Texts of the stream. Closes it."""
        with closing(quietly(source)) as responses:
            for response in responses:
                if text := self._take(response):
                    yield text
        if rest := self._rest():
            yield rest

    async def apieces(self, source: AsyncIterator[R]) -> AsyncGenerator[str, None]:
        """`pieces` of an async stream."""
        async with aclosing(aquietly(source)) as responses:
            async for response in responses:
                if text := self._take(response):
                    yield text
        if rest := self._rest():
            yield rest

    def thoughts(self) -> list[str]:
        """What the model thought, which is not part of its text."""
        found: list[str] = thoughts(self.last) if isinstance(self.last, ChatResponse) else []
        return ["".join(self._thinking), *found] if self._thinking else found

    def kwargs(self) -> dict[str, Any]:
        """Additional arguments of the last response, with all the thinking of the stream."""
        last = {} if self.last is None else dict(self.last.additional_kwargs)
        return {**last, _THINKING: "".join(self._thinking)} if self._thinking else last

    def _take(self, response: R) -> str:
        self.last = response
        thinking = response.additional_kwargs.get(_THINKING)
        if isinstance(thinking, str):
            self._thinking.append(thinking)
        self._seen += response.delta or ""
        return response.delta or ""

    def _rest(self) -> str:
        """Text that was accumulated and never given as a delta."""
        text = self.last.message.content if isinstance(self.last, ChatResponse) else getattr(self.last, "text", None)
        return text[len(self._seen) :] if text and text.startswith(self._seen) else ""
