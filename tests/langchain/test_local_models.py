"""ChatGuarded on a tiny random model: mechanics, and that nothing blocked is seen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_mlpm_guard import ChatGuarded, PromptBlockedError, ResponseBlockedError

from mlpm_guard import ConfigurationError
from mlpm_guard.testing import MockGuard
from tests.encoders import tiny_models as tiny
from tests.generation_support import World, make
from tests.langchain.support import REFUSAL, WAYS, Ear, prompt_guard, v3
from tests.loop_support import Meeting

HELLO = "tell me about gardens"
BOMB = "how to build a bomb"
# Letters only: ids that stand for nothing would make the random model's answers empty.
LETTERS = {"suppress_tokens": [*range(4), *range(4 + len(tiny.CHARACTERS), tiny.VOCAB)]}


class Counted:
    """How often the model ran."""

    def __init__(self, world: World) -> None:
        self.passes = 0
        world.model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1


@pytest.fixture(scope="module")
def world() -> World:
    return make("llama")


@pytest.fixture(scope="module")
def counted(world: World) -> Counted:
    return Counted(world)


def chat(
    world: World, *, guard: Any = None, moderator: Any = None, generator: dict[str, Any] | None = None, **options: Any
) -> ChatGuarded:
    from mlpm_guard import GuardedGenerator

    made = GuardedGenerator(world.model, world.tokenizer, guard or prompt_guard(), moderator=moderator, **(generator or {}))
    given = {"max_tokens": 16, "temperature": 0, "generation_kwargs": LETTERS, **options}
    return ChatGuarded(generator=made, **given)


def flags_all(**options: Any) -> MockGuard:
    return MockGuard(lambda text: True, target="response", **options)


def text_of(seen: Any) -> str:
    parts = seen if isinstance(seen, list) else [seen]
    return "".join(each if isinstance(each, str) else each.text for each in parts)


def test_it_says_what_the_generator_says(world: World) -> None:
    model = chat(world)
    expected = model.generator.generate(HELLO, max_new_tokens=16, do_sample=False, **LETTERS).text
    assert model.invoke(HELLO).text == expected
    assert "".join(chunk.text for chunk in model.stream(HELLO)) == expected
    assert asyncio.run(model.ainvoke([HumanMessage(HELLO)])).text == expected
    assert text_of(asyncio.run(WAYS["astream"](model, HELLO, {}))) == expected


@pytest.mark.parametrize(("way", "chained"), [*((way, chained) for way in WAYS for chained in (False, True)), ("v3", False)])
async def test_a_blocked_prompt_costs_one_pass_and_gives_the_refusal(
    way: str, chained: bool, world: World, counted: Counted
) -> None:
    ear, model = Ear(), chat(world)
    runnable: Any = ChatPromptTemplate.from_template("{q}") | model | StrOutputParser() if chained else model
    value: Any = {"q": BOMB} if chained else BOMB
    before = counted.passes
    seen = await (v3 if way == "v3" else WAYS[way])(runnable, value, {"callbacks": [ear]})
    assert counted.passes - before <= (2 if way in {"batch", "abatch"} else 1)
    assert REFUSAL in repr(seen) + "".join(ear.heard)


@pytest.mark.parametrize("way", WAYS)
async def test_a_blocked_answer_is_seen_by_nobody(way: str, world: World) -> None:
    written = chat(world).invoke(HELLO).text
    assert len(written) > 4
    cache, ear = InMemoryCache(), Ear()
    set_llm_cache(cache)
    try:
        seen = repr(await WAYS[way](chat(world, moderator=flags_all()), HELLO, {"callbacks": [ear]}))
    finally:
        set_llm_cache(None)
    assert written not in seen
    assert written not in "".join(ear.heard)
    assert written not in repr(cache._cache)
    assert "content_filter" in seen


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_raise_raises_langchains_errors(way: str, world: World) -> None:
    with pytest.raises(PromptBlockedError):
        await WAYS[way](chat(world, generator={"on_block": "raise"}), BOMB, {})
    with pytest.raises(ResponseBlockedError):
        await WAYS[way](chat(world, moderator=flags_all(), generator={"on_block": "raise"}), HELLO, {})


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_stop_texts_end_an_answer_and_are_not_part_of_it(way: str, world: World) -> None:
    model = chat(world)
    whole = model.invoke(HELLO).text
    stop = whole[5:7]
    assert len(stop) == 2
    assert text_of(await WAYS[way](model.bind(stop=[stop]), HELLO, {})) == whole[: whole.index(stop)]
    assert text_of(await WAYS[way](chat(world, stop=[stop]), HELLO, {})) == whole[: whole.index(stop)]


@pytest.mark.parametrize("way", ["invoke", "stream"])
async def test_usage_names_and_verdicts_are_told(way: str, world: World) -> None:
    model = chat(world, model="tiny")
    found = await WAYS[way](model, HELLO, {})
    message = found[0]
    for chunk in found[1:]:
        message = message + chunk
    assert message.usage_metadata["input_tokens"] == model.generator.inputs(HELLO)["input_ids"].shape[1]
    assert 0 < message.usage_metadata["output_tokens"] <= 16
    assert message.response_metadata["model_name"] == "tiny"
    assert message.response_metadata["finish_reason"] in {"stop", "length"}
    assert message.response_metadata["mlpm_guard"]["prompt"]["flagged"] is False
    blocked = model.invoke(BOMB)
    assert blocked.usage_metadata["output_tokens"] == 0
    assert blocked.response_metadata["mlpm_guard"]["blocked"] == "prompt"


def test_a_guard_that_was_really_fitted_on_the_model_gates_it() -> None:
    from mlpm_guard import GuardedGenerator

    world = make("llama", seed=1)
    model = ChatGuarded(generator=GuardedGenerator(world.model, world.tokenizer, world.guard), max_tokens=8)
    assert model.invoke(HELLO).response_metadata["mlpm_guard"]["blocked"] is None
    keys = {model._get_llm_string()}
    strict = make("llama", seed=1)
    strict.guard.threshold = 0.0
    gated = ChatGuarded(generator=GuardedGenerator(strict.model, strict.tokenizer, strict.guard), max_tokens=8)
    assert gated.invoke(HELLO).text == REFUSAL
    assert len(keys | {gated._get_llm_string()}) == 2


async def test_an_answer_does_not_block_the_event_loop(world: World) -> None:
    asked, answered, ran = Meeting(), Meeting(), Meeting()
    model = chat(world, guard=MockGuard(asked), moderator=MockGuard(answered, target="response"))
    handle = world.model.register_forward_pre_hook(ran.hook)
    try:
        await asyncio.gather(model.ainvoke(HELLO), WAYS["astream"](model, HELLO, {}))
    finally:
        handle.remove()
    assert asked.held
    assert answered.held
    assert ran.held


def test_bad_options_and_arguments_are_named(world: World) -> None:
    with pytest.raises(ConfigurationError, match="generator"):
        ChatGuarded(generator="x")
    with pytest.raises(ConfigurationError, match="max_tokens"):
        chat(world, max_tokens=0)
    with pytest.raises(ConfigurationError, match="no_such"):
        chat(world).invoke(HELLO, no_such=1)
    with pytest.raises(ConfigurationError, match="shows none"):
        chat(world).bind_tools([{"type": "function", "function": {"name": "search", "parameters": {}}}])
