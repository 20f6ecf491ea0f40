"""Reading the examples of a category: checked, encoded, and told from the negatives."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlpm_guard.conversation import ConversationLike
from mlpm_guard.encoders.base import Encoder, States
from mlpm_guard.errors import CategoryError, ContradictoryLabelsError, DataError
from mlpm_guard.judging import Reading
from mlpm_guard.training import examples as encoded
from mlpm_guard.training import labelled

MIN_EXAMPLES = 5
"""Different examples that a category needs."""
THRESHOLD = 0.5
"""Probability from which an added category flags, where nothing else is said."""


def read_examples(
    examples: Iterable[ConversationLike],
    negatives: Iterable[ConversationLike] | None,
    encoder: Encoder,
    reading: Reading,
) -> tuple[int, States, States | None]:
    """How many examples there are, and the layer states of examples and negatives.

    Args:
        examples: what belongs to the category.
        negatives: what does not, or None.
        encoder: gives the states.
        reading: how conversations are read.

    Raises:
        CategoryError: there are fewer than `MIN_EXAMPLES` different examples.
        ContradictoryLabelsError: one is an example and a negative.
        DataError: one cannot be used.
    """
    given = _listed("examples", examples)
    others = [] if negatives is None else _listed("negatives", negatives)
    keys = [conversation.key() for conversation, _, _ in labelled(given, [1] * len(given), reading.target)]
    if len(set(keys)) < MIN_EXAMPLES:
        raise CategoryError(
            f"{len(set(keys))} different examples; a category needs at least {MIN_EXAMPLES}, and gets better up to about 50"
        )
    position = {key: index for index, key in enumerate(keys)}
    for index, (conversation, _, _) in enumerate(labelled(others, [0] * len(others), reading.target)):
        at = position.get(conversation.key())
        if at is not None:
            raise ContradictoryLabelsError(f"example {at} is also negative {index}; remove one of the two", (at, index))
    first = _states(given, 1, encoder, reading)
    assert first is not None
    return len(keys), first, _states(others, 0, encoder, reading)


def _listed(name: str, values: Iterable[ConversationLike]) -> list[ConversationLike]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DataError(f"{name}: a list of texts or conversations, not {type(values).__name__}")
    return list(values)


def _states(rows: list[ConversationLike], label: int, encoder: Encoder, reading: Reading) -> States | None:
    chunks = [chunk.states for chunk in encoded(rows, [label] * len(rows), encoder, reading, progress=False)]
    return np.concatenate(chunks) if chunks else None
