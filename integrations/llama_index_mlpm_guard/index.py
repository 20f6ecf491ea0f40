"""guard_index: all doors of an index guarded at once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.settings import Settings

from llama_index_mlpm_guard.gates import OnBlock, choice, prompt_guard
from llama_index_mlpm_guard.llm import GuardedLLM
from llama_index_mlpm_guard.postprocessor import GuardPostprocessor
from llama_index_mlpm_guard.query_engine import GuardedQueryEngine
from llama_index_mlpm_guard.retriever import GuardedRetriever
from mlpm_guard import ConfigurationError, Guard
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.segments import Every
from mlpm_guard.verdict import OnReview

I = TypeVar("I", bound=BaseIndex[Any])  # noqa: E741


def guard_index(
    index: I,
    *,
    guard: Guard,
    moderator: Any = None,
    documents: Literal["drop", "redact", "flag", "pass"] = "drop",
    refusal: str = DEFAULT_REFUSAL,
    hold_back: int | Literal["all"] = 0,
    every: Every = "sentence",
    on_review: OnReview = "pass",
) -> I:
    """The same index with guarded doors; the index that is passed in is not changed, and both share their data.

    `as_retriever()` gives a `GuardedRetriever`. `as_query_engine()` gives a `GuardedQueryEngine` on it, which answers a blocked
    query with the refusal. `as_chat_engine()` builds on it and on a `GuardedLLM`: a blocked message raises
    `PromptBlockedError` before anything is retrieved, answered or remembered, and a blocked answer raises
    `mlpm_guard.ResponseBlocked`. In chat mode "simple", which remembers a message before it is answered, both get the refusal.
    Engines drop harmful documents.

    Args:
        index: any index.
        guard: a guard with `target="prompt"`; judges queries, prompts and documents.
        moderator: a guard with `target="response"`, or anything with its `check`; judges answers.
        documents: what becomes of harmful documents on their way to a model; see `GuardPostprocessor`. "pass" judges none.
        refusal: what is said instead of an answer.
        hold_back: characters of a stream that stay back after they were judged, or "all"; see `StreamModerator`.
        every: what of a stream is judged at once: a "sentence", or a number of tokens.
        on_review: what an action of "review" does at every door: "pass", or "block".

    Raises:
        ConfigurationError: an option has a bad value.
    """
    if not isinstance(index, BaseIndex):
        raise ConfigurationError(f"index is {type(index).__name__}: pass a LlamaIndex index")
    choice("on_review", on_review, ("pass", "block"))
    if documents != "pass":
        GuardPostprocessor(guard=guard, action=documents)  # a bad option shows here
    guarded = copy.copy(index)
    guarded.__class__ = _guarded_kind(type(index))
    guarded._guarded = _Doors(prompt_guard(guard), moderator, documents, refusal, hold_back, every, on_review)  # type: ignore[attr-defined]
    return guarded


@dataclass(frozen=True)
class _Doors:
    """How the doors of one index are guarded."""

    guard: Guard
    moderator: Any
    documents: Literal["drop", "redact", "flag", "pass"]
    refusal: str
    hold_back: int | Literal["all"]
    every: Every
    on_review: OnReview

    @property
    def options(self) -> dict[str, Any]:
        """What guarded engines and models share."""
        return {
            "guard": self.guard,
            "moderator": self.moderator,
            "refusal": self.refusal,
            "hold_back": self.hold_back,
            "every": self.every,
            "on_review": self.on_review,
        }

    def with_documents(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of an engine with the postprocessor last, so that it sees what the model will."""
        if self.documents == "pass":
            return kwargs
        given = list(kwargs.get("node_postprocessors") or [])
        if given and isinstance(given[-1], _Documents):
            return kwargs
        return {
            **kwargs,
            "node_postprocessors": [*given, _Documents(guard=self.guard, action=self.documents, on_review=self.on_review)],
        }


class _Documents(GuardPostprocessor):
    """The postprocessor of a guarded index, known from one of the caller's."""


class _ChatModel(GuardedLLM):
    """The model of a guarded index's chat engines, known from one of the caller's."""


class _GuardedIndex(BaseIndex[Any]):
    """What stands in front of an index's own class."""

    _guarded: _Doors

    def as_retriever(self, **kwargs: Any) -> BaseRetriever:
        retriever = super().as_retriever(**kwargs)  # type: ignore[safe-super]  # an index's own class stands behind this one
        return GuardedRetriever(retriever, guard=self._guarded.guard, on_review=self._guarded.on_review)

    def as_query_engine(self, llm: LLMType | None = None, **kwargs: Any) -> BaseQueryEngine:
        engine = super().as_query_engine(llm=llm, **self._guarded.with_documents(kwargs))
        if isinstance(llm, _ChatModel):
            # A chat engine asks for it, which recognises nothing but LlamaIndex's own engine; retriever and model are guarded.
            return engine
        return GuardedQueryEngine(engine, **self._guarded.options)

    def as_chat_engine(self, chat_mode: ChatMode = ChatMode.BEST, llm: LLMType | None = None, **kwargs: Any) -> BaseChatEngine:
        model = resolve_llm(llm, callback_manager=self._callback_manager) if llm else Settings.llm
        on_block: OnBlock = "replace" if chat_mode == ChatMode.SIMPLE else "raise"
        guarded = _ChatModel(llm=model, on_block=on_block, **self._guarded.options)
        return super().as_chat_engine(chat_mode=chat_mode, llm=guarded, **self._guarded.with_documents(kwargs))


@cache
def _guarded_kind(kind: type[Any]) -> type[Any]:
    if issubclass(kind, _GuardedIndex):
        return kind
    return type(f"Guarded{kind.__name__}", (_GuardedIndex, kind), {})
