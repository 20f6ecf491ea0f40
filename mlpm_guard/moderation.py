"""One answer under moderation: chunks in, questions to the guard out, verdicts in, released text out.

Does no input or output and knows no iterators, so that a sync and an async driver can share it. One per answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

from mlpm_guard.conversation import Conversation, ConversationLike, Message
from mlpm_guard.errors import ConfigurationError, InvalidConversationError, ResponseBlocked
from mlpm_guard.segments import Every, HoldBack, Segmenter, TokenStarts, squeeze, tail, word_starts
from mlpm_guard.sources import END
from mlpm_guard.verdict import Action, OnReview, Verdict

OnBlock: TypeAlias = Literal["stop", "replace", "raise"]
TextUnit: TypeAlias = Literal["characters", "tokens"]
Question: TypeAlias = "list[dict[str, Any]]"


@dataclass(frozen=True)
class Settings:
    """How answers are moderated; see `StreamModerator`.

    Attributes:
        prompt: the messages that are being answered.
        hold_back: how much stays back; None for everything.
        every: "sentence", or a number of tokens.
        on_block: "stop", "replace" or "raise".
        refusal: what "replace" says.
        context: characters shown in front of a unit.
        unit: of `hold_back`.
        starts: what counts tokens.
        on_review: "pass" or "block".
    """

    prompt: tuple[dict[str, Any], ...] = field(repr=False)
    hold_back: int | None
    every: Every
    on_block: OnBlock
    refusal: str = field(repr=False)
    context: int
    unit: TextUnit
    starts: TokenStarts = field(repr=False)
    on_review: OnReview = "pass"

    @property
    def counts_tokens(self) -> bool:
        """Whether anything depends on tokens."""
        return self.every != "sentence" or (self.unit == "tokens" and bool(self.hold_back))


class Record:
    """The verdict that counts, of all on one answer: the one that blocked, else the worst; see `ModeratedStream.verdict`."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None

    def add(self, verdict: Verdict) -> None:
        """One more verdict."""
        if self.verdict is None or verdict.action is Action.BLOCK or _badness(verdict) > _badness(self.verdict):
            self.verdict = verdict


def _badness(verdict: Verdict) -> tuple[bool, bool, float]:
    return verdict.action is Action.REVIEW, verdict.error is not None, verdict.score or 0.0


class Moderation:
    """One answer on its way.

    Take a chunk, then ask and answer until there is no question left; while `open`, go on with the next chunk; at the end comes
    `last`.

    Args:
        settings: how it is moderated.
        record: where the verdict goes.
    """

    def __init__(self, settings: Settings, record: Record) -> None:
        self._settings = settings
        self.record = record
        self._segmenter = Segmenter(settings.every, settings.starts)
        self._held = HoldBack(settings.hold_back, settings.starts if settings.unit == "tokens" else None)
        self._history = ""
        self._asked = ""
        self._rest: str | None = None
        self._chunks = 0
        self._blocked = False
        self.open = True

    def prepare(self) -> None:
        """Load what counts tokens, where they are counted; otherwise the first count does. May take seconds."""
        if self._settings.counts_tokens:
            self._settings.starts([""])

    def take(self, chunk: object) -> None:
        """A chunk, or `END`.

        Raises:
            InvalidConversationError: it is not text.
        """
        if chunk is END:
            self.open = False
        elif isinstance(chunk, str):
            self._chunks += 1
            self._segmenter.push(chunk)
        else:
            raise InvalidConversationError(
                f"chunk {self._chunks} of the answer is {type(chunk).__name__}, not text: pass the text of each chunk, and "
                "leave out those without text"
            )

    def question(self) -> Question | None:
        """What the guard is asked about the next unit; None if there is none yet."""
        if self._blocked or self._rest is not None:
            return None
        unit = self._segmenter.next()
        if unit is None:
            if self.open:
                return None
            unit = self._segmenter.rest()
            self._rest = ""
            if not unit.text.strip():
                self._rest = unit.lead + unit.text
                return None
        self._asked = unit.lead + unit.text
        judged = unit.lead[:1] + unit.text
        text = squeeze(tail(self._history, self._settings.context) + judged)
        # One character more than is shown, by which `tail` knows whether a word begins there.
        self._history = squeeze(self._history + judged)[-self._settings.context - 1 :]
        return [*self._settings.prompt, {"role": "assistant", "content": text}]

    def answer(self, verdict: object) -> str:
        """The guard's verdict on the last question; returns text that may go now.

        Raises:
            ConfigurationError: it is no verdict.
        """
        if not isinstance(verdict, Verdict):
            raise ConfigurationError(f"the guard returned {type(verdict).__name__}, not a Verdict")
        verdict = verdict.resolved(self._settings.on_review)
        self.record.add(verdict)
        if verdict.action is Action.BLOCK:
            self._blocked, self.open = True, False
            return ""
        return self._held.add(self._asked)

    def last(self) -> str:
        """What ends the stream: the rest of the text, or what `on_block` wants.

        Raises:
            ResponseBlocked: the answer was blocked, with `on_block="raise"`.
        """
        if not self._blocked:
            return self._held.rest() + (self._rest or "")
        if self._settings.on_block == "raise":
            assert self.record.verdict is not None
            raise ResponseBlocked(self.record.verdict)
        return self._settings.refusal if self._settings.on_block == "replace" else ""


def as_messages(prompt: ConversationLike | None) -> tuple[dict[str, Any], ...]:
    """A prompt as role/content messages, which any guard reads; empty for None.

    Raises:
        InvalidConversationError: it is not a conversation.
    """
    return () if prompt is None else tuple(_as_mapping(message) for message in Conversation.parse(prompt).messages)


def _as_mapping(message: Message) -> dict[str, Any]:
    if not message.not_judged:
        return {"role": message.role, "content": message.content}
    others = [{"type": kind} for kind in message.not_judged]
    return {"role": message.role, "content": [{"type": "text", "text": message.content}, *others]}


def token_starts(guard: object) -> TokenStarts:
    """What counts tokens for a guard: its encoder, or words where it has none."""
    spans = getattr(getattr(guard, "encoder", None), "spans", None)
    return partial(_starts, spans) if callable(spans) else word_starts


def _starts(spans: Callable[[Sequence[str]], Sequence[Any]], texts: Sequence[str]) -> list[list[int]]:
    # Tokenizers refuse surrogates; one placeholder each keeps the positions.
    readable = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return [[int(start) for start, _ in found] for found in spans(readable)]
