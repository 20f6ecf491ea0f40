"""Reading the examples of a category: checked, encoded, and told from the negatives."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.encoders.base import Encoder, States
from mlpm_guard.errors import CategoryError, ContradictoryLabelsError, DataError, InputError, NonFiniteError
from mlpm_guard.judging import Reading
from mlpm_guard.training import examples as encoded
from mlpm_guard.variants import variant_key

MIN_EXAMPLES = 5
"""Different examples that a category needs."""
THRESHOLD = 0.5
"""Probability from which an added category flags, where nothing else is said."""


def read_examples(
    examples: Iterable[ConversationLike],
    negatives: Iterable[ConversationLike] | None,
    encoder: Encoder,
    reading: Reading,
    max_chars: int,
) -> tuple[int, States, States | None]:
    """How many different examples there are, and the layer states of examples and negatives.

    What differs in blanks, case and Unicode forms only is one and the same example, and is learned once.

    Args:
        examples: what belongs to the category.
        negatives: what does not, or None.
        encoder: gives the states.
        reading: how conversations are read.
        max_chars: longest conversation that the guard judges, in characters.

    Raises:
        CategoryError: there are fewer than `MIN_EXAMPLES` different examples.
        ContradictoryLabelsError: one is an example and a negative.
        DataError: one cannot be used; the message counts examples, and negatives, from 0.
        NonFiniteError: the encoder gives states that are no numbers.
    """
    given = _distinct("example", examples, reading, max_chars)
    others = {} if negatives is None else _distinct("negative", negatives, reading, max_chars)
    if len(given) < MIN_EXAMPLES:
        raise CategoryError(
            f"{len(given)} different examples; a category needs at least {MIN_EXAMPLES}, and gets better up to about 50"
        )
    for key, (at, _) in given.items():
        if key in others:
            index = others[key][0]
            raise ContradictoryLabelsError(f"example {at} is also negative {index}; remove one of the two", (at, index))
    first = _states("examples", given, 1, encoder, reading)
    assert first is not None
    return len(given), first, _states("negatives", others, 0, encoder, reading)


def _distinct(
    kind: str, values: Iterable[ConversationLike], reading: Reading, max_chars: int
) -> dict[bytes, tuple[int, Conversation]]:
    """Every different conversation with its position, by what makes it different."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DataError(f"{kind}s: a list of texts or conversations, not {type(values).__name__}")
    found: dict[bytes, tuple[int, Conversation]] = {}
    for index, value in enumerate(values):
        try:
            conversation = Conversation.parse(value, target=reading.target)
            conversation.turn_index(reading.target)
        except InputError as error:
            raise DataError(f"{kind} {index}: {error}") from None
        if conversation.characters > max_chars:
            raise DataError(f"{kind} {index}: {conversation.characters} characters; this guard judges up to {max_chars}")
        found.setdefault(variant_key(conversation), (index, conversation))
    return found


def _states(
    kind: str, rows: dict[bytes, tuple[int, Conversation]], label: int, encoder: Encoder, reading: Reading
) -> States | None:
    conversations = [conversation for _, conversation in rows.values()]
    chunks = [chunk.states for chunk in encoded(conversations, [label] * len(rows), encoder, reading, progress=False)]
    if not chunks:
        return None
    states = np.concatenate(chunks)
    if not np.isfinite(states).all():
        raise NonFiniteError(f"the encoder gives states of the {kind} that are NaN or infinite")
    return states
