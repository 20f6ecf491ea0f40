"""The exception of this package. What a moderator blocks raises `mlpm_guard.ResponseBlocked`."""

from __future__ import annotations

from mlpm_guard import PromptBlocked


class PromptBlockedError(PromptBlocked):
    """A query or prompt was blocked before anything was retrieved or answered.

    Attributes:
        verdict: the `Verdict` that the gate acted on. The text is not kept.
    """
