"""Retries and blocks: how often guards and models are asked, and what the caller gets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.documents import Document
from langchain_core.load import dumpd, load
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnableSequence
from langchain_mlpm_guard import (
    GuardBypassWarning,
    GuardedRetriever,
    GuardMiddleware,
    ModeratedChatModel,
    OutputModeration,
    PromptBlockedError,
    PromptGate,
    ResponseBlockedError,
    guard_chain,
)
from langchain_mlpm_guard.retrying import GatedSequence, GuardedRetry

from mlpm_guard.errors import Blocked
from tests.langchain.support import ANGRY, BOMB, CALM, HELLO, WAYS, Ear, ScriptedModel, prompt_guard, response_guard

ONCE = ["invoke", "ainvoke", "batch", "abatch"]
QUICK: dict[str, Any] = {"stop_after_attempt": 3, "wait_exponential_jitter": False}


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return []


RAISING: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "gate": (lambda guard, moderator, model: PromptGate(guard=guard), BOMB),
    "gate | model": (lambda guard, moderator, model: PromptGate(guard=guard) | model, BOMB),
    "gate | model | parser": (lambda guard, moderator, model: PromptGate(guard=guard) | model | StrOutputParser(), BOMB),
    "gate | (step | model)": (lambda guard, moderator, model: PromptGate(guard=guard) | (RunnableLambda(str) | model), BOMB),
    "function | gate | model": (lambda guard, moderator, model: str | PromptGate(guard=guard) | model, BOMB),
    "(step | step) | (gate | model)": (
        lambda guard, moderator, model: (RunnableLambda(str) | RunnableLambda(str)) | (PromptGate(guard=guard) | model),
        BOMB,
    ),
    "pipe": (lambda guard, moderator, model: PromptGate(guard=guard).pipe(model).pipe(StrOutputParser()), BOMB),
    "with_config": (lambda guard, moderator, model: (PromptGate(guard=guard) | model).with_config(tags=["a"]), BOMB),
    "raising model, prompt": (
        lambda guard, moderator, model: ModeratedChatModel(model=model, guard=guard, moderator=moderator, on_block="raise"),
        BOMB,
    ),
    "raising model, answer": (
        lambda guard, moderator, model: ModeratedChatModel(model=model, guard=guard, moderator=moderator, on_block="raise"),
        HELLO,
    ),
    "raising model with tools": (
        lambda guard, moderator, model: ModeratedChatModel(model=model, guard=guard, on_block="raise").bind_tools([]),
        BOMB,
    ),
    "raising moderation": (lambda guard, moderator, model: OutputModeration(moderator=moderator, on_block="raise"), ANGRY),
    "retriever": (lambda guard, moderator, model: GuardedRetriever(Shelf(), guard=guard, on_query="raise"), BOMB),
}


@pytest.mark.parametrize("way", ONCE)
@pytest.mark.parametrize("name", RAISING)
@pytest.mark.parametrize("types", [None, (Exception,), (ValueError, Blocked)])
async def test_a_block_is_raised_at_once_and_nobody_is_asked_again(types: Any, name: str, way: str) -> None:
    make, value = RAISING[name]
    guard, moderator, model, ear = prompt_guard(), response_guard(), ScriptedModel(answers=[ANGRY]), Ear()
    options = QUICK if types is None else {**QUICK, "retry_if_exception_type": types}
    run = make(guard, moderator, model).with_retry(**options)
    with pytest.raises(PromptBlockedError if value == BOMB else ResponseBlockedError):
        await WAYS[way](run, value, {"callbacks": [ear]})
    items = 2 if "batch" in way else 1
    assert len(guard.calls) <= items
    assert len(moderator.calls) <= items
    assert len(model.calls) == (items if name == "raising model, answer" else 0)
    assert "_Withheld" not in "".join(ear.heard)
    assert any("chain_error" in text and "Blocked" in text for text in ear.heard)


@pytest.mark.parametrize("way", ONCE)
async def test_everything_else_is_retried_as_before(way: str) -> None:
    model = ScriptedModel(answers=[ConnectionError("down"), ConnectionError("down"), CALM])
    run = (PromptGate(guard=prompt_guard()) | model | StrOutputParser()).with_retry(**QUICK)
    assert CALM in repr(await WAYS[way](run, HELLO, {}))
    broken = ScriptedModel(answers=[ConnectionError("down")])
    with pytest.raises(ConnectionError):
        (PromptGate(guard=prompt_guard()) | broken).with_retry(**QUICK).invoke(HELLO)
    assert len(broken.calls) == 3


@pytest.mark.parametrize("way", ["batch", "abatch"])
async def test_the_other_items_of_a_batch_are_answered(way: str) -> None:
    guard, model = prompt_guard(), ScriptedModel()
    run: Any = (PromptGate(guard=guard) | model | StrOutputParser()).with_retry(**QUICK)
    call = run.batch if way == "batch" else run.abatch
    found = call([HELLO, BOMB, "again"], return_exceptions=True)
    found = found if way == "batch" else await found
    assert found[0] == found[2] == CALM
    assert isinstance(found[1], PromptBlockedError)
    assert guard.calls == [3]
    assert len(model.calls) == 2


@pytest.mark.parametrize("way", ["stream", "astream", "transform", "astream_events v2"])
async def test_streams_are_not_retried(way: str) -> None:
    guard, model = prompt_guard(), ScriptedModel()
    run = (PromptGate(guard=guard) | model).with_retry(**QUICK)
    with pytest.raises(PromptBlockedError):
        await WAYS[way](run, BOMB, {})
    assert (len(guard.calls), model.calls) == (1, [])


@pytest.mark.parametrize("way", ONCE)
@pytest.mark.parametrize(
    "chain", [lambda gate, model: RunnableLambda(str) | gate | model, lambda gate, model: RunnableSequence(gate, model)]
)
async def test_a_gate_further_in_is_asked_again_but_no_model_behind_it(chain: Any, way: str) -> None:
    guard, model = prompt_guard(), ScriptedModel()
    run = chain(PromptGate(guard=guard), model).with_retry(**QUICK)
    with pytest.raises(PromptBlockedError):
        await WAYS[way](run, BOMB, {})
    assert len(guard.calls) == 3
    assert model.calls == []


@pytest.mark.parametrize("way", ONCE)
async def test_a_raising_model_further_in_is_asked_again_and_nothing_blocked_comes_out(way: str) -> None:
    model, ear = ScriptedModel(answers=[ANGRY]), Ear()
    raising = ModeratedChatModel(model=model, moderator=response_guard(), on_block="raise")
    run = (RunnableLambda(str) | raising).with_retry(**QUICK)
    with pytest.raises(ResponseBlockedError) as caught:
        await WAYS[way](run, HELLO, {"callbacks": [ear]})
    assert len(model.calls) == (6 if "batch" in way else 3)
    assert "secret" not in f"{caught.value!r} {caught.value}" + "".join(ear.heard)


@pytest.mark.parametrize("way", ONCE)
async def test_an_agent_that_is_retried_asks_no_model_about_a_blocked_prompt(way: str) -> None:
    guard, model = prompt_guard(), ScriptedModel()
    agent = create_agent(model, middleware=[GuardMiddleware(guard=guard, exit_behavior="error")])
    with pytest.raises(PromptBlockedError):
        await WAYS[way](agent.with_retry(**QUICK), {"messages": [("user", BOMB)]}, {})
    assert model.calls == []


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_model_retry_middleware_leaves_a_raising_models_block_alone(way: str) -> None:
    for on_failure in ("error", "continue"):
        model = ScriptedModel(answers=[ANGRY])
        raising = ModeratedChatModel(model=model, moderator=response_guard(), on_block="raise")
        retry = ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure=on_failure)
        agent = create_agent(raising, middleware=[retry])
        try:
            seen = repr(await WAYS[way](agent, {"messages": [("user", HELLO)]}, {}))
        except ResponseBlockedError as error:
            seen = str(error)
        assert len(model.calls) == 1
        assert "secret" not in seen


def test_a_chain_that_begins_with_a_gate_is_a_sequence_like_any_other() -> None:
    gate, model = PromptGate(guard=prompt_guard()), ScriptedModel()
    chain = gate | model | StrOutputParser()
    assert isinstance(chain, GatedSequence)
    assert [type(step) for step in chain.steps] == [PromptGate, ScriptedModel, StrOutputParser]
    assert (gate | model).get_graph().to_json() == RunnableSequence(gate, model).get_graph().to_json()
    assert isinstance(chain.with_retry(), GuardedRetry)
    assert RunnableSequence.lc_id() == GatedSequence.lc_id()
    assert GatedSequence(RunnableLambda(str), RunnableLambda(str), name="two").name == "two"


def test_it_is_loaded_as_a_sequence() -> None:
    chain = PromptGate(bundle="default") | StrOutputParser()
    allowed = [PromptGate, StrOutputParser, RunnableSequence]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = load(dumpd(chain), allowed_objects=allowed, valid_namespaces=["langchain_mlpm_guard"])
    assert isinstance(again, RunnableSequence)
    assert again.invoke(HumanMessage("tell me about gardens")) == "tell me about gardens"


def test_fallbacks_around_a_chain_that_begins_with_a_gate_are_warned_of() -> None:
    model, gate = ScriptedModel(), PromptGate(guard=prompt_guard())
    with pytest.warns(GuardBypassWarning, match="unguarded"):
        (gate | model | StrOutputParser()).with_fallbacks([ScriptedModel()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (gate | model).with_fallbacks([gate | ScriptedModel()])
        (gate | model).with_fallbacks([guard_chain(ScriptedModel(), guard=prompt_guard())])
