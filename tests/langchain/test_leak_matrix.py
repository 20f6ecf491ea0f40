"""The leak matrix in graphs and agents, and of local models: streams, state over two turns, retries, fallbacks, caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_mlpm_guard import ChatGuarded, GuardMiddleware, ModeratedChatModel, PromptBlockedError, PromptGate, guard_chain
from langchain_mlpm_guard.refusals import REMOVED, without_blocked
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel
from transformers import LogitsProcessor

from tests.langchain.support import (
    ANGRY,
    BOMB,
    CALM,
    HELLO,
    REFUSAL,
    SECRET,
    WAYS,
    Ear,
    ScriptedModel,
    prompt_guard,
    response_guard,
)
from tests.langchain.test_leaks import COMPOSITIONS, FALLBACK
from tests.langchain.test_middleware import AGENT_WAYS, says, shown
from tests.tool_support import ToolWorld, world

THREAD: dict[str, Any] = {"configurable": {"thread_id": "1"}}


class Plan(BaseModel):
    """A plan."""

    steps: str


class Beginnings(LogitsProcessor):
    """Keeps each prompt whose answer comes to its first token, once for each time: a blocked prompt never does.

    A blocked answer may write one more token after its stream has ended, beside the next answer; that begins none.
    """

    def __init__(self, world: ToolWorld) -> None:
        self.prompts: list[str] = []
        self._world = world

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for ids in input_ids.tolist():
            if any(ids[-len(opening) :] == opening for opening in self._world.openings):
                self.prompts.append(self._world.tokenizer.decode(ids))
        return scores


class Local:
    """A local model that says what it is told to, and keeps the prompts that it was asked to answer."""

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self._beginnings = Beginnings(shared_world())

    def model(self, **options: Any) -> ChatGuarded:
        made = shared_world()
        generator = made.generator(guard=prompt_guard(), moderator=response_guard(), **options)
        processors = [self._beginnings, *made.script(self._answer)]
        return ChatGuarded(generator=generator, temperature=0, generation_kwargs={"logits_processor": processors})

    @property
    def calls(self) -> list[str]:
        """Prompts that it began to answer."""
        return self._beginnings.prompts


_world: list[ToolWorld] = []


def shared_world() -> ToolWorld:
    if not _world:
        _world.append(world("hermes"))
    return _world[0]


def local(answer: str) -> tuple[Any, Any]:
    made = Local(answer)
    return made.model(), made


def scripted(make: Callable[[Any], Any]) -> Callable[[str], tuple[Any, Any]]:
    def built(answer: str) -> tuple[Any, Any]:
        model = ScriptedModel(answers=[answer])
        return make(model), model

    return built


MODELS: dict[str, Callable[[str], tuple[Any, Any]]] = {
    "ModeratedChatModel": scripted(
        lambda model: ModeratedChatModel(model=model, guard=prompt_guard(), moderator=response_guard())
    ),
    "ChatGuarded": local,
}
NODES: dict[str, Callable[[str], tuple[Any, Any]]] = {
    **MODELS,
    "guard_chain": scripted(lambda model: guard_chain(model, guard=prompt_guard(), moderator=response_guard())),
    "guard_chain of a mapping": scripted(
        lambda model: (
            RunnableLambda(lambda messages: {"history": messages})
            | guard_chain(
                ChatPromptTemplate.from_messages([("system", "be kind"), MessagesPlaceholder("history")]) | model,
                guard=prompt_guard(),
                moderator=response_guard(),
                input_key="history",
            )
        )
    ),
}


def graph(subject: Any, saver: Any) -> Any:
    """A graph of one node with a memory."""

    def answer(state: Any) -> Any:
        return {"messages": [subject.invoke(state["messages"])]}

    async def aanswer(state: Any) -> Any:
        return {"messages": [await subject.ainvoke(state["messages"])]}

    node = RunnableLambda(answer, aanswer)
    return StateGraph(MessagesState).add_node("answer", node).add_edge(START, "answer").compile(checkpointer=saver)


def saved(saver: InMemorySaver) -> str:
    return repr(saver.storage) + repr(saver.writes) + repr(saver.blobs)


# -- graphs with a memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", AGENT_WAYS)
@pytest.mark.parametrize("node", NODES)
async def test_a_blocked_answer_is_neither_streamed_nor_saved(node: str, way: str, cache: InMemoryCache) -> None:
    subject, model = NODES[node](ANGRY)
    saver, ear = InMemorySaver(), Ear()
    run = graph(subject, saver)
    seen = repr(await AGENT_WAYS[way](run, says(HELLO), {**THREAD, "callbacks": [ear]}))
    seen += repr(await AGENT_WAYS[way](run, says("and now"), {**THREAD, "callbacks": [ear]}))
    assert len(model.calls) == 2
    assert REFUSAL in seen
    for text in (seen, "\n".join([*ear.heard, *ear.starts]), saved(saver), repr(model.calls), repr(cache._cache)):
        assert SECRET not in text


@pytest.mark.parametrize("way", AGENT_WAYS)
@pytest.mark.parametrize("node", NODES)
async def test_a_prompt_that_was_blocked_in_one_turn_reaches_no_model_in_the_next(node: str, way: str) -> None:
    subject, model = NODES[node](CALM)
    run = graph(subject, InMemorySaver())
    await AGENT_WAYS[way](run, says(BOMB), THREAD)
    assert list(model.calls) == []
    seen = repr(await AGENT_WAYS[way](run, says(HELLO), THREAD))
    assert "well." in seen
    assert len(model.calls) == 1
    assert "bomb" not in repr(model.calls)
    assert HELLO in repr(model.calls)


@pytest.mark.parametrize("way", [way for way in AGENT_WAYS if "batch" not in way])
async def test_a_gate_in_a_graph_stops_it_and_every_later_turn_is_judged_with_what_it_stopped(way: str) -> None:
    model, saver = ScriptedModel(), InMemorySaver()
    run = graph(PromptGate(guard=prompt_guard()) | model, saver)
    for text in (BOMB, HELLO):
        # The prompt stays in the state, so that the gate finds it again among what no answer followed.
        with pytest.raises(PromptBlockedError) as caught:
            await AGENT_WAYS[way](run, says(text), THREAD)
        assert "bomb" not in f"{caught.value} {caught.value!r}"
    assert model.calls == []


def test_only_what_was_blocked_is_emptied_and_its_place_kept() -> None:
    refusal = AIMessage("no", response_metadata={"mlpm_guard": {"blocked": "prompt"}})
    unsafe = AIMessage("no", response_metadata={"mlpm_guard": {"blocked": "response"}})
    history = [
        HumanMessage("a", id="1"),
        unsafe,
        HumanMessage(BOMB, id="2"),
        ToolMessage(BOMB, tool_call_id="7", id="3"),
        refusal,
        HumanMessage("b", id="4"),
    ]
    kept = without_blocked(history)
    assert [each.text for each in kept] == ["a", "no", REMOVED, REMOVED, "no", "b"]
    assert [each.id for each in kept if each.type != "ai"] == ["1", "2", "3", "4"]
    assert history[2].text == BOMB


def test_a_guarded_chain_passes_its_input_on_as_it_is_where_nothing_was_blocked() -> None:
    given: list[Any] = []
    chain = guard_chain(RunnableLambda(lambda value: given.append(value) or "fine"), guard=prompt_guard(), refusal="no")
    values: list[Any] = [
        [HumanMessage("a"), AIMessage("b"), HumanMessage("c")],
        ChatPromptValue(messages=[AIMessage("b"), HumanMessage("c")]),
        {"history": [AIMessage("b"), HumanMessage("c")]},
    ]
    for value in values:
        chain.invoke(value)
        assert given[-1] is value
    refused = AIMessage("no", response_metadata={"mlpm_guard": {"blocked": "prompt"}})
    chain.invoke(ChatPromptValue(messages=[HumanMessage(BOMB), refused, HumanMessage("c")]))
    assert [each.text for each in given[-1].messages] == [REMOVED, "no", "c"]


# -- agents on guarded models -------------------------------------------------------------------------------------------------

AROUND: dict[str, Callable[[], list[Any]]] = {
    "alone": list,
    "ModelRetry": lambda: [ModelRetryMiddleware(max_retries=2, initial_delay=0)],
    "ModelFallback": lambda: [ModelFallbackMiddleware(ScriptedModel(answers=[FALLBACK]))],
}


@pytest.mark.parametrize("way", AGENT_WAYS)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", MODELS)
async def test_an_agent_on_a_guarded_model_leaks_nothing(name: str, around: str, way: str) -> None:
    subject, model = MODELS[name](ANGRY)
    saver, ear = InMemorySaver(), Ear()
    run = create_agent(subject, middleware=AROUND[around](), checkpointer=saver)
    seen = repr(await AGENT_WAYS[way](run, says(HELLO), {**THREAD, "callbacks": [ear]}))
    assert len(model.calls) == 1
    assert REFUSAL in seen
    seen += repr(await AGENT_WAYS[way](run, says(BOMB), {**THREAD, "callbacks": [ear]}))
    assert len(model.calls) == 1
    for text in (seen, "\n".join([*ear.heard, *ear.starts]), saved(saver)):
        assert SECRET not in text
        assert FALLBACK not in text


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch", "stream", "astream", "astream_events v2"])
@pytest.mark.parametrize("around", ["with_retry", "with_fallbacks", "in a bigger chain", "in a parallel", "with_config"])
async def test_an_agent_with_the_middleware_stays_tight_inside_other_things(around: str, way: str) -> None:
    for answer, prompt in ((ANGRY, HELLO), (CALM, BOMB)):
        model, ear = ScriptedModel(answers=[answer]), Ear()
        agent = create_agent(model, middleware=[GuardMiddleware(guard=prompt_guard(), moderator=response_guard())])
        seen = repr(await WAYS[way](COMPOSITIONS[around](agent), says(prompt), {"callbacks": [ear]}))
        assert REFUSAL in seen
        assert FALLBACK not in seen
        assert SECRET not in seen + "\n".join(ear.heard)
        assert len(model.calls) == (0 if prompt == BOMB else 2 if "batch" in way else 1)


def test_a_fallback_model_around_a_model_that_raises_answers_unguarded_and_the_middleware_form_does_not() -> None:
    """The composition that cannot be made safe, and the one that is; LangChain's middleware is not ours to warn from."""
    guarded = ModeratedChatModel(model=ScriptedModel(), guard=prompt_guard(), on_block="raise")
    fallback = ModelFallbackMiddleware(ScriptedModel(answers=[FALLBACK]))
    assert create_agent(guarded, middleware=[fallback]).invoke(says(BOMB))["messages"][-1].text == FALLBACK
    safe = create_agent(ScriptedModel(), middleware=[fallback, GuardMiddleware(guard=prompt_guard())])
    assert shown(safe.invoke(says(BOMB))) == [("ai", REFUSAL)]


# -- local models -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("composition", COMPOSITIONS)
async def test_a_local_models_blocked_answers_and_prompts_are_seen_by_nobody(
    composition: str, way: str, cache: InMemoryCache
) -> None:
    for answer, prompt in ((ANGRY, HELLO), (CALM, BOMB)):
        subject, model = local(answer)
        ear = Ear()
        seen = repr(await WAYS[way](COMPOSITIONS[composition](subject), prompt, {"callbacks": [ear]}))
        assert REFUSAL in seen
        assert FALLBACK not in seen
        assert SECRET not in seen + "\n".join([*ear.heard, *ear.starts]) + repr(cache._cache)
        # A batch gives the prompt twice; the cache may answer the second.
        assert len(model.calls) in ([0] if prompt == BOMB else [1, 2] if way in ("batch", "abatch") else [1])


# -- gates in front of structured output and caches ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", [way for way in WAYS if way != "astream_log"])
async def test_a_gate_stands_in_front_of_structured_output_and_of_caches(way: str, cache: InMemoryCache) -> None:
    call = {"name": "Plan", "args": {"steps": "fine"}, "id": "1"}
    model = ScriptedModel(answers=[AIMessage("", tool_calls=[call])])
    gate = PromptGate(guard=prompt_guard())
    # A prompt that is in the cache from before the gate was there is blocked all the same.
    model.invoke(BOMB)
    asked = len(model.calls)
    for chain in (gate | model.with_structured_output(Plan), gate | model | StrOutputParser()):
        with pytest.raises(PromptBlockedError):
            await WAYS[way](chain, BOMB, {})
    assert len(model.calls) == asked
    assert "steps='fine'" in repr(await WAYS[way](gate | model.with_structured_output(Plan), HELLO, {}))


# -- verdicts -----------------------------------------------------------------------------------------------------------------


def told(seen: Any) -> Any:
    """What a streamed or whole message tells of its verdicts."""
    parts = [part for part in (seen if isinstance(seen, list) else [seen]) if hasattr(part, "response_metadata")]
    message = parts[0]
    for part in parts[1:] if hasattr(message, "tool_call_chunks") else ():
        message = message + part
    return message.response_metadata["mlpm_guard"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moderated", [True, False])
async def test_the_verdicts_on_what_passed_are_told_in_every_way(moderated: bool, way: str) -> None:
    ear = Ear()
    chain = guard_chain(ScriptedModel(), guard=prompt_guard(), moderator=response_guard() if moderated else None)
    seen = await WAYS[way](chain, HELLO, {"callbacks": [ear]})
    stages = [data["stage"] for name, data in ear.events if name == "mlpm_guard"]
    assert set(stages) == ({"prompt", "response"} if moderated else {"prompt"})
    assert not any(data["blocked"] for _, data in ear.events)
    if "events" in way:
        seen = [event["data"]["chunk"] for event in seen if event["event"] == "on_chain_stream"]
    elif way == "batch_as_completed":
        seen = [output for _, output in seen]
    elif way == "astream_log":
        return
    found = told(seen)
    assert found["prompt"]["flagged"] is False
    assert ("response" in found) is moderated
    assert found["blocked"] is None


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_a_chain_around_a_guarded_model_tells_its_own_verdict_and_that_the_model_blocked(way: str) -> None:
    for moderator in (None, response_guard(threshold=1.0)):
        inner = ModeratedChatModel(model=ScriptedModel(answers=[ANGRY]), moderator=response_guard())
        found = told(await WAYS[way](guard_chain(inner, guard=prompt_guard(), moderator=moderator), HELLO, {}))
        assert found["blocked"] == "response"
        assert found["prompt"]["flagged"] is False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "chain", [PromptGate(guard=prompt_guard()) | ScriptedModel(), guard_chain(ScriptedModel(), guard=prompt_guard())]
)
def test_the_third_version_of_event_streams_is_of_models_and_graphs_only(chain: Any) -> None:
    with pytest.raises(NotImplementedError, match="only supported on Runnable subclasses that implement the v3"):
        chain.stream_events(HELLO, version="v3")  # LangChain's own limit; in a graph the same chains are tested above
