"""What the gates raise: the core's `Blocked` errors as LangChain does not retry them. They carry a verdict, never text."""

from __future__ import annotations

from langchain_core.exceptions import ModelInvalidRequestError

from mlpm_guard.errors import PromptBlocked, ResponseBlocked


class PromptBlockedError(PromptBlocked, ModelInvalidRequestError):
    """A prompt was blocked before it reached a model.

    LangChain's model-retry middleware does not retry it by default, nor does `with_retry` of a gate, of a guarded model, or of
    a chain that begins with a gate. Where a gate stands further in, `with_retry` around the chain asks the guard again, and no
    model behind it; `with_fallbacks` around a gate catches every exception: put the gate outside of it.

    Attributes:
        verdict: the `Verdict` that the gate acted on.
    """


class ResponseBlockedError(ResponseBlocked, ModelInvalidRequestError):
    """An answer was blocked before it reached the consumer.

    Attributes:
        verdict: the `Verdict` that the gate acted on.
    """


class GuardBypassWarning(UserWarning):
    """A composition lets answers around the guard; the message says how to compose it instead."""
