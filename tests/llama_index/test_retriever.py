"""GuardedRetriever: nothing is retrieved for a blocked query, by whichever way it comes."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import RetrieverTool
from llama_index_mlpm_guard import GuardedQueryEngine, GuardedRetriever, PromptBlockedError

from mlpm_guard import ConfigurationError
from mlpm_guard.testing import MockGuard
from tests.llama_index.support import (
    BLOCKED_QUERY,
    CALM,
    CountingRetriever,
    ScriptedLLM,
    index,
    moderator,
    observed,
    prompt_guard,
)
from tests.loop_support import Meeting


def guarded(**options: Any) -> tuple[GuardedRetriever, CountingRetriever]:
    inner = CountingRetriever(index().as_retriever(similarity_top_k=2))
    return GuardedRetriever(inner, guard=options.pop("guard", None) or prompt_guard(), **options), inner


async def retrieve(retriever: GuardedRetriever, how: str, query: Any) -> Any:
    return retriever.retrieve(query) if how == "retrieve" else await retriever.aretrieve(query)


@pytest.mark.parametrize("how", ["retrieve", "aretrieve"])
async def test_a_harmless_query_retrieves_what_the_retriever_does(how: str) -> None:
    retriever, inner = guarded()
    nodes = await retrieve(retriever, how, "is the sky blue")
    assert [node.node_id for node in nodes] == [node.node_id for node in inner.retrieve("is the sky blue")]


@pytest.mark.parametrize("how", ["retrieve", "aretrieve"])
@pytest.mark.parametrize("query", [BLOCKED_QUERY, QueryBundle("harmless", custom_embedding_strs=["a", "a bomb"]), ""])
async def test_a_blocked_query_retrieves_nothing(how: str, query: Any) -> None:
    retriever, inner = guarded()
    with pytest.raises(PromptBlockedError):
        await retrieve(retriever, how, query)
    retriever, inner = guarded(on_block="empty")
    with observed() as events:
        assert await retrieve(retriever, how, query) == []
    assert inner.queries == []
    assert [(event.stage, event.component) for event in events.decisions] == [("query", "GuardedRetriever")]


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_query_engine_on_an_empty_retrieval_asks_no_model(how: str) -> None:
    retriever, inner = guarded(on_block="empty")
    llm = ScriptedLLM()
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm)
    response = engine.query(BLOCKED_QUERY) if how == "query" else await engine.aquery(BLOCKED_QUERY)
    assert str(response) == "Empty Response"
    assert (inner.queries, llm.calls) == ([], [])


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_chat_engines_pass_the_exception_on_with_their_memory_untouched(kind: Any) -> None:
    retriever, inner = guarded()
    llm = ScriptedLLM()
    engine = kind.from_defaults(retriever, llm=llm)
    for chat in (engine.chat, engine.stream_chat):
        with pytest.raises(PromptBlockedError):
            chat(BLOCKED_QUERY)
    for achat in (engine.achat, engine.astream_chat):
        with pytest.raises(PromptBlockedError):
            await achat(BLOCKED_QUERY)
    assert (inner.queries, llm.calls, engine.chat_history) == ([], [], [])
    assert str(engine.chat("is the sky blue")) == CALM
    assert [message.content for message in engine.chat_history] == ["is the sky blue", CALM]


async def test_a_retriever_tool_is_gated() -> None:
    retriever, inner = guarded()
    tool = RetrieverTool.from_defaults(retriever, description="facts")
    with pytest.raises(PromptBlockedError):
        tool.call(BLOCKED_QUERY)
    with pytest.raises(PromptBlockedError):
        await tool.acall(BLOCKED_QUERY)
    assert inner.queries == []
    assert "blue" in str(await tool.acall("sky"))


async def test_behind_a_guarded_engine_a_query_is_judged_once() -> None:
    guard = prompt_guard()
    retriever, _ = guarded(guard=guard)
    engine = GuardedQueryEngine(RetrieverQueryEngine.from_args(retriever, llm=ScriptedLLM()), guard=guard)
    assert str(engine.query("is the sky blue")) == str(await engine.aquery("is the sky blue")) == CALM
    assert guard.calls == [1, 1]


async def test_the_event_loop_runs_while_a_query_is_judged() -> None:
    meeting = Meeting()
    retriever, _ = guarded(guard=MockGuard(meeting))
    await retriever.aretrieve("is the sky blue")
    assert meeting.held


def test_monitor_mode_never_blocks() -> None:
    retriever, inner = guarded(guard=prompt_guard(mode="monitor"))
    assert len(retriever.retrieve(BLOCKED_QUERY)) == 2
    assert inner.queries == [BLOCKED_QUERY]


def test_bad_options_are_named() -> None:
    inner = index().as_retriever()
    with pytest.raises(ConfigurationError, match="retriever is str"):
        GuardedRetriever("x", guard=prompt_guard())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="on_block='replace'"):
        GuardedRetriever(inner, guard=prompt_guard(), on_block="replace")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="moderator="):
        GuardedRetriever(inner, guard=moderator())
    with pytest.raises(ConfigurationError, match="guard is NoneType"):
        GuardedRetriever(inner, guard=None)  # type: ignore[arg-type]
