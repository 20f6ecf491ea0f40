"""Tokens of `generate` to text, no earlier than they may leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from mlpm_guard.errors import EncoderError
from mlpm_guard.verdict import Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Text(TextStreamer):
    """Whole words, handed on instead of printed."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, put: Callable[[str], None], framing: frozenset[int] | None) -> None:
        super().__init__(tokenizer, skip_special_tokens=framing is None)
        self._put = put
        self._framing = framing or frozenset()

    def put(self, value: Tensor) -> None:
        kept = [token for token in value.tolist() if token not in self._framing] if self._framing else value.tolist()
        if kept:
            super().put(torch.tensor(kept))  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        if text:
            self._put(text)


class TokenStream(BaseStreamer):
    """A streamer for one row of `generate`.

    Args:
        tokenizer: of the model.
        put: takes the verdict on the prompt, then pieces of text.
        held: keep tokens back until `release` or `finish` lets them go.
        framing: tokens that are no part of the text, while other control tokens are; None leaves out all of them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        put: Callable[[Any], None],
        *,
        held: bool,
        framing: frozenset[int] | None = None,
    ) -> None:
        self._text: Any = _Text(tokenizer, put, framing)
        self._notify = put
        self._held = held
        self._waiting: list[int] = []
        self._gone = 0
        self._prompt_seen = False
        self._judged = False

    def judged(self, verdicts: Sequence[Verdict]) -> None:
        """Called with the verdict on the prompt."""
        self._judged = True
        self._notify(verdicts[0])

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt, then with new tokens.

        Raises:
            EncoderError: there are tokens although the prompt was not judged.
        """
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        if not self._judged:
            raise EncoderError("this way of generating chose tokens without asking the gate")
        if self._held:
            self._waiting.extend(value.reshape(-1).tolist())
        else:
            self._text.put(value.reshape(-1))

    def end(self) -> None:
        """Called by `generate` behind the last token."""
        if not self._held:
            self._text.end()

    def release(self, count: int) -> None:
        """Let the first `count` tokens of the answer go."""
        if count > self._gone:
            going, self._waiting = self._waiting[: count - self._gone], self._waiting[count - self._gone :]
            self._gone = count
            for token in going:
                self._text.put(torch.tensor([token]))

    def finish(self) -> None:
        """Let everything go."""
        self.release(self._gone + len(self._waiting))
        self._text.end()
