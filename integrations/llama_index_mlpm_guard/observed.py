"""LlamaIndex's callback decorators with types: they report a call of a model to event and callback handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

F = TypeVar("F", bound=Callable[..., Any])


def chat(method: F) -> F:
    """Report calls of a chat method."""
    return cast(F, llm_chat_callback()(method))


def completion(method: F) -> F:
    """Report calls of a completion method."""
    return cast(F, llm_completion_callback()(method))
