"""GuardedQueryEngine: any query engine behind a guard, its answers behind a moderator."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    StreamingResponse,
)
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_mlpm_guard import responses
from llama_index_mlpm_guard.errors import PromptBlockedError
from llama_index_mlpm_guard.gates import OnBlock, QueryGate, choice
from llama_index_mlpm_guard.moderation import AnswerModeration
from llama_index_mlpm_guard.withholding import withheld
from mlpm_guard import ConfigurationError, Guard, Verdict
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.segments import Every
from mlpm_guard.verdict import OnReview


class GuardedQueryEngine(BaseQueryEngine):
    """Judges a query before its engine retrieves anything, and the engine's answer before anybody reads it.

    A blocked query costs no retrieval and no model call. The answer has the shape that was asked for: text, a stream, an async
    stream, or an object. Both verdicts are in the response's `metadata` (`"prompt_verdict"`, `"response_verdict"`; in a stream
    the latter once it has ended), and each is emitted as a `GuardDecisionEvent`. Acts on `Verdict.action` alone; fails closed
    as the guards' `on_error` says. Holds configuration only: one engine serves any number of threads and tasks.

    With a moderator, LlamaIndex's observers learn of the answer what was released: until then the inner engine's events, span
    results and callback payloads are withheld. Chat engines and retrievers of the same index do not pass this engine; guard
    them with `GuardedRetriever` and `GuardedLLM`.

    Args:
        query_engine: any query engine.
        guard: a guard with `target="prompt"`; judges the query and the texts that are embedded in its place.
        moderator: a guard with `target="response"`, or anything with its `check`; judges answers.
        on_block: "replace" answers with the refusal; "raise" raises `PromptBlockedError` or `ResponseBlocked`, in a stream
            where it stops.
        refusal: what "replace" says.
        hold_back: characters of a stream that stay back after they were judged, or "all"; see `StreamModerator`.
        every: what of a stream is judged at once: a "sentence", or a number of tokens.
        on_review: what an action of "review" does, on a query or on an answer: "pass", or "block".
        streaming: whether a refused query is answered by a stream; by default as the engine's synthesizer is configured.
        callback_manager: by default the engine's.

    Raises:
        ConfigurationError: an option has a bad value, the guard judges answers or the moderator prompts.
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        *,
        guard: Guard,
        moderator: Any = None,
        on_block: OnBlock = "replace",
        refusal: str = DEFAULT_REFUSAL,
        hold_back: int | Literal["all"] = 0,
        every: Every = "sentence",
        on_review: OnReview = "pass",
        streaming: bool | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        if not isinstance(query_engine, BaseQueryEngine):
            raise ConfigurationError(
                f"query_engine is {type(query_engine).__name__}: pass index.as_query_engine(), or another query engine"
            )
        choice("on_block", on_block, ("replace", "raise"))
        if not isinstance(refusal, str) or not refusal:
            raise ConfigurationError("refusal: a text that is not empty")
        name = type(self).__name__
        self._query_engine = query_engine
        self._gate = QueryGate(guard, name, on_review)
        self._moderation = (
            None if moderator is None else AnswerModeration(moderator, name, on_block, refusal, hold_back, every, on_review)
        )
        self._raises = on_block == "raise"
        self._refusal = refusal
        self._streaming = streaming
        super().__init__(callback_manager or query_engine.callback_manager)

    # The engine's own prompts under their own names, so that what tunes an engine tunes a guarded one. (As a module of its own,
    # "query_engine:...", they could be read and not be updated: LlamaIndex updates no more than two levels.)

    def _get_prompt_modules(self) -> PromptMixinType:
        return self._query_engine._get_prompt_modules()

    def _get_prompts(self) -> PromptDictType:
        return self._query_engine._get_prompts()

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._query_engine._update_prompts(prompts)

    # -- queries ------------------------------------------------------------------------------------------------------------

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        verdict = self._gate.judge(query_bundle)
        if verdict.blocked:
            return self._refuse(verdict)
        with self._withheld():
            response = self._query_engine.query(query_bundle)
        return self._moderated(query_bundle, verdict, response)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        verdict = await self._gate.ajudge(query_bundle)
        if verdict.blocked:
            return self._arefuse(verdict)
        with self._withheld():
            response = await self._query_engine.aquery(query_bundle)
        return await self._amoderated(query_bundle, verdict, response)

    # -- in two steps -------------------------------------------------------------------------------------------------------

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Nodes for a query; none for a blocked one.

        Raises:
            PromptBlockedError: the query was blocked, with `on_block="raise"`.
        """
        if self._stops(self._gate.judge(query_bundle)):
            return []
        return self._query_engine.retrieve(query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """`retrieve` without blocking the event loop."""
        if self._stops(await self._gate.ajudge(query_bundle)):
            return []
        aretrieve = getattr(self._query_engine, "aretrieve", None)
        if aretrieve is not None:
            nodes: list[NodeWithScore] = await aretrieve(query_bundle)
            return nodes
        return await asyncio.to_thread(self._query_engine.retrieve, query_bundle)

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """An answer from nodes. The query is judged here too, once for `retrieve` and `synthesize` on the same bundle.

        Raises:
            PromptBlockedError: the query was blocked, with `on_block="raise"`.
            ResponseBlocked: the answer was blocked, with `on_block="raise"`.
        """
        verdict = self._gate.judge(query_bundle)
        if verdict.blocked:
            return self._refuse(verdict)
        with self._withheld():
            response = self._query_engine.synthesize(query_bundle, nodes, additional_source_nodes)
        return self._moderated(query_bundle, verdict, response)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """`synthesize` without blocking the event loop."""
        verdict = await self._gate.ajudge(query_bundle)
        if verdict.blocked:
            return self._arefuse(verdict)
        with self._withheld():
            response = await self._query_engine.asynthesize(query_bundle, nodes, additional_source_nodes)
        return await self._amoderated(query_bundle, verdict, response)

    # -- refusals -----------------------------------------------------------------------------------------------------------

    def _stops(self, verdict: Verdict) -> bool:
        if verdict.blocked and self._raises:
            raise PromptBlockedError(verdict)
        return verdict.blocked

    def _refuse(self, verdict: Verdict) -> RESPONSE_TYPE:
        self._stops(verdict)
        streams, structured = self._shape()
        metadata = responses.verdicts(verdict)
        if streams:
            return responses.refused_stream(self._refusal, metadata)
        return responses.refused_whole(self._refusal, metadata, structured=structured)

    def _arefuse(self, verdict: Verdict) -> RESPONSE_TYPE:
        self._stops(verdict)
        streams, structured = self._shape()
        metadata = responses.verdicts(verdict)
        if streams:
            return responses.refused_async_stream(self._refusal, metadata)
        return responses.refused_whole(self._refusal, metadata, structured=structured)

    def _shape(self) -> tuple[bool, bool]:
        # Asked for at every refusal: chat engines switch an engine's streaming on and off.
        streams, structured = responses.shape_of(self._query_engine)
        return streams if self._streaming is None else self._streaming, structured

    # -- answers ------------------------------------------------------------------------------------------------------------

    def _withheld(self) -> Any:
        return withheld(self._moderation is not None)

    def _moderated(self, query: QueryBundle, verdict: Verdict, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        if self._moderation is None or isinstance(response, (StreamingResponse, AsyncStreamingResponse)):
            return self._streamed(query, verdict, response)
        judged = self._moderation.judge(_asked(query), _text(response))
        return self._released(verdict, judged, response)

    async def _amoderated(self, query: QueryBundle, verdict: Verdict, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        if self._moderation is None or isinstance(response, (StreamingResponse, AsyncStreamingResponse)):
            return self._streamed(query, verdict, response)
        judged = await self._moderation.ajudge(_asked(query), _text(response))
        return self._released(verdict, judged, response)

    def _streamed(self, query: QueryBundle, verdict: Verdict, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        metadata = {**(response.metadata or {}), **responses.verdicts(verdict)}
        moderation = self._moderation

        def conclude(judged: Verdict | None) -> None:
            metadata[responses.RESPONSE_VERDICT] = judged

        if moderation is not None and isinstance(response, StreamingResponse):
            read = responses.pieces(response)
            return responses.streamed(response, metadata, moderation.stream(_asked(query), read, conclude))
        if moderation is not None and isinstance(response, AsyncStreamingResponse):
            aread = responses.apieces(response)
            return responses.streamed(response, metadata, moderation.astream(_asked(query), aread, conclude))
        return responses.annotated(response, metadata)

    def _released(self, verdict: Verdict, judged: Verdict | None, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        metadata = responses.verdicts(verdict, judged)
        if judged is not None and judged.blocked:
            structured = isinstance(response, PydanticResponse)
            return responses.refused_whole(self._refusal, metadata, structured=structured)
        return responses.annotated(response, metadata)


def _asked(query: QueryBundle) -> list[dict[str, Any]]:
    return [{"role": "user", "content": query.query_str}]


def _text(response: RESPONSE_TYPE) -> str:
    if isinstance(response, PydanticResponse):
        return "" if response.response is None else str(response)
    return str(getattr(response, "response", None) or "")
