"""GuardedQueryEngine: what a consumer, the observers, the retriever and the model see of a query and of its answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, PydanticResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_mlpm_guard import GuardedQueryEngine, PromptBlockedError
from pydantic import BaseModel

from mlpm_guard import ConfigurationError, ResponseBlocked
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.testing import MockGuard
from tests.llama_index.support import (
    BAD,
    BLOCKED_QUERY,
    CALM,
    RELEASED,
    CountingRetriever,
    ScriptedLLM,
    index,
    moderator,
    observed,
    prompt_guard,
)
from tests.loop_support import Meeting

MODES = [mode for mode in ResponseMode if mode not in (ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY)]
STREAMING_MODES = [mode for mode in MODES if "accumulate" not in mode.value]


class World:
    """An engine with a model that says `answer`, and what it was asked to do."""

    def __init__(self, answer: str = CALM, *, chat: bool = True, texts: tuple[str, ...] = (), **options: Any) -> None:
        self.llm = ScriptedLLM(answers=[answer], is_chat_model=chat)
        self.retriever = CountingRetriever(index(*texts).as_retriever(similarity_top_k=2))
        self.inner = RetrieverQueryEngine.from_args(self.retriever, llm=self.llm, **options)
        self.guard, self.moderator = prompt_guard(), moderator()

    def guarded(self, **options: Any) -> GuardedQueryEngine:
        return GuardedQueryEngine(self.inner, guard=self.guard, moderator=self.moderator, **options)


async def ask(engine: BaseQueryEngine, how: str, query: Any = "is the sky blue") -> Any:
    return engine.query(query) if how == "query" else await engine.aquery(query)


async def read(response: Any) -> str:
    if isinstance(response, AsyncStreamingResponse):
        return "".join([text async for text in response.async_response_gen()])
    if isinstance(response, StreamingResponse):
        return "".join(response.response_gen)
    return str(response)


# -- queries ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_blocked_query_costs_nothing_and_is_refused_in_the_shape_asked_for(how: str, streaming: bool) -> None:
    world = World(streaming=streaming)
    with observed() as events:
        response = await ask(world.guarded(), how, BLOCKED_QUERY)
        assert await read(response) == DEFAULT_REFUSAL
    shapes = {(False, "query"): Response, (False, "aquery"): Response, (True, "query"): StreamingResponse}
    assert type(response) is shapes.get((streaming, how), AsyncStreamingResponse)
    assert response.metadata["prompt_verdict"].blocked
    assert response.metadata["response_verdict"] is None
    assert (world.retriever.queries, world.llm.calls, world.guard.calls, world.moderator.calls) == ([], [], [1], [])
    (decision,) = events.decisions
    assert (decision.stage, decision.component, decision.blocked) == ("query", "GuardedQueryEngine", True)


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_harmless_query_is_answered_with_both_verdicts_and_its_sources(how: str, streaming: bool) -> None:
    world = World(streaming=streaming)
    response = await ask(world.guarded(), how)
    assert await read(response) == CALM
    assert {node.node.get_content() for node in response.source_nodes} == {"The sky is blue.", "Grass is green."}
    assert response.metadata["prompt_verdict"].allowed
    assert response.metadata["response_verdict"].target == "response"
    assert world.retriever.queries == ["is the sky blue"]


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_raise_raises_before_anything_is_retrieved(how: str) -> None:
    world = World()
    with pytest.raises(PromptBlockedError):
        await ask(world.guarded(on_block="raise"), how, BLOCKED_QUERY)
    assert (world.retriever.queries, world.llm.calls) == ([], [])


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_texts_that_are_embedded_in_place_of_the_query_are_judged(how: str) -> None:
    world = World()
    query = QueryBundle("harmless", custom_embedding_strs=["parts of a bomb"])
    assert await read(await ask(world.guarded(), how, query)) == DEFAULT_REFUSAL
    assert world.retriever.queries == []


async def test_the_event_loop_runs_while_a_query_is_judged() -> None:
    meeting = Meeting()
    engine = GuardedQueryEngine(World().inner, guard=MockGuard(meeting))
    await engine.aquery("is the sky blue")
    assert meeting.held


async def test_a_hundred_queries_at_once_get_the_verdicts_of_one_by_one() -> None:
    class Echo(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            return f"You asked: {query_str}"

        async def acustom_query(self, query_str: str) -> str:
            await asyncio.sleep(0)
            return f"You asked: {query_str}"

    guard = MockGuard(lambda text: (int(text.split()[-1]) % 7) / 7)
    answers = MockGuard(lambda text: int(text.split()[-1]) % 5 == 0, target="response")
    engine = GuardedQueryEngine(Echo(), guard=guard, moderator=answers)
    queries = [f"question number {number}" for number in range(100)]
    together = await asyncio.gather(*(engine.aquery(query) for query in queries))
    alone = [engine.query(query) for query in queries]
    for query, one, other in zip(queries, together, alone, strict=True):
        assert str(one) == str(other)
        assert str(one) in (DEFAULT_REFUSAL, f"You asked: {query}")
        assert one.metadata == other.metadata
    assert 20 < sum(str(one) == DEFAULT_REFUSAL for one in together) < 80


# -- answers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("mode", MODES)
async def test_a_blocked_answer_reaches_nobody_in_any_response_mode(mode: ResponseMode, chat: bool, how: str) -> None:
    world = World(BAD, chat=chat, response_mode=mode)
    with observed() as events:
        response = await ask(world.guarded(), how)
    assert str(response) == DEFAULT_REFUSAL
    assert response.source_nodes == []
    assert response.metadata["response_verdict"].blocked
    assert world.llm.calls
    assert events.said("secret") == []
    assert "RetrievalEndEvent" in {type(event).__name__ for event in events.seen}
    assert "QueryEndEvent" in events.said(DEFAULT_REFUSAL)


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("mode", STREAMING_MODES)
async def test_a_blocked_stream_stops_where_it_turns_bad_and_stops_its_model(mode: ResponseMode, how: str) -> None:
    world = World(BAD, streaming=True, response_mode=mode)
    with observed() as events:
        response = await ask(world.guarded(), how)
        assert await read(response) == RELEASED + DEFAULT_REFUSAL
    assert response.metadata["response_verdict"].blocked
    # Refining drains the first of two answers itself, to refine it.
    assert world.llm.written.count("runs.") == (1 if mode is ResponseMode.REFINE else 0)
    assert events.said("secret") == []
    assert [decision.stage for decision in events.decisions] == ["query", "response"]


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_hold_back_all_releases_nothing_of_a_blocked_stream(how: str) -> None:
    world = World(BAD, streaming=True)
    response = await ask(world.guarded(hold_back="all"), how)
    assert await read(response) == DEFAULT_REFUSAL


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_raise_raises_on_a_blocked_answer(how: str, streaming: bool) -> None:
    world = World(BAD, streaming=streaming)
    with pytest.raises(ResponseBlocked) as caught:
        await read(await ask(world.guarded(on_block="raise"), how))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_stream_that_nobody_reads_to_its_end_stops_its_model(how: str) -> None:
    world = World(streaming=True)
    response = await ask(world.guarded(), how)
    if how == "query":
        assert next(response.response_gen) == RELEASED
        response.response_gen.close()
    else:
        assert await anext(response.response_gen) == RELEASED
        await response.response_gen.aclose()
    assert "wet." not in world.llm.written


async def test_spans_and_callbacks_learn_what_was_released() -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = ScriptedLLM(answers=[BAD], callback_manager=CallbackManager([debug]))
    inner = RetrieverQueryEngine.from_args(index().as_retriever(), llm=llm, callback_manager=CallbackManager([debug]))
    engine = GuardedQueryEngine(inner, guard=prompt_guard(), moderator=moderator())

    class Results(SimpleSpanHandler):
        seen: list[Any] = []  # noqa: RUF012

        def prepare_to_exit_span(
            self, id_: str, bound_args: Any, instance: Any = None, result: Any = None, **kwargs: Any
        ) -> Any:
            self.seen.append(str(result))
            return super().prepare_to_exit_span(id_, bound_args, instance, result, **kwargs)

    root, spans = get_dispatcher("root"), Results()
    before = list(root.span_handlers)
    root.span_handlers = [*before, spans]
    try:
        assert str(await engine.aquery("is the sky blue")) == DEFAULT_REFUSAL
        assert str(engine.query("is the sky blue")) == DEFAULT_REFUSAL
    finally:
        root.span_handlers = before
    assert len(spans.seen) > 4
    assert DEFAULT_REFUSAL in spans.seen
    assert not any("secret" in result for result in spans.seen)
    payloads = [str(event.payload) for event in debug.get_events()]
    assert payloads
    assert not any("secret" in payload for payload in payloads)


async def test_observers_of_an_engine_without_moderator_see_everything_as_ever() -> None:
    world = World(BAD)
    with observed() as events:
        await world.guarded().aquery("is the sky blue")
        assert events.said("secret") == []
        await GuardedQueryEngine(world.inner, guard=world.guard).aquery("is the sky blue")
    assert "LLMChatEndEvent" in events.said("secret")


async def test_streams_of_one_engine_do_not_mix() -> None:
    calm, bad = World(streaming=True), World(BAD, streaming=True)
    engines = [GuardedQueryEngine(world.inner, guard=calm.guard, moderator=calm.moderator) for world in (calm, bad)]
    engine = calm.guarded()
    streams = [(await one.aquery("is the sky blue")).response_gen for one in [engine, engines[1], engine]]
    read_so_far = ["", "", ""]
    open_streams = {0, 1, 2}
    while open_streams:
        for number in sorted(open_streams):
            text = await anext(streams[number], None)
            if text is None:
                open_streams.remove(number)
            else:
                read_so_far[number] += text
    assert read_so_far == [CALM, RELEASED + DEFAULT_REFUSAL, CALM]


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_blocked_query_for_an_object_is_refused_without_one(how: str) -> None:
    class Facts(BaseModel):
        colour: str

    world = World(output_cls=Facts)
    response = await ask(world.guarded(), how, BLOCKED_QUERY)
    assert isinstance(response, PydanticResponse)
    assert response.response is None
    assert response.metadata["prompt_verdict"].blocked


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_structured_answers_are_judged_and_refused_as_structures(how: str) -> None:
    class Facts(BaseModel):
        colour: str

    class Plain(BaseQueryEngine):
        def __init__(self, colour: str) -> None:
            self.colour = colour
            super().__init__(None)

        def _get_prompt_modules(self) -> Any:
            return {}

        def _query(self, query_bundle: QueryBundle) -> Any:
            return PydanticResponse(Facts(colour=self.colour))

        async def _aquery(self, query_bundle: QueryBundle) -> Any:
            return self._query(query_bundle)

    engine = GuardedQueryEngine(Plain("blue"), guard=prompt_guard(), moderator=moderator())
    assert (await ask(engine, how)).colour == "blue"
    response = await ask(GuardedQueryEngine(Plain("secret"), guard=prompt_guard(), moderator=moderator()), how)
    assert isinstance(response, PydanticResponse)
    assert response.response is None
    assert response.metadata["response_verdict"].blocked


async def test_the_moderator_may_be_anything_with_a_check() -> None:
    class Remote:
        def __init__(self) -> None:
            self.questions: list[Any] = []

        def check(self, conversation: Any) -> Any:
            self.questions.append(conversation)
            return moderator().check(conversation)

    remote, world = Remote(), World(BAD)
    engine = GuardedQueryEngine(world.inner, guard=world.guard, moderator=remote)
    assert str(engine.query("is the sky blue")) == DEFAULT_REFUSAL
    assert str(await engine.aquery("is the sky blue")) == DEFAULT_REFUSAL
    assert remote.questions[0] == [{"role": "user", "content": "is the sky blue"}, {"role": "assistant", "content": BAD}]


# -- in two steps, and the rest of the interface ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_retrieve_and_synthesize_are_gated_and_judge_a_query_once(how: str) -> None:
    world, query, bad = World(BAD), QueryBundle("is the sky blue"), QueryBundle(BLOCKED_QUERY)
    engine = world.guarded()
    if how == "sync":
        response = engine.synthesize(query, engine.retrieve(query))
        assert engine.retrieve(bad) == []
        refused = engine.synthesize(bad, [])
    else:
        response = await engine.asynthesize(query, await engine.aretrieve(query))
        assert await engine.aretrieve(bad) == []
        refused = await engine.asynthesize(bad, [])
    assert str(response) == str(refused) == DEFAULT_REFUSAL
    assert world.guard.calls == [1, 1]
    assert world.retriever.queries == ["is the sky blue"]
    assert len(world.llm.calls) == 1
    with pytest.raises(PromptBlockedError):
        world.guarded(on_block="raise").retrieve(bad)


def test_sub_prompts_of_the_engine_stay_visible_and_can_be_updated() -> None:
    world = World()
    engine = world.guarded()
    name = "response_synthesizer:text_qa_template"
    assert engine.get_prompts() == world.inner.get_prompts()
    engine.update_prompts({name: PromptTemplate("ask: {query_str} {context_str}")})
    engine.query("is the sky blue")
    assert any("ask: is the sky blue" in str(message) for message in world.llm.asked[0])


def test_what_fails_blocks_and_says_why() -> None:
    def broken(_text: str) -> bool:
        raise RuntimeError("boom")

    world = World()
    response = GuardedQueryEngine(world.inner, guard=MockGuard(broken)).query("is the sky blue")
    assert str(response) == DEFAULT_REFUSAL
    assert response.metadata["prompt_verdict"].error == "encoder_error"
    answers = MockGuard(broken, target="response")
    response = GuardedQueryEngine(world.inner, guard=prompt_guard(), moderator=answers).query("is the sky blue")
    assert str(response) == DEFAULT_REFUSAL


def test_bad_options_are_named() -> None:
    inner, guard = World().inner, prompt_guard()
    for options, named in (
        ({"query_engine": "x"}, "query_engine is str"),
        ({"guard": None}, "guard is NoneType"),
        ({"guard": moderator()}, "moderator="),
        ({"moderator": guard}, "judges prompts"),
        ({"moderator": "m"}, "moderator is str"),
        ({"on_block": "stop"}, "on_block='stop'"),
        ({"refusal": ""}, "refusal"),
        ({"moderator": moderator(), "hold_back": -1}, "hold_back=-1"),
        ({"moderator": moderator(), "every": 0}, "every=0"),
    ):
        arguments: dict[str, Any] = {"query_engine": inner, "guard": guard, **options}
        with pytest.raises(ConfigurationError, match=named):
            GuardedQueryEngine(**arguments)
