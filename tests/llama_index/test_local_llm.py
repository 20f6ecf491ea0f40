"""GuardedLocalLLM: LlamaIndex's methods give what the `GuardedGenerator` gives, and engines can stand on it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index_mlpm_guard import GuardedLocalLLM, GuardedQueryEngine, PromptBlockedError

from mlpm_guard import ConfigurationError, ResponseBlocked
from mlpm_guard.policy import DEFAULT_REFUSAL
from mlpm_guard.testing import MockGuard
from tests import generation_support
from tests.generation_support import World
from tests.llama_index.support import index, observed, prompt_guard
from tests.loop_support import Meeting

METHODS = [
    "chat", "achat", "stream_chat", "astream_chat", "complete", "acomplete", "stream_complete", "astream_complete",
]  # fmt: skip
PROMPT = "please hi"


@pytest.fixture
def world() -> World:
    return generation_support.shared("llama")


def local(world: World, **options: Any) -> GuardedLocalLLM:
    return GuardedLocalLLM(world.generator(**options), max_new_tokens=8)


async def replies(llm: GuardedLocalLLM, method: str, prompt: str = PROMPT) -> list[Any]:
    asked = prompt if "complete" in method else [ChatMessage(role="user", content=prompt)]
    result = getattr(llm, method)(asked)
    if method.startswith("a"):
        result = await result
    if "stream" not in method:
        return [result]
    return [reply async for reply in result] if method.startswith("a") else list(result)


def text(reply: Any) -> str:
    return (reply.message.content or "") if isinstance(reply, ChatResponse) else reply.text


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_gives_the_generators_answer(world: World, method: str) -> None:
    llm = local(world)
    expected = llm.generator.generate(PROMPT, max_new_tokens=8)
    with observed() as events:
        found = await replies(llm, method)
    assert text(found[-1]) == expected.text != ""
    assert found[-1].additional_kwargs["prompt_verdict"].score == pytest.approx(expected.verdict.score, abs=1e-5)
    assert [(event.stage, event.component) for event in events.decisions] == [("prompt", "GuardedLocalLLM")]
    if "stream" in method:
        assert "".join(reply.delta for reply in found) == expected.text


@pytest.mark.parametrize("method", METHODS)
async def test_a_blocked_prompt_is_refused_after_one_forward_pass(world: World, method: str) -> None:
    llm = local(world)
    world.guard.threshold = 0.0
    passes = []
    hook = world.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        found = await replies(llm, method)
    finally:
        hook.remove()
    assert text(found[-1]) == DEFAULT_REFUSAL
    assert found[-1].additional_kwargs["prompt_verdict"].blocked
    assert len(passes) == 1


@pytest.mark.parametrize("method", METHODS)
async def test_a_blocked_answer_is_refused_and_reported(world: World, method: str) -> None:
    llm = local(world, moderator=MockGuard(lambda _: True, target="response"))
    with observed() as events:
        found = await replies(llm, method)
    assert text(found[-1]) == DEFAULT_REFUSAL
    assert found[-1].additional_kwargs["response_verdict"].blocked
    assert [event.stage for event in events.decisions] == ["prompt", "response"]


@pytest.mark.parametrize("method", METHODS)
async def test_raise_raises(world: World, method: str) -> None:
    llm = local(world, on_block="raise", moderator=MockGuard(lambda _: True, target="response"))
    with pytest.raises(ResponseBlocked):
        await replies(llm, method)
    world.guard.threshold = 0.0
    with pytest.raises(PromptBlockedError):
        await replies(llm, method)


@pytest.mark.parametrize("method", [method for method in METHODS if method.startswith("a")])
async def test_the_event_loop_runs_while_the_model_does(world: World, method: str) -> None:
    llm = GuardedLocalLLM(world.generator(), max_new_tokens=40, generate_kwargs={"min_new_tokens": 40})
    meeting = Meeting()
    handle = world.model.register_forward_pre_hook(meeting.hook)
    try:
        found = await replies(llm, method)
    finally:
        handle.remove()
    assert meeting.held
    assert text(found[-1])


def test_generation_arguments_are_passed_on(world: World) -> None:
    llm = GuardedLocalLLM(world.generator(), max_new_tokens=3, generate_kwargs={"min_new_tokens": 3})
    short = llm.generator.generate(PROMPT, max_new_tokens=3, min_new_tokens=3).text
    assert llm.complete(PROMPT).text == short
    longer = llm.generator.generate(PROMPT, max_new_tokens=9, min_new_tokens=9).text
    assert llm.complete(PROMPT, max_new_tokens=9, min_new_tokens=9).text == longer


async def test_engines_stand_on_it_and_a_refused_turn_is_forgotten(world: World) -> None:
    llm = local(world)
    engine = GuardedQueryEngine(index().as_query_engine(llm=llm, response_mode="simple_summarize"), guard=prompt_guard())
    assert str(await engine.aquery("sky")) == str(engine.query("sky"))
    chat = SimpleChatEngine.from_defaults(llm=llm, memory=ChatMemoryBuffer.from_defaults(token_limit=3000))
    world.guard.threshold = 0.0
    assert str(chat.chat("HOW TO ATTACK")) == DEFAULT_REFUSAL
    world.guard.threshold = 1.0
    assert str(chat.chat(PROMPT)) == llm.complete(PROMPT).text


def test_it_serialises_without_its_generator(world: World) -> None:
    llm = local(world)
    data = llm.to_dict()
    assert data["class_name"] == "GuardedLocalLLM"
    assert "generator" not in data
    assert GuardedLocalLLM.from_dict(data, generator=llm.generator).max_new_tokens == 8
    assert (llm.metadata.is_chat_model, llm.metadata.num_output) == (True, 8)


def test_it_pickles_with_its_generator_or_not_at_all(world: World) -> None:
    llm = local(world, moderator=MockGuard(lambda _: True, target="response"))
    with pytest.raises(ConfigurationError, match="its generator"):
        pickle.dumps(llm)
    assert llm.complete(PROMPT).text == DEFAULT_REFUSAL


def test_bad_options_are_named(world: World) -> None:
    with pytest.raises(ConfigurationError, match="generator is str"):
        GuardedLocalLLM("x")  # type: ignore[arg-type]
    llm = GuardedLocalLLM(world.generator(), generate_kwargs={"do_sample": True, "num_return_sequences": 2})
    with pytest.raises(ConfigurationError, match="num_return_sequences"):
        llm.complete(PROMPT)
