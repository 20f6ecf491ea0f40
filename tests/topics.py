"""An encoder without weights whose states tell topics apart, and texts on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlpm_guard import Guard
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.encoders.base import States
from mlpm_guard.testing import MockEncoder

TOPICS = {"drugs": "pills", "fraud": "swindle", "legal": "lawsuit", "garden": "tulips"}
_SHIFT = 6.0


class TopicEncoder(MockEncoder):
    """A `MockEncoder` that also shifts the states of a text with a topic's word, in a direction of that topic."""

    def encode(self, conversations: Sequence[ConversationLike], *, layers: Sequence[int] | None = None) -> States:
        states = super().encode(conversations, layers=layers)
        for row, each in enumerate(conversations):
            text = "\n".join(message.content for message in Conversation.parse(each).messages)
            for place, word in enumerate(TOPICS.values(), start=1):
                if word in text:
                    states[row, :, place] += np.float32(_SHIFT)
        return states


def on(topic: str | None, count: int, *, unsafe: bool = True, start: int = 0) -> list[str]:
    """Texts on a topic, or on none."""
    word = "" if topic is None else f" about {TOPICS[topic]}"
    return [f"{'unsafe ' if unsafe else ''}question number {index}{word}" for index in range(start, start + count)]


def categorised(**options: object) -> Guard:
    """A guard that knows the categories drugs and fraud."""
    prompts = [*on(None, 40, unsafe=False), *on(None, 10), *on("drugs", 20), *on("fraud", 20)]
    labels = [0] * 40 + [1] * 50
    names = [None] * 40 + ["other"] * 10 + ["drugs"] * 20 + ["fraud"] * 20
    return Guard(TopicEncoder(), **options).fit(prompts, labels, names, progress=False)  # type: ignore[arg-type]
