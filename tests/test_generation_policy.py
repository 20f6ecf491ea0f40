"""Rules and reviews inside the model that answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mlpm_guard import Action, ConfigurationError, GuardedGenerator, PromptBlocked, ResponseBlocked, Review, RuleMatch, Rules
from mlpm_guard.testing import MockGuard
from tests.generation_support import World, make, response_guard

QUESTION = "please tell me about topic 3"
BATCH = ["please hi", "HOW TO ATTACK US!", "tell me more about topics"]


@pytest.fixture(scope="module")
def world() -> World:
    return make("llama")


@pytest.fixture(autouse=True)
def plain(world: World) -> None:
    world.guard.threshold, world.guard.rules, world.guard.review = 1.0, None, None


def forwards(world: World, call: Any) -> int:
    """How often the model ran during a call."""
    count = 0

    def ran(*_: Any) -> None:
        nonlocal count
        count += 1

    handle = world.model.register_forward_hook(ran)
    try:
        call()
    finally:
        handle.remove()
    return count


@pytest.mark.parametrize("all_views", [False, True])
def test_a_prompt_that_a_rule_blocks_is_refused_and_the_others_are_answered(world: World, all_views: bool) -> None:
    plain = world.generator().generate(BATCH, max_new_tokens=6)
    world.guard.rules = Rules(block=["attack us"])
    results = world.generator(all_views=all_views).generate(BATCH, max_new_tokens=6)
    assert [result.blocked for result in results] == [False, True, False]
    assert results[1].verdict.rule == RuleMatch(kind="block", entry=0)
    assert [results[index].text for index in (0, 2)] == [plain[index].text for index in (0, 2)]


def test_a_prompt_that_a_rule_blocks_costs_no_forward_pass(world: World) -> None:
    world.guard.rules = Rules(block=["attack us"])
    assert forwards(world, lambda: world.generator().generate(BATCH[1], max_new_tokens=6)) == 0


def test_a_prompt_that_a_rule_allows_is_answered_whatever_the_states_say(world: World) -> None:
    world.guard.threshold = 0.0
    assert world.generator().generate(QUESTION, max_new_tokens=6).blocked
    world.guard.rules = Rules(allow=[QUESTION])
    result = world.generator().generate(QUESTION, max_new_tokens=6)
    assert not result.blocked
    assert result.verdict.rule == RuleMatch(kind="allow", entry=0)


async def test_rules_hold_in_streams(world: World) -> None:
    world.guard.rules = Rules(block=["attack us"])
    with pytest.raises(PromptBlocked):
        list(world.generator(on_block="raise").stream(BATCH[1], max_new_tokens=6))
    with pytest.raises(PromptBlocked):
        [piece async for piece in world.generator(on_block="raise").astream(BATCH[1], max_new_tokens=6)]


def test_rules_of_a_moderator_that_reads_the_decode_read_the_text_so_far(world: World) -> None:
    answer = world.generator().generate(QUESTION, max_new_tokens=40, min_new_tokens=40).text
    moderator = response_guard(world)
    start = answer[: len(answer) // 2].strip()
    generator = world.generator(moderator=moderator, moderation="decode", decode_every=4)
    assert not generator.generate(QUESTION, max_new_tokens=40, min_new_tokens=40).blocked
    # What the answer says up to its middle; found at the first look behind it, long before the end.
    moderator.rules = Rules(block=[re.compile(re.escape(start))])
    ran = forwards(world, lambda: generator.generate(QUESTION, max_new_tokens=40, min_new_tokens=40))
    result = generator.generate(QUESTION, max_new_tokens=40, min_new_tokens=40)
    assert result.blocked
    assert result.response_verdict is not None
    assert result.response_verdict.rule == RuleMatch(kind="block", entry=0)
    assert ran < 36
    assert result.text == generator.refusal
    streamed = "".join(generator.stream(QUESTION, max_new_tokens=40, min_new_tokens=40))
    assert streamed.endswith(generator.refusal)
    assert answer not in streamed


@pytest.mark.parametrize("on_review", ["pass", "block"])
def test_a_prompt_to_review_does_what_the_generator_was_told(world: World, on_review: Any) -> None:
    world.guard.review = Review(score=0.0)
    result = world.generator(on_review=on_review).generate(QUESTION, max_new_tokens=4)
    assert result.blocked == (on_review == "block")
    assert result.verdict.action is (Action.BLOCK if on_review == "block" else Action.REVIEW)
    assert not result.verdict.flagged


@pytest.mark.parametrize("moderation", ["text", "decode"])
@pytest.mark.parametrize("on_review", ["pass", "block"])
def test_an_answer_to_review_does_what_the_generator_was_told(world: World, moderation: Any, on_review: Any) -> None:
    moderator = response_guard(world, review=Review(score=0.0))
    generator = world.generator(moderator=moderator, moderation=moderation, on_review=on_review, on_block="raise")
    if on_review == "pass":
        result = generator.generate(QUESTION, max_new_tokens=8, min_new_tokens=8)
        assert result.response_verdict is not None
        assert result.response_verdict.action is Action.REVIEW
        assert "".join(generator.stream(QUESTION, max_new_tokens=8, min_new_tokens=8)) == result.text
        return
    with pytest.raises(ResponseBlocked):
        generator.generate(QUESTION, max_new_tokens=8, min_new_tokens=8)
    with pytest.raises(ResponseBlocked):
        list(generator.stream(QUESTION, max_new_tokens=8, min_new_tokens=8))


def test_all_views_may_ask_for_a_review_too(world: World) -> None:
    guard = MockGuard(lambda text: 0.4, review=Review(score=0.3))
    generator = GuardedGenerator(world.model, world.tokenizer, guard, all_views=True, on_review="block")
    assert generator.generate(QUESTION, max_new_tokens=4).blocked


def test_a_bad_on_review_is_refused(world: World) -> None:
    with pytest.raises(ConfigurationError, match="on_review"):
        world.generator(on_review="ask")
    with pytest.raises(ConfigurationError, match="on_review"):
        world.generator(moderator=response_guard(world), stream_options={"on_review": "block"})
