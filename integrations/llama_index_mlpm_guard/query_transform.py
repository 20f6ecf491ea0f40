"""GuardQueryTransform: a gate for `TransformQueryEngine`. Synchronous, as LlamaIndex's query transforms are."""

from __future__ import annotations

from typing import Any

from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle

from llama_index_mlpm_guard.errors import PromptBlockedError
from llama_index_mlpm_guard.gates import QueryGate
from mlpm_guard import ConfigurationError, Guard
from mlpm_guard.verdict import OnReview


class GuardQueryTransform(BaseQueryTransform):
    """Judges a query, and every text that is embedded in its place, before anything is retrieved.

    A query transform cannot answer: a blocked query raises, or is rewritten to one of yours, which is then retrieved and
    answered. It is synchronous by LlamaIndex's design: `TransformQueryEngine.aquery` judges on the event loop. In async code
    use `GuardedQueryEngine`. The verdict stays with the `QueryBundle`, so `retrieve` and `synthesize` on the same one ask the
    guard once. Acts on `Verdict.action` alone; fails closed as the guard's `on_error` says.

    Args:
        guard: a guard with `target="prompt"`.
        replacement: the query that takes the place of a blocked one; by default a blocked query raises `PromptBlockedError`.
        on_review: what an action of "review" does: "pass", or "block".

    Raises:
        ConfigurationError: the guard is none or judges answers, or the replacement is no text.
    """

    def __init__(self, *, guard: Guard, replacement: str | None = None, on_review: OnReview = "pass") -> None:
        if replacement is not None and (not isinstance(replacement, str) or not replacement.strip()):
            raise ConfigurationError("replacement: a harmless query, or None to raise on a blocked one")
        super().__init__()
        self._gate = QueryGate(guard, type(self).__name__, on_review)
        self._replacement = replacement

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        pass

    def _run(self, query_bundle: QueryBundle, metadata: dict[str, Any]) -> QueryBundle:  # noqa: ARG002
        verdict = self._gate.judge(query_bundle)
        if not verdict.blocked:
            return query_bundle
        if self._replacement is None:
            raise PromptBlockedError(verdict)
        return QueryBundle(query_str=self._replacement, custom_embedding_strs=[self._replacement])
