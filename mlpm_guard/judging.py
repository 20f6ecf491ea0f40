"""From conversations to evidence: which pieces of each are judged, and which of them decides.

Pure functions over an encoder and a scorer; no policy, no state.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mlpm_guard.conversation import Conversation, Message
from mlpm_guard.disguises import Undisguised, undisguise
from mlpm_guard.encoders.base import Encoder
from mlpm_guard.errors import EncoderError, GuardTimeoutError, MlpmGuardError, NonFiniteError
from mlpm_guard.prototypes.categories import Categories
from mlpm_guard.prototypes.novelty import Novelty
from mlpm_guard.prototypes.scorer import Array, LayerScorer
from mlpm_guard.verdict import Form, Target, WindowEvidence
from mlpm_guard.windows import Piece, Spans, cut, surely_whole

_log = logging.getLogger("mlpm_guard")
_UNITS_AT_ONCE = 512
_CHARACTERS_AT_ONCE = 1 << 18
_TOPIC_MARGIN = 1.0
# Shares of the fragment margin: the least that a fragment of few has, what every doubling of their number adds to that, and
# what a window of a longer prompt has.
_LEAST_MARGIN, _FEW, _PER_DOUBLING, _MANY = 0.2, 10, 0.16, 64
_WINDOW_MARGIN = 0.45


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece to encode: what the encoder reads, and where it comes from."""

    conversation: Conversation
    where: WindowEvidence


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a piece of a conversation says; of all pieces, the deciding one.

    Attributes:
        log_odds: of the score, in nats, margin deducted.
        layer_log_odds: of every used layer, shape (used,).
        margin: log-odds deducted because the piece is a fragment or a window of a longer text, in nats.
        where: the piece.
        windows: pieces judged.
        distances: squared Mahalanobis distances to the classes, shape (classes, used); None when not measured.
        novelty: their percentile among those of training prompts; None when not measured.
        categories: what every layer adds to each category's log-odds, in nats, shape (categories, used).
        highest: the highest log-odds of every category among the pieces, less a margin for fragments, shape (categories,).
    """

    log_odds: float
    layer_log_odds: Array = field(repr=False)
    margin: float
    where: WindowEvidence
    windows: int
    distances: Array | None = field(default=None, repr=False)
    novelty: float | None = None
    categories: Array = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    highest: Array = field(default_factory=lambda: np.zeros(0), repr=False)


@dataclass(frozen=True, slots=True)
class Examined:
    """Evidence on every piece of a conversation.

    Attributes:
        pieces: in order.
        decisive: index of the one that decides.
    """

    pieces: tuple[Evidence, ...]
    decisive: int

    @property
    def deciding(self) -> Evidence:
        """What `Judge.judge` gives."""
        return self.pieces[self.decisive]


class _Scored(NamedTuple):
    """What is kept of the states of a piece.

    Layer log-odds, shape (used,); distances, shape (classes, used), or None; and what every layer adds to each category's
    log-odds, shape (categories, used).
    """

    log_odds: Array
    distances: Array | None
    categories: Array


@dataclass(frozen=True, slots=True)
class Reading:
    """How conversations are read.

    Attributes:
        target: which turn is judged.
        window: tokens of a judging window.
        normalise: whether it is also judged what disguised text says; see `disguises`.
        fragment_margin: most that is deducted from a fragment, as a share of the distance between the classes; nearly half of
            it is deducted from every window of a prompt that is longer than one.
    """

    target: Target
    window: int
    normalise: bool
    fragment_margin: float


class TokenSpans:
    """Token spans of texts, worked out for many at once and remembered; one per call.

    Args:
        encoder: whose tokens are meant.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, Spans] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Work out the spans of all of these together."""
        batch: list[str] = []
        characters = 0
        for text in dict.fromkeys(texts):
            batch.append(text)
            characters += len(text)
            if characters >= _CHARACTERS_AT_ONCE:
                self._add(batch)
                batch, characters = [], 0
        if batch:
            self._add(batch)

    def __call__(self, text: str) -> Spans:
        """Spans of one text, shape (tokens, 2)."""
        if text not in self._known:
            self.prepare([text])
        return self._known[text]

    def _add(self, texts: list[str]) -> None:
        self._known.update(zip(texts, self._encoder.spans(texts), strict=True))


def needs_spans(conversation: Conversation, turn: str, window: int) -> bool:
    """Whether a judged turn, alone or in its context, has to be tokenised before it can be cut."""
    return len(conversation.messages) > 1 or not surely_whole(turn, window)


def units(conversation: Conversation, encoder: Encoder, reading: Reading, spans: TokenSpans | None = None) -> list[Unit]:
    """Every piece of a conversation that is judged: the turn alone and the turn in its context, in every form of their text.

    A prompt is also judged sentence by sentence. An answer is not: its single sentences say too little of what it does, and the
    worst of many harmless ones would decide too often. `context_of` says when an answer's context is judged.

    Args:
        conversation: the conversation.
        encoder: whose windows and tokens are meant.
        reading: how it is read.
        spans: token spans that are known already.

    Raises:
        InputError: there is nothing that can be judged.
    """
    index = conversation.turn_index(reading.target)
    spans = spans or TokenSpans(encoder)
    found: list[Unit] = []
    judged: set[str] = set()
    for form, each in _forms(conversation, index, reading):
        turn = each.messages[index]
        if not turn.content.strip():
            continue  # nothing but invisible characters, which the raw form has kept
        if turn.content not in judged:
            judged.add(turn.content)
            unchanged = turn.content == conversation.messages[index].content
            found += _pieces_of(turn, "raw" if unchanged else form, reading, spans)
        if form == "payload":
            continue
        context = context_of(each, index, encoder, reading, spans)
        if context is not None:
            where = WindowEvidence(view="context", form=form, kind="whole", index=0, count=1)
            found.append(Unit(context, where))
    return found


def _forms(conversation: Conversation, index: int, reading: Reading) -> list[tuple[Form, Conversation]]:
    """The conversation as it came, unless its readings leave that out; as it reads; and what the judged turn has encoded."""
    messages = conversation.messages
    readings = _readings(conversation, reading)
    found = [each.form for each in (readings[index], *readings) if each is not None]
    if not found:
        return [("raw", conversation)]
    kept = [_as_it_reads(*each) if _replaces(each[1], reading) else each[0] for each in zip(messages, readings, strict=True)]
    read = [_as_it_reads(*each) for each in zip(messages, readings, strict=True)]
    forms: list[tuple[Form, Conversation]] = [(found[0], Conversation(tuple(read)))]
    if kept != read:
        forms.insert(0, ("raw" if kept[index] is messages[index] else found[0], Conversation(tuple(kept))))
    turn = readings[index]
    if turn is not None and turn.payload is not None:
        alone = Message(messages[index].role, turn.payload)
        forms.append(("payload", Conversation((*read[:index], alone, *read[index + 1 :]))))
    return forms


def as_read(conversation: Conversation, reading: Reading) -> Conversation:
    """The conversation with every text that is disguised beyond doubt as it reads; itself where there is none."""
    readings = _readings(conversation, reading)
    if not any(_replaces(each, reading) for each in readings):
        return conversation
    pairs = zip(conversation.messages, readings, strict=True)
    return Conversation(tuple(_as_it_reads(*each) if _replaces(each[1], reading) else each[0] for each in pairs))


def _readings(conversation: Conversation, reading: Reading) -> list[Undisguised | None]:
    return [undisguise(message.content) if reading.normalise else None for message in conversation.messages]


def _replaces(found: Undisguised | None, reading: Reading) -> bool:
    # An answer quotes, encodes and shows code more often than it hides something: it is never judged by its readings alone.
    return found is not None and found.certain and reading.target == "prompt"


def _as_it_reads(message: Message, found: Undisguised | None) -> Message:
    return message if found is None else Message(message.role, found.text, message.not_judged)


def _pieces_of(turn: Message, form: Form, reading: Reading, spans: TokenSpans) -> list[Unit]:
    if surely_whole(turn.content, reading.window):
        pieces = [Piece(0, len(turn.content), "whole")]
    else:
        pieces = cut(turn.content, spans(turn.content), reading.window)
    if reading.target == "response":
        pieces = [piece for piece in pieces if piece.kind != "fragment"]
    role = turn.role if turn.role == "assistant" else "user"
    return [
        Unit(
            Conversation((Message(role, turn.content[piece.start : piece.end]),)),
            WindowEvidence(view="turn", form=form, kind=piece.kind, index=at, count=len(pieces)),
        )
        for at, piece in enumerate(pieces)
    ]


def context_of(
    conversation: Conversation, index: int, encoder: Encoder, reading: Reading, spans: TokenSpans
) -> Conversation | None:
    """The judged turn in its context, where it is judged there; None where it is not.

    To an encoder that does not read roles, a harmful prompt before an answer looks as if the answer had said it: a refusal then
    resembles what it refuses. Such an encoder is shown an answer without its context.
    """
    if reading.target == "response" and not encoder.reads_roles:
        return None
    return in_context(conversation, index, encoder, reading.window, spans)


def in_context(conversation: Conversation, index: int, encoder: Encoder, window: int, spans: TokenSpans) -> Conversation | None:
    """The judged turn with as much of its surroundings as fits into one window; None if there are none.

    The turn keeps at least half of the window (its beginning), what follows it (a prefilled answer) at most a quarter, and the
    rest goes to what came before, latest first. Encoders that do not read roles are not shown system messages, which are the
    application's own words.
    """
    messages = conversation.messages
    before = [message for message in messages[:index] if message.content.strip()]
    after = [message for message in messages[index + 1 :] if message.content.strip()]
    if not encoder.reads_roles:
        before = list(Conversation(tuple(before)).without_instructions().messages)
    if not before and not after:
        return None
    turn = messages[index]
    turn_room = min(len(spans(turn.content)), window // 2)
    kept_after: list[Message] = []
    room = window // 4
    for message in after:
        text, used = _head(message.content, room, spans)
        room -= used
        kept_after.append(Message(message.role, text))
        if room <= 0:
            break
    room = window - turn_room - (window // 4 - max(room, 0))
    kept_before: list[Message] = []
    for message in reversed(before):
        text, used = _tail(message.content, room, spans)
        room -= used
        kept_before.append(Message(message.role, text))
        if room <= 0:
            break
    text, _ = _head(turn.content, turn_room, spans)
    return Conversation((*reversed(kept_before), Message(turn.role, text), *kept_after))


def _head(text: str, tokens: int, spans: TokenSpans) -> tuple[str, int]:
    found = spans(text)
    return (text, len(found)) if len(found) <= tokens else (text[: found[max(tokens, 1) - 1, 1]], tokens)


def _tail(text: str, tokens: int, spans: TokenSpans) -> tuple[str, int]:
    found = spans(text)
    return (text, len(found)) if len(found) <= tokens else (text[found[-max(tokens, 1), 0] :], tokens)


class Judge:
    """Scores batches of conversations. Immutable; one per call.

    Args:
        encoder: gives layer states.
        scorer: turns them into log-odds.
        novelty: measures how unlike training they are, or None.
        categories: tells how likely they belong to each category.
        layers: `hidden_states` indices that the scorer uses.
        reading: how conversations are read.
        cancelled: set by a caller that no longer waits; work then ends at the next chunk.
    """

    def __init__(
        self,
        encoder: Encoder,
        scorer: LayerScorer,
        novelty: Novelty | None,
        categories: Categories,
        layers: Sequence[int],
        reading: Reading,
        cancelled: threading.Event,
    ) -> None:
        self._encoder = encoder
        self._scorer = scorer
        self._novelty = novelty
        self._categories = categories
        self._layers = tuple(layers)
        self._reading = reading
        self._cancelled = cancelled

    def judge(self, conversations: Sequence[Conversation]) -> list[Evidence | MlpmGuardError]:
        """Evidence on every conversation, or why there is none. One that fails does not fail the others."""
        return [self._worst(plan, scored) if isinstance(plan, list) else plan for plan, scored in self._scored(conversations)]

    def examine(self, conversations: Sequence[Conversation]) -> list[Examined | MlpmGuardError]:
        """Evidence on every piece of every conversation, or why there is none."""
        return [self._all(plan, scored) if isinstance(plan, list) else plan for plan, scored in self._scored(conversations)]

    def _scored(
        self, conversations: Sequence[Conversation]
    ) -> list[tuple[list[Unit] | MlpmGuardError, list[_Scored | MlpmGuardError]]]:
        """Pieces of every conversation, or why there are none, and what each of them got."""
        plans: list[list[Unit] | MlpmGuardError] = []
        spans = self._spans(conversations)
        for conversation in conversations:
            try:
                plans.append(units(conversation, self._encoder, self._reading, spans))
            except MlpmGuardError as error:
                plans.append(error)
            except Exception as error:  # noqa: BLE001  (fails closed, whatever a tokenizer raises)
                plans.append(_wrapped(error))
        pending: dict[bytes, Conversation] = {}
        keys = [[] if isinstance(plan, MlpmGuardError) else [unit.conversation.key() for unit in plan] for plan in plans]
        for plan, of_plan in zip(plans, keys, strict=True):
            if not isinstance(plan, MlpmGuardError):
                pending.update(zip(of_plan, (unit.conversation for unit in plan), strict=True))
        scored = self._score(pending)
        return [(plan, [scored[key] for key in of_plan]) for plan, of_plan in zip(plans, keys, strict=True)]

    def _spans(self, conversations: Sequence[Conversation]) -> TokenSpans:
        spans = TokenSpans(self._encoder)
        try:
            turns = ((each, each.messages[each.turn_index(self._reading.target)].content) for each in conversations)
            spans.prepare(text for each, text in turns if needs_spans(each, text, self._reading.window))
        except Exception:  # noqa: BLE001  (one text that a tokenizer cannot take; found out one by one)
            return TokenSpans(self._encoder)
        return spans

    def _score(self, pending: dict[bytes, Conversation]) -> dict[bytes, _Scored | MlpmGuardError]:
        """What every different piece gets."""
        scored: dict[bytes, _Scored | MlpmGuardError] = {}
        items = list(pending.items())
        # Pieces of like length share a chunk, so that batches of the encoder stay full.
        items.sort(key=lambda item: len(item[0]))
        for start in range(0, len(items), _UNITS_AT_ONCE):
            chunk = items[start : start + _UNITS_AT_ONCE]
            results = self._encode([conversation for _, conversation in chunk])
            scored.update(zip((key for key, _ in chunk), results, strict=True))
        return scored

    def _encode(self, conversations: Sequence[Conversation]) -> list[_Scored | MlpmGuardError]:
        if self._cancelled.is_set():
            return [GuardTimeoutError("the caller stopped waiting")] * len(conversations)
        try:
            states = self._encoder.encode(conversations, layers=self._layers)
            if states.shape != (len(conversations), *self._scorer.weights.shape):
                raise EncoderError(f"the encoder returned states of shape {states.shape}")
            log_odds = self._scorer.log_odds(states)
            distances = [None] * len(states) if self._novelty is None else list(self._novelty.distances(states))
            categories = self._categories.contributions(states, self._scorer.positions)
        except Exception as error:  # noqa: BLE001  (fails closed, whatever an encoder raises)
            if len(conversations) > 1:
                # One bad item, or too little memory: halves find the former and survive the latter.
                half = len(conversations) // 2
                return [*self._encode(conversations[:half]), *self._encode(conversations[half:])]
            return [error if isinstance(error, MlpmGuardError) else _wrapped(error)]
        finite = np.asarray(np.isfinite(log_odds).all(axis=1) & np.isfinite(categories).all(axis=(1, 2)))
        return [
            _Scored(row, distance, of_row) if good else NonFiniteError("the encoder's states give a score that is not a number")
            for row, distance, of_row, good in zip(log_odds, distances, categories, finite.tolist(), strict=True)
        ]

    def _worst(self, plan: Sequence[Unit], results: Sequence[_Scored | MlpmGuardError]) -> Evidence | MlpmGuardError:
        summed = self._summed(plan, results)
        return summed if isinstance(summed, MlpmGuardError) else self._evidence(plan, summed, int(summed.log_odds.argmax()))

    def _all(self, plan: Sequence[Unit], results: Sequence[_Scored | MlpmGuardError]) -> Examined | MlpmGuardError:
        summed = self._summed(plan, results)
        if isinstance(summed, MlpmGuardError):
            return summed
        pieces = tuple(self._evidence(plan, summed, index) for index in range(len(plan)))
        return Examined(pieces, int(summed.log_odds.argmax()))

    def _summed(self, plan: Sequence[Unit], results: Sequence[_Scored | MlpmGuardError]) -> _Summed | MlpmGuardError:
        rows: list[_Scored] = []
        for result in results:
            if isinstance(result, MlpmGuardError):
                return result  # a piece that was not judged is a conversation that was not judged
            rows.append(result)
        log_odds = self._scorer.aggregate(np.stack([row.log_odds for row in rows]))
        where = [unit.where for unit in plan]
        margins = _margins(where, log_odds, self._reading.fragment_margin, self._scorer.levels)
        margins += _window_margins(where, self._reading, self._scorer.levels)
        topics = [row.categories.sum(axis=1) - topic_margin(unit.where) for row, unit in zip(rows, plan, strict=True)]
        highest = np.max(topics, axis=0) + self._categories.biases
        return _Summed(rows, log_odds - margins, margins, highest)

    def _evidence(self, plan: Sequence[Unit], summed: _Summed, index: int) -> Evidence:
        row = summed.rows[index]
        novelty = None
        if self._novelty is not None and row.distances is not None:
            novelty = float(self._novelty.percentile(row.distances[None])[0])
        return Evidence(
            float(summed.log_odds[index]),
            row.log_odds,
            float(summed.margins[index]),
            plan[index].where,
            len(plan),
            row.distances,
            novelty,
            row.categories,
            summed.highest,
        )


class _Summed(NamedTuple):
    """The pieces of one conversation.

    Rows; log-odds with margins deducted, and the margins, each of shape (pieces,); the highest log-odds of every category.
    """

    rows: list[_Scored]
    log_odds: Array
    margins: Array
    highest: Array


def topic_margin(where: WindowEvidence) -> float:
    """Log-odds to deduct from every category of a piece, in nats.

    A sentence alone looks more like some topic than its text does, and the more there are, the more so.
    """
    return _TOPIC_MARGIN if where.kind == "fragment" else 0.0


def _margins(where: Sequence[WindowEvidence], log_odds: Array, share: float, levels: tuple[float, float]) -> Array:
    """Log-odds to deduct from every piece, shape (pieces,).

    Out of context, harmless sentences of a text about crime, war or medicine look worse than they are, and the more there are,
    the worse the worst one looks. Hidden among padding, a harmful sentence stands out. So a fragment must be clearer than a
    whole text, by up to `share` of the distance between a typical safe and a typical unsafe prompt, unless the others are calm
    (their lower median is that of a safe prompt), or all alike (words repeated over and over) while this one is far from them.
    Even then it must be a little clearer, as any text of many sentences gives it many chances: the more, the clearer,
    where it does not stand out.
    """
    margins = np.zeros(len(where))
    calm, distance = levels[0], levels[1] - levels[0]
    for form in dict.fromkeys(each.form for each in where):
        chosen = [index for index, each in enumerate(where) if each.kind == "fragment" and each.form == form]
        if not chosen or distance <= 0.0:
            continue
        fragments = log_odds[chosen]
        lower, median, upper = np.quantile(fragments, [0.25, 0.5, 0.75], method="lower")
        raised = _ramp((median - calm) / distance, 0.0, 0.2)
        varied = _ramp((upper - lower) / distance, 0.1, 0.2)
        ordinary = 1.0 - _ramp((fragments - median) / distance, 0.4, 0.7)
        blends_in = np.maximum(varied, ordinary)
        least = _LEAST_MARGIN + _PER_DOUBLING * np.log2(np.clip(len(chosen), _FEW, _MANY) / _FEW) * blends_in
        margins[chosen] = share * distance * np.maximum(least, np.minimum(raised, blends_in))
    return margins


def _window_margins(where: Sequence[WindowEvidence], reading: Reading, levels: tuple[float, float]) -> Array:
    """Log-odds to deduct from every piece that is a window of a longer prompt, shape (pieces,).

    The worst of several windows decides, so that a long harmless prompt has more chances to be flagged than a short one. A
    harmful answer is harmful nearly throughout, and nothing is deducted from its windows.
    """
    distance = max(0.0, levels[1] - levels[0])
    margin = _WINDOW_MARGIN * reading.fragment_margin * distance if reading.target == "prompt" else 0.0
    return np.array([margin if each.kind == "window" else 0.0 for each in where])


def _ramp(values: Array, start: float, end: float) -> Array:
    """0 up to `start`, 1 from `end` on, straight between."""
    return np.clip((np.asarray(values) - start) / (end - start), 0.0, 1.0)


def _wrapped(error: Exception) -> EncoderError:
    """An error from below without its message, which may quote the prompt; its type and place say enough to look."""
    place = "unknown place"
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    _log.warning("encoder failed: %s at %s", type(error).__name__, place)
    return EncoderError(f"{type(error).__name__} at {place}")
