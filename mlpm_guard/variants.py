"""Texts that differ in nothing that matters: blanks, case, Unicode forms. Knows conversations, no models."""

from __future__ import annotations

from mlpm_guard.conversation import Conversation, normalise


def variant_key(conversation: Conversation) -> bytes:
    """Equal for conversations that differ in blanks, case, Unicode forms or invisible characters only."""
    pieces: list[bytes] = []
    for message in conversation.messages:
        # Folding case may undo what normalising composed, and normalising may bring together what folds.
        text = " ".join(normalise(normalise(message.content).casefold()).split()).encode("utf-8", "surrogatepass")
        pieces += [message.role.encode(), b"\x00", str(len(text)).encode(), b"\x00", text]
    return b"".join(pieces)
