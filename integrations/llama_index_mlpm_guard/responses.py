"""LlamaIndex responses in every shape that engines give them, rebuilt with released text and with the verdicts on them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeAlias

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)

from llama_index_mlpm_guard.withholding import aquietly, quietly
from mlpm_guard import Verdict

PROMPT_VERDICT = "prompt_verdict"
RESPONSE_VERDICT = "response_verdict"

Whole: TypeAlias = "Response | PydanticResponse"


def verdicts(prompt: Verdict | None, response: Verdict | None = None) -> dict[str, Any]:
    """Entries of a response's metadata. `response` is None where there was no answer, or nobody has judged it (yet)."""
    return {PROMPT_VERDICT: prompt, RESPONSE_VERDICT: response}


def annotated(response: RESPONSE_TYPE, metadata: dict[str, Any]) -> RESPONSE_TYPE:
    """The same answer with these entries added to its metadata; the original keeps its own."""
    merged = {**(response.metadata or {}), **metadata}
    if isinstance(response, PydanticResponse):
        return PydanticResponse(response.response, response.source_nodes, merged)
    if isinstance(response, StreamingResponse):
        return StreamingResponse(response.response_gen, response.source_nodes, merged, response.response_txt)
    if isinstance(response, AsyncStreamingResponse):
        return AsyncStreamingResponse(response.response_gen, response.source_nodes, merged, response.response_txt)
    return Response(response.response, response.source_nodes, merged)


def streamed(
    response: StreamingResponse | AsyncStreamingResponse,
    metadata: dict[str, Any],
    texts: Generator[str, None, None] | AsyncGenerator[str, None],
) -> RESPONSE_TYPE:
    """The stream with other texts, with this very metadata, to which a verdict is added once it is known."""
    if isinstance(response, StreamingResponse):
        assert isinstance(texts, Generator)
        return StreamingResponse(texts, response.source_nodes, metadata)
    assert isinstance(texts, AsyncGenerator)
    return AsyncStreamingResponse(texts, response.source_nodes, metadata)


def refused_whole(refusal: str, metadata: dict[str, Any], *, structured: bool = False) -> Whole:
    """A refusal without sources, which may be what was harmful. A structured response refuses by holding no object."""
    return PydanticResponse(None, metadata=metadata) if structured else Response(refusal, metadata=metadata)


def refused_stream(refusal: str, metadata: dict[str, Any]) -> StreamingResponse:
    """A refusal as a stream."""
    return StreamingResponse(_one(refusal), metadata=metadata)


def refused_async_stream(refusal: str, metadata: dict[str, Any]) -> AsyncStreamingResponse:
    """A refusal as an async stream."""
    return AsyncStreamingResponse(_aone(refusal), metadata=metadata)


def pieces(response: StreamingResponse) -> Generator[str, None, None]:
    """Texts of a stream, read unobserved."""
    return quietly([response.response_txt] if response.response_txt is not None else response.response_gen)


def apieces(response: AsyncStreamingResponse) -> AsyncGenerator[str, None]:
    """`pieces` of an async stream."""
    return aquietly(response.async_response_gen())


def shape_of(engine: object, depth: int = 8) -> tuple[bool, bool]:
    """Whether an engine streams its answers, and whether they are structured, as far as its synthesizer tells."""
    synthesizer = getattr(engine, "_response_synthesizer", None)
    if synthesizer is not None:
        llm = getattr(synthesizer, "_llm", None)
        structured = getattr(synthesizer, "_output_cls", None) is not None or hasattr(llm, "output_cls")
        return bool(getattr(synthesizer, "_streaming", False)), structured
    inner = _inner_engine(engine)
    return (False, False) if inner is None or depth == 0 else shape_of(inner, depth - 1)


def _inner_engine(engine: object) -> object | None:
    inner = getattr(engine, "_query_engine", None) or getattr(engine, "query_engine", None)
    if isinstance(inner, BaseQueryEngine):
        return inner
    several = getattr(engine, "_query_engines", None)
    candidates = list(several.values()) if isinstance(several, dict) else list(several or [])
    return candidates[0] if candidates else None


def _one(text: str) -> Generator[str, None, None]:
    yield text


async def _aone(text: str) -> AsyncGenerator[str, None]:
    yield text
