"""The doors of one index: which guarded component closes each.

A door is closed for queries where a blocked one costs no model call and no retrieval, and for answers where a blocked one
reaches neither the reader, nor the memory, nor any event of LlamaIndex's instrumentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step
from llama_index_mlpm_guard import GuardedLLM, GuardedQueryEngine, GuardedRetriever, PromptBlockedError

from mlpm_guard import Blocked
from mlpm_guard.policy import DEFAULT_REFUSAL
from tests.llama_index.support import (
    BAD,
    BLOCKED_QUERY,
    CALM,
    CountingRetriever,
    ScriptedLLM,
    index,
    moderator,
    observed,
    prompt_guard,
)

REACT_ANSWER = "Thought: I can answer.\nAnswer: "
SUB_QUESTIONS = json.dumps({"items": [{"sub_question": "what is blue", "tool_name": "facts"}]})
CHOICE = json.dumps([{"choice": 1, "reason": "it fits"}])


class Kit:
    """One index with a counting model and retriever, and guarded faces of both."""

    def __init__(self, *answers: str, on_block: Any = "replace", streaming: bool = False, **options: Any) -> None:
        self.llm = ScriptedLLM(answers=list(answers) or [CALM])
        self.guard, self.moderator = prompt_guard(), moderator()
        self.index = index()
        self.retriever = CountingRetriever(self.index.as_retriever(similarity_top_k=2))
        self.guarded_retriever = GuardedRetriever(self.retriever, guard=self.guard)
        self.guarded_llm = GuardedLLM(
            self.llm, guard=self.guard, moderator=self.moderator, on_block=on_block, hold_back=options.get("hold_back", 0)
        )
        self.streaming = streaming

    def engine(self, retriever: Any = None, llm: Any = None) -> RetrieverQueryEngine:
        return RetrieverQueryEngine.from_args(retriever or self.retriever, llm=llm or self.llm, streaming=self.streaming)

    def guarded(self, engine: Any) -> GuardedQueryEngine:
        return GuardedQueryEngine(engine, guard=self.guard, moderator=self.moderator)

    def tool(self, engine: Any) -> QueryEngineTool:
        return QueryEngineTool.from_defaults(engine, name="facts", description="facts")

    def sub_questions(self, engine: Any, llm: Any) -> SubQuestionQueryEngine:
        return SubQuestionQueryEngine.from_defaults(
            [self.tool(engine)],
            llm=llm,
            question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
            response_synthesizer=get_response_synthesizer(llm=llm, streaming=self.streaming),
            verbose=False,
        )

    def router(self, engine: Any, llm: Any) -> RouterQueryEngine:
        return RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), [self.tool(engine)], llm=llm)


async def text_of(response: Any) -> str:
    if isinstance(response, AsyncStreamingResponse):
        return "".join([text async for text in response.async_response_gen()])
    if isinstance(response, StreamingResponse):
        return "".join(response.response_gen)
    return str(response)


def sources_of(response: Any) -> str:
    return " ".join(node.get_content() for node in response.source_nodes if isinstance(node, NodeWithScore))


# -- query engines ----------------------------------------------------------------------------------------------------------

ENGINES: dict[str, tuple[list[str], Callable[[Kit], Any]]] = {
    "RetrieverQueryEngine in GuardedQueryEngine": ([], lambda kit: kit.guarded(kit.engine())),
    "RetrieverQueryEngine on GuardedRetriever and GuardedLLM": (
        [],
        lambda kit: kit.engine(kit.guarded_retriever, kit.guarded_llm),
    ),
    "SubQuestionQueryEngine in GuardedQueryEngine": (
        [SUB_QUESTIONS],
        lambda kit: kit.guarded(kit.sub_questions(kit.engine(), kit.llm)),
    ),
    "SubQuestionQueryEngine on GuardedLLM, in GuardedQueryEngine": (
        [SUB_QUESTIONS],
        lambda kit: kit.guarded(kit.sub_questions(kit.engine(llm=kit.guarded_llm), kit.guarded_llm)),
    ),
    "RouterQueryEngine in GuardedQueryEngine": ([CHOICE], lambda kit: kit.guarded(kit.router(kit.engine(), kit.llm))),
    "RouterQueryEngine on GuardedLLM, in GuardedQueryEngine": (
        [CHOICE],
        lambda kit: kit.guarded(kit.router(kit.engine(llm=kit.guarded_llm), kit.guarded_llm)),
    ),
}
EVERY_ENGINE = pytest.mark.parametrize("door", ENGINES)
HOW = pytest.mark.parametrize("how", ["query", "aquery"])
STREAMING = pytest.mark.parametrize("streaming", [False, True])


async def query(engine: Any, how: str, text: str) -> Any:
    return engine.query(text) if how == "query" else await engine.aquery(text)


@STREAMING
@HOW
@EVERY_ENGINE
async def test_a_blocked_query_costs_a_query_engine_nothing(door: str, how: str, streaming: bool) -> None:
    first, build = ENGINES[door]
    kit = Kit(*first, CALM, streaming=streaming)
    engine = build(kit)
    try:
        said = await text_of(await query(engine, how, BLOCKED_QUERY))
    except PromptBlockedError:
        said = DEFAULT_REFUSAL
    assert said == DEFAULT_REFUSAL
    assert (kit.llm.calls, kit.retriever.queries) == ([], [])


@STREAMING
@HOW
@EVERY_ENGINE
async def test_a_blocked_answer_of_a_query_engine_reaches_nobody(door: str, how: str, streaming: bool) -> None:
    first, build = ENGINES[door]
    kit = Kit(*first, BAD, streaming=streaming)
    engine = build(kit)
    with observed() as events:
        response = await query(engine, how, "is the sky blue")
        said = await text_of(response)
    assert said.endswith(DEFAULT_REFUSAL) or said == DEFAULT_REFUSAL
    assert "secret" not in said
    assert len(kit.llm.calls) >= 1 + len(first)
    assert events.said("secret") == []
    if "on GuardedLLM" in door or not streaming:
        assert "secret" not in sources_of(response)


@STREAMING
@HOW
@EVERY_ENGINE
async def test_a_harmless_query_is_answered_by_a_query_engine(door: str, how: str, streaming: bool) -> None:
    first, build = ENGINES[door]
    kit = Kit(*first, CALM, streaming=streaming)
    assert await text_of(await query(build(kit), how, "is the sky blue")) == CALM
    assert kit.retriever.queries


@HOW
@pytest.mark.parametrize("mode", list(ResponseMode))
async def test_the_engine_of_an_index_is_closed_to_blocked_queries_in_every_response_mode(mode: ResponseMode, how: str) -> None:
    kit = Kit()
    inner = kit.index.as_query_engine(llm=kit.llm, response_mode=mode)
    retrieved = CountingRetriever(inner.retriever)
    engine = kit.guarded(inner.with_retriever(retrieved))
    assert str(await query(engine, how, BLOCKED_QUERY)) == DEFAULT_REFUSAL
    assert (kit.llm.calls, retrieved.queries) == ([], [])


# -- chat engines -----------------------------------------------------------------------------------------------------------


def memory() -> ChatMemoryBuffer:
    return ChatMemoryBuffer.from_defaults(token_limit=6000)


CHAT_ENGINES: dict[str, Callable[[Kit], Any]] = {
    "SimpleChatEngine": lambda kit: SimpleChatEngine.from_defaults(llm=kit.guarded_llm, memory=memory()),
    "ContextChatEngine": lambda kit: ContextChatEngine.from_defaults(
        kit.guarded_retriever, llm=kit.guarded_llm, memory=memory()
    ),
    "CondensePlusContextChatEngine": lambda kit: CondensePlusContextChatEngine.from_defaults(
        kit.guarded_retriever, llm=kit.guarded_llm, memory=memory()
    ),
    "CondenseQuestionChatEngine": lambda kit: CondenseQuestionChatEngine.from_defaults(
        query_engine=kit.engine(kit.guarded_retriever, kit.guarded_llm), llm=kit.guarded_llm, memory=memory()
    ),
}
EVERY_CHAT_ENGINE = pytest.mark.parametrize("door", CHAT_ENGINES)
CHAT_HOW = pytest.mark.parametrize("how", ["chat", "achat", "stream_chat", "astream_chat"])


async def chat(engine: Any, how: str, message: str) -> str:
    """What the reader gets; the refusal where the engine raises."""
    try:
        if how == "chat":
            return str(engine.chat(message))
        if how == "achat":
            return str(await engine.achat(message))
        if how == "stream_chat":
            return "".join(engine.stream_chat(message).response_gen)
        return "".join([text async for text in (await engine.astream_chat(message)).async_response_gen()])
    except Blocked:
        return DEFAULT_REFUSAL


def chat_kit(door: str, *answers: str) -> Kit:
    # Engines that condense pass a refusal on as if it were the question; there a guarded model raises.
    return Kit(*answers, on_block="replace" if door == "SimpleChatEngine" else "raise", streaming=True, hold_back="all")


@CHAT_HOW
@EVERY_CHAT_ENGINE
async def test_a_blocked_message_costs_a_chat_engine_nothing_in_any_turn(door: str, how: str) -> None:
    kit = chat_kit(door, CALM)
    engine = CHAT_ENGINES[door](kit)
    assert await chat(engine, how, BLOCKED_QUERY) == DEFAULT_REFUSAL
    assert (kit.llm.calls, kit.retriever.queries) == ([], [])
    assert await chat(engine, how, "is the sky blue") == CALM
    calls, queries = len(kit.llm.calls), len(kit.retriever.queries)
    assert await chat(engine, how, BLOCKED_QUERY) == DEFAULT_REFUSAL
    assert (len(kit.llm.calls), len(kit.retriever.queries)) == (calls, queries)
    assert await chat(engine, how, "is grass green") == CALM
    assert not any("bomb" in str(asked) for asked in kit.llm.asked)


@CHAT_HOW
@EVERY_CHAT_ENGINE
async def test_a_blocked_answer_of_a_chat_engine_reaches_neither_reader_nor_memory_nor_event(door: str, how: str) -> None:
    kit = chat_kit(door, BAD)
    engine = CHAT_ENGINES[door](kit)
    with observed() as events:
        assert await chat(engine, how, "is the sky blue") == DEFAULT_REFUSAL
    assert len(kit.llm.calls) == 1
    assert not any("secret" in str(message) for message in engine.chat_history)
    assert events.said("secret") == []


CHAT_MODES = [mode for mode in ChatMode if mode not in (ChatMode.REACT, ChatMode.OPENAI)]


@CHAT_HOW
@pytest.mark.parametrize("mode", CHAT_MODES)
async def test_a_guarded_model_closes_the_chat_engines_that_an_index_makes(mode: ChatMode, how: str) -> None:
    for answer, message, calls in ((CALM, BLOCKED_QUERY, 0), (BAD, "is the sky blue", 1)):
        kit = Kit(answer, hold_back="all")
        engine = kit.index.as_chat_engine(chat_mode=mode, llm=kit.guarded_llm)
        with observed() as events:
            assert await chat(engine, how, message) == DEFAULT_REFUSAL
        assert len(kit.llm.calls) == calls
        assert not any("secret" in str(each) for each in engine.chat_history)
        assert events.said("secret") == []


@pytest.mark.parametrize("mode", CHAT_MODES)
async def test_an_index_whose_retrievers_are_guarded_retrieves_nothing_for_a_blocked_message(mode: ChatMode) -> None:
    kit = Kit(on_block="raise")
    retrieved: list[CountingRetriever] = []

    class GuardedIndex(VectorStoreIndex):
        def as_retriever(self, **kwargs: Any) -> Any:
            retrieved.append(CountingRetriever(super().as_retriever(**kwargs)))
            return GuardedRetriever(retrieved[-1], guard=kit.guard)

    whole = GuardedIndex(list(kit.index.docstore.docs.values()), embed_model=kit.index._embed_model)
    engine = whole.as_chat_engine(chat_mode=mode, llm=kit.guarded_llm)
    assert await chat(engine, "achat", BLOCKED_QUERY) == DEFAULT_REFUSAL
    assert kit.llm.calls == []
    assert not any(retriever.queries for retriever in retrieved)
    assert await chat(engine, "achat", "is the sky blue") == CALM


def test_agents_as_chat_modes_are_gone_from_llama_index() -> None:
    kit = Kit()
    for mode in (ChatMode.REACT, ChatMode.OPENAI):
        with pytest.raises(ValueError, match="removed"):
            kit.index.as_chat_engine(chat_mode=mode, llm=kit.guarded_llm)


# -- agents and workflows ---------------------------------------------------------------------------------------------------


async def run(agent: Any, message: str) -> tuple[str, list[Any]]:
    handler = agent.run(message)
    events = [event async for event in handler.stream_events()]
    return str(await handler), events


@STREAMING
@pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
async def test_agents_with_tools_on_the_index_are_closed(kind: Any, streaming: bool) -> None:
    prefix = REACT_ANSWER if kind is ReActAgent else ""
    for answer, message, calls in ((CALM, BLOCKED_QUERY, 0), (BAD, "is the sky blue", 1)):
        kit = Kit(prefix + answer, hold_back="all")
        tools = [RetrieverTool.from_defaults(kit.guarded_retriever, description="facts"), kit.tool(kit.guarded(kit.engine()))]
        with observed() as observer:
            said, events = await run(kind(tools=tools, llm=kit.guarded_llm, streaming=streaming), message)
        assert said == DEFAULT_REFUSAL
        assert (len(kit.llm.calls), kit.retriever.queries) == (calls, [])
        assert not any("secret" in str(event) for event in events)
        assert observer.said("secret") == []


@pytest.mark.parametrize("name", ["retriever", "facts"])
async def test_what_an_agent_asks_its_tools_is_judged_too(name: str) -> None:
    kit = Kit("", "Done.")
    kit.llm.tools_first.append({"tool_name": name, "tool_kwargs": {"input": BLOCKED_QUERY}})
    tools = [
        RetrieverTool.from_defaults(kit.guarded_retriever, name="retriever", description="facts"),
        kit.tool(kit.guarded(kit.engine())),
    ]
    said, _ = await run(FunctionAgent(tools=tools, llm=kit.guarded_llm), "look something up")
    assert said == "Done."
    assert kit.retriever.queries == []
    assert not any("bomb" in str(message) for message in kit.llm.asked[-1] if message.role == "tool")


class Passed(Event):
    text: str


class RAG(Workflow):
    """Retrieves in one step and answers in another."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self.kit = kit

    @step
    async def look_up(self, ev: StartEvent) -> Passed | StopEvent:
        try:
            nodes = await self.kit.guarded_retriever.aretrieve(ev.query)
        except PromptBlockedError:
            return StopEvent(result=DEFAULT_REFUSAL)
        return Passed(text=f"{nodes[0].get_content()} {ev.query}")

    @step
    async def answer(self, ev: Passed) -> StopEvent:
        return StopEvent(result=(await self.kit.guarded_llm.acomplete(ev.text)).text)


class Asking(Workflow):
    """Passes a query to a guarded engine."""

    def __init__(self, kit: Kit) -> None:
        super().__init__()
        self.engine = kit.guarded(kit.engine())

    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=str(await self.engine.aquery(ev.query)))


@pytest.mark.parametrize("kind", [RAG, Asking])
async def test_a_workflow_of_guarded_parts_is_closed(kind: Any) -> None:
    for answer, message, calls in ((CALM, BLOCKED_QUERY, 0), (BAD, "is the sky blue", 1), (CALM, "is the sky blue", 1)):
        kit = Kit(answer)
        with observed() as observer:
            said = await kind(kit).run(query=message)
        assert said == (CALM if (answer, calls) == (CALM, 1) else DEFAULT_REFUSAL)
        assert (len(kit.llm.calls), len(kit.retriever.queries)) == (calls, calls)
        assert observer.said("secret") == []
