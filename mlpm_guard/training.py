"""Streaming labelled prompts into a classifier: chunk by chunk, never all states at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from mlpm_guard.contradictions import LabelsSeen
from mlpm_guard.conversation import Conversation, ConversationLike, Message
from mlpm_guard.encoders.base import Encoder, States, Tokenising
from mlpm_guard.errors import CategoryError, ContradictoryLabelsError, DataError, InputError
from mlpm_guard.heap import give_back
from mlpm_guard.judging import Reading, TokenSpans, as_read, context_of, needs_spans
from mlpm_guard.prototypes.categories import UNKNOWN, require_name
from mlpm_guard.prototypes.classifier import content_keys
from mlpm_guard.verdict import Target
from mlpm_guard.windows import surely_whole, training_pieces

if TYPE_CHECKING:
    from mlpm_guard.prototypes.ledger import Keys

Label: TypeAlias = int | bool | str
"""0, False or "safe"; 1, True or "unsafe"."""

_Row: TypeAlias = tuple[Conversation, int, int, str | None]
"""A conversation, the index of the judged turn, its label and its category."""

_CHUNK_BYTES = 40 * 2**20
_FEWEST, _MOST = 64, 512
_AHEAD = 4096
_CHARACTERS_AHEAD = 1 << 22
_CHARACTERS_PER_TOKEN = 16
_WINDOWS = {"prompt": (4, 4), "response": (2, 1)}
"""Windows that a long text gives, by its label. A harmless answer is harmless throughout. A harmful one need not be: it
complies in its opening, and often ends in words that a harmless one could end in."""
_LABELS = {"safe": 0, "unsafe": 1, "0": 0, "1": 1, "false": 0, "true": 1}
_MISSING = object()
_MOST_CATEGORIES = 1 << 16


def parse_label(value: object) -> int:
    """0 for safe, 1 for unsafe.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and value.strip().lower() in _LABELS:
        return _LABELS[value.strip().lower()]
    if isinstance(value, (bool, int, np.bool_, np.integer)) and int(value) in (0, 1):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value) in (0.0, 1.0):
        return int(value)
    raise ValueError("a label is 0, False or 'safe', or 1, True or 'unsafe'")


class _Piece(NamedTuple):
    """A training window, and whether it is the first of its prompt."""

    conversation: Conversation
    label: int
    category: str | None
    first: bool


class Chunk(NamedTuple):
    """Training windows: states (n, layers, dim), labels, keys (n,), and categories; None where no categories are given."""

    states: States
    labels: list[int]
    keys: Keys
    categories: list[str | None] | None


def examples(
    prompts: Iterable[ConversationLike],
    labels: Iterable[Label],
    encoder: Encoder,
    reading: Reading,
    *,
    progress: bool | None,
    consistent: bool = True,
    categories: Iterable[str | None] | None = None,
    by_length: bool = False,
) -> Iterator[Chunk]:
    """Layer states, labels, keys and categories of training windows, a chunk at a time.

    A prompt of several windows gives up to four of them, spread evenly, each with the prompt's label; one in a context gives
    that. A harmless answer gives its first and its last window, a harmful one its first, for it need not be harmful to its
    end; where answers are judged in their context, they give that too. What is disguised beyond doubt is learned as it reads,
    which is how it is judged.

    Args:
        prompts: conversations, any iterable.
        labels: as many labels.
        encoder: gives the states.
        reading: how conversations are read.
        progress: show a progress bar; None shows one when standard error is a terminal.
        consistent: refuse the same prompt with both labels, or in two categories.
        categories: as many categories; None, or "other", for a prompt without one, and for every safe prompt.
        by_length: give windows of like length together, which wastes little of the encoder's batches on padding, instead of in
            the order of their prompts. Up to 4,096 prompts are read ahead for that.

    Raises:
        DataError: a row cannot be used, there are not as many labels or categories as prompts, or a prompt is in two
            categories.
        ContradictoryLabelsError: a prompt is there with both labels.
    """
    rows = with_categories(labelled(prompts, labels, reading.target, consistent=consistent), categories, consistent=consistent)
    # The states of one chunk stay within some megabytes, whatever the width of the model.
    of_prompt = len(encoder.layers) * encoder.dim * np.dtype(np.float32).itemsize
    size = min(_MOST, max(_FEWEST, _CHUNK_BYTES // of_prompt))
    with _progress(prompts, progress) as advance:
        for pieces in _ahead(rows, size, reading, encoder):
            # The encoder itself sorts what it is given at once.
            if by_length and len(pieces) > size:
                pieces.sort(key=lambda piece: piece.conversation.characters)
            for start in range(0, len(pieces), size):
                chunk = pieces[start : start + size]
                states = encoder.encode([piece.conversation for piece in chunk])
                keys = content_keys([piece.conversation.key() for piece in chunk])
                names = None if categories is None else [piece.category for piece in chunk]
                yield Chunk(states, [piece.label for piece in chunk], keys, names)
                advance(sum(piece.first for piece in chunk))
            give_back()


def _ahead(rows: Iterator[_Row], size: int, reading: Reading, encoder: Encoder) -> Iterator[list[_Piece]]:
    """Training windows of some thousand prompts at a time, of fewer where they are long."""
    while True:
        pieces: list[_Piece] = []
        prompts = characters = 0
        while prompts < _AHEAD and characters < _CHARACTERS_AHEAD and (block := _block(rows, size)):
            spans = TokenSpans(encoder)
            block = _tokenised([(as_read(row[0], reading), *row[1:]) for row in block], reading.window, encoder)
            turns = ((row[0], row[0].messages[row[1]].content) for row in block if row[0].token_ids is None)
            spans.prepare(text for conversation, text in turns if needs_spans(conversation, text, reading.window))
            for conversation, index, label, name in block:
                found = _pieces(conversation, index, label, reading, encoder, spans)
                pieces += [_Piece(piece, label, name, at == 0) for at, piece in enumerate(found)]
                characters += conversation.characters
            prompts += len(block)
        if not pieces:
            return
        yield pieces


def _tokenised(rows: list[_Row], window: int, encoder: Encoder) -> list[_Row]:
    """The same rows, with the token ids of short single turns that fit into a window, so that these are tokenised once.

    Where roles are read, a turn is tokenised with words of the template around it and cannot be measured by its ids.
    """
    if encoder.reads_roles or not isinstance(encoder, Tokenising):
        return rows
    found = list(rows)
    short = [
        at for at, row in enumerate(rows) if len(row[0].messages) == 1 and row[0].characters <= window * _CHARACTERS_PER_TOKEN
    ]
    for at, ids in zip(short, encoder.prompt_ids([rows[at][0] for at in short]), strict=True):
        # What stands around a text's tokens only makes them more.
        if len(ids) <= window:
            found[at] = (replace(rows[at][0], token_ids=ids), *rows[at][1:])
    return found


def _block(rows: Iterator[_Row], size: int) -> list[_Row]:
    """Up to `size` rows, fewer where they are long."""
    block: list[_Row] = []
    characters = 0
    while len(block) < size and characters < _CHARACTERS_AHEAD and (row := next(rows, None)) is not None:
        block.append(row)
        characters += row[0].characters
    return block


def labelled(
    prompts: Iterable[ConversationLike], labels: Iterable[Label], target: Target, *, consistent: bool = True
) -> Iterator[tuple[Conversation, int, int]]:
    """Conversations, the index of the judged turn, and the label.

    Args:
        prompts: conversations, any iterable.
        labels: as many labels.
        target: which turn is judged.
        consistent: refuse the same prompt with both labels.

    Raises:
        DataError: a row cannot be used, or there are more prompts than labels or labels than prompts.
        ContradictoryLabelsError: a prompt is there with both labels.
    """
    seen = LabelsSeen()
    for row, (prompt, label) in enumerate(paired(prompts, labels)):
        try:
            conversation = Conversation.parse(prompt, target=target)
            found = conversation, conversation.turn_index(target), parse_label(label)
        except (InputError, ValueError) as error:
            raise DataError(f"row {row}: {error}") from None
        if consistent:
            (key,) = content_keys([conversation.key()]).tolist()
            earlier = seen.add(key, row, found[2])
            if earlier is not None:
                raise ContradictoryLabelsError(
                    f"row {row}: the same prompt as row {earlier}, with the other label; remove one of the two", (earlier, row)
                )
        yield found


def with_categories(
    rows: Iterator[tuple[Conversation, int, int]], categories: Iterable[str | None] | None, *, consistent: bool = True
) -> Iterator[_Row]:
    """Labelled rows with their categories; see `examples`.

    Raises:
        DataError: a category cannot be used, or there are more or fewer than rows.
        ContradictoryLabelsError: a prompt is in two.
    """
    if categories is None:
        yield from ((*row, None) for row in rows)
        return
    if isinstance(categories, (str, bytes)) or not isinstance(categories, Iterable):
        raise DataError(f"categories: a list of them, not {type(categories).__name__}")
    names, numbers, seen = iter(categories), dict[str, int](), LabelsSeen(_MOST_CATEGORIES)
    number = 0
    for number, (conversation, index, label) in enumerate(rows, start=1):
        name = next(names, _MISSING)
        if name is _MISSING:
            raise DataError(f"there are only {number - 1} categories; give one, or None, for every prompt")
        try:
            name = None if name is None or name == UNKNOWN else require_name(name)
        except CategoryError as error:
            raise DataError(f"row {number - 1}: {error}") from None
        if name is not None and label == 0:
            raise DataError(f"row {number - 1}: a safe prompt has no category, but this one is given one; give None")
        if name is not None and consistent:
            code = numbers.setdefault(name, len(numbers))
            if code >= _MOST_CATEGORIES:
                raise DataError(f"more than {_MOST_CATEGORIES} categories")
            (key,) = content_keys([conversation.key()]).tolist()
            earlier = seen.add(key, number - 1, code)
            if earlier is not None:
                raise ContradictoryLabelsError(
                    f"row {number - 1}: the same prompt as row {earlier}, in another category; remove one of the two",
                    (earlier, number - 1),
                )
        yield conversation, index, label, name
    if next(names, _MISSING) is not _MISSING:
        raise DataError(f"there are only {number} prompts; give one category, or None, for each")


def paired(prompts: Iterable[ConversationLike], labels: Iterable[Label]) -> Iterator[tuple[ConversationLike, Label]]:
    """Prompts with their labels, as they are given.

    Raises:
        DataError: there are more prompts than labels or labels than prompts, or one of the two is no list.
    """
    if isinstance(prompts, (str, bytes)):
        raise DataError("prompts is one text; give a list of them")
    for name, value in (("prompts", prompts), ("labels", labels)):
        if not isinstance(value, Iterable):
            raise DataError(f"{name}: a list of them, not {type(value).__name__}")
    prompt_iterator, label_iterator = iter(prompts), iter(labels)
    rows = 0
    while True:
        prompt = next(prompt_iterator, _MISSING)
        label = next(label_iterator, _MISSING)
        if prompt is _MISSING and label is _MISSING:
            return
        if prompt is _MISSING or label is _MISSING:
            fewer = "prompts" if prompt is _MISSING else "labels"
            raise DataError(f"there are only {rows} {fewer}; give one label for every prompt")
        yield prompt, label  # type: ignore[misc]
        rows += 1


def _pieces(
    conversation: Conversation, index: int, label: int, reading: Reading, encoder: Encoder, spans: TokenSpans
) -> list[Conversation]:
    turn = conversation.messages[index]
    context = context_of(conversation, index, encoder, reading, spans)
    if context is not None and reading.target == "prompt":
        return [context]
    role = turn.role if turn.role == "assistant" else "user"
    if context is None and (conversation.token_ids is not None or surely_whole(turn.content, reading.window)):
        return [Conversation((Message(role, turn.content),), token_ids=conversation.token_ids)]
    windows = [
        Conversation((Message(role, turn.content[piece.start : piece.end]),))
        for piece in training_pieces(turn.content, spans(turn.content), reading.window, _WINDOWS[reading.target][label])
    ]
    return windows if context is None else [context, *windows]


@contextlib.contextmanager
def _progress(prompts: Iterable[object], shown: bool | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if shown is False or (shown is None and not console.is_terminal):
        yield lambda _count: None
        return
    total = len(prompts) if isinstance(prompts, Sized) else None
    columns = (TextColumn("fitting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("fit", total=total)
        yield lambda count: bar.advance(task, count)
