"""GuardedRetriever: the gate that query engines, chat engines and agents with retriever tools all pass."""

from __future__ import annotations

from typing import Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_mlpm_guard.errors import PromptBlockedError
from llama_index_mlpm_guard.gates import QueryGate, choice
from mlpm_guard import ConfigurationError, Guard
from mlpm_guard.verdict import OnReview


class GuardedRetriever(BaseRetriever):
    """Wraps a retriever and judges every query before it retrieves, sync and async.

    Judged are the query's text and every text that is embedded in its place. Acts on `Verdict.action` alone; fails closed as
    the guard's `on_error` says. It judges queries; what they retrieve is `GuardPostprocessor`'s to judge.

    Args:
        retriever: any retriever.
        guard: a guard with `target="prompt"`.
        on_block: "raise" raises `PromptBlockedError`, which engines and chat engines pass on before they call a model or touch
            their memory; "empty" retrieves nothing, which LlamaIndex's engines answer with "Empty Response" and no model.
        on_review: what an action of "review" does: "pass", or "block".

    Raises:
        ConfigurationError: an option has a bad value, or the guard is none or judges answers.
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        *,
        guard: Guard,
        on_block: Literal["raise", "empty"] = "raise",
        on_review: OnReview = "pass",
    ) -> None:
        if not isinstance(retriever, BaseRetriever):
            raise ConfigurationError(
                f"retriever is {type(retriever).__name__}: pass index.as_retriever(), or another retriever"
            )
        choice("on_block", on_block, ("raise", "empty"))
        self._gate = QueryGate(guard, type(self).__name__, on_review)
        self._retriever = retriever
        self._on_block = on_block
        super().__init__(callback_manager=retriever.callback_manager)

    def _get_prompt_modules(self) -> PromptMixinType:
        return self._retriever._get_prompt_modules()

    def _get_prompts(self) -> PromptDictType:
        return self._retriever._get_prompts()

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._retriever._update_prompts(prompts)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        verdict = self._gate.judge(query_bundle)
        if not verdict.blocked:
            return self._retriever.retrieve(query_bundle)
        if self._on_block == "raise":
            raise PromptBlockedError(verdict)
        return []

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        verdict = await self._gate.ajudge(query_bundle)
        if not verdict.blocked:
            return await self._retriever.aretrieve(query_bundle)
        if self._on_block == "raise":
            raise PromptBlockedError(verdict)
        return []
