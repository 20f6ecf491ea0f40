"""GuardPostprocessor: retrieved nodes are judged before a model reads them."""

from __future__ import annotations

from typing import Any, Literal

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from llama_index_mlpm_guard.events import emit
from llama_index_mlpm_guard.gates import check_together, choice, prompt_guard
from llama_index_mlpm_guard.pickling import refuse_to_lose
from mlpm_guard import Guard, Verdict
from mlpm_guard.verdict import OnReview

FLAG = "guard_verdict"
"""Key of a flagged node's metadata. Neither models nor embeddings see it."""


class GuardPostprocessor(BaseNodePostprocessor):
    """Drops, redacts or flags nodes that carry harmful text.

    Each node is judged as the model will see it, with the metadata that its template adds; all nodes of a list share one call
    of the guard. What the guard knows decides: one that was fitted on injected instructions finds those. Stored nodes are
    never changed. A node without text passes. Acts on `Verdict.action` alone; fails closed as the guard's `on_error` says.

    Args:
        guard: a guard with `target="prompt"`.
        action: what becomes of a blocked node: "drop" leaves it out, "redact" replaces it by a node of the same id that says
            `redaction` and has no metadata, "flag" passes a copy with the verdict in its metadata under "guard_verdict".
        redaction: text of a redacted node.
        on_review: what an action of "review" does: "pass", or "block".

    Raises:
        ConfigurationError: an option has a bad value, or the guard is none or judges answers.
    """

    guard: Any = Field(exclude=True, repr=False)
    action: str = "drop"
    redaction: str = "[withheld]"
    on_review: OnReview = "pass"

    def __init__(
        self,
        *,
        guard: Guard,
        action: Literal["drop", "redact", "flag"] = "drop",
        redaction: str = "[withheld]",
        on_review: OnReview = "pass",
        **kwargs: Any,
    ) -> None:
        choice("action", action, ("drop", "redact", "flag"))
        choice("on_review", on_review, ("pass", "block"))
        fields: dict[str, Any] = {
            "guard": prompt_guard(guard),
            "action": action,
            "redaction": redaction,
            "on_review": on_review,
        }
        super().__init__(**fields, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """Name under which the postprocessor is serialised."""
        return "GuardPostprocessor"

    def __getstate__(self) -> dict[str, Any]:
        refuse_to_lose(self, "guard")
        return super().__getstate__()

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None) -> list[NodeWithScore]:  # noqa: ARG002
        texts = _texts(nodes)
        return self._kept(nodes, dict(zip(texts, self.guard.check_batch(list(texts.values())), strict=True)))

    async def _apostprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,  # noqa: ARG002
    ) -> list[NodeWithScore]:
        texts = _texts(nodes)
        return self._kept(nodes, dict(zip(texts, await check_together(self.guard, list(texts.values())), strict=True)))

    def _kept(self, nodes: list[NodeWithScore], verdicts: dict[int, Verdict]) -> list[NodeWithScore]:
        kept: list[NodeWithScore] = []
        for position, node in enumerate(nodes):
            verdict = verdicts.get(position)
            if verdict is not None:
                verdict = emit("node", type(self).__name__, verdict.resolved(self.on_review))
            if verdict is None or not verdict.blocked:
                kept.append(node)
            elif self.action == "redact":
                kept.append(NodeWithScore(node=TextNode(text=self.redaction, id_=node.node.node_id), score=node.score))
            elif self.action == "flag":
                kept.append(_flagged(node, verdict))
        return kept


def _texts(nodes: list[NodeWithScore]) -> dict[int, str]:
    texts = {position: node.get_content(metadata_mode=MetadataMode.LLM) for position, node in enumerate(nodes)}
    return {position: text for position, text in texts.items() if text.strip()}


def _flagged(node: NodeWithScore, verdict: Verdict) -> NodeWithScore:
    original = node.node
    copy = original.model_copy(
        update={
            "metadata": {**original.metadata, FLAG: verdict.model_dump(mode="json")},
            "excluded_llm_metadata_keys": [*original.excluded_llm_metadata_keys, FLAG],
            "excluded_embed_metadata_keys": [*original.excluded_embed_metadata_keys, FLAG],
        }
    )
    return NodeWithScore(node=copy, score=node.score)
