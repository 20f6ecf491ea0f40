"""Categories inside the model that answers: read from its own states, of the prompt and of the answer."""

from __future__ import annotations

import pytest

from mlpm_guard import Action, CategoryPolicy, Guard, GuardedGenerator, TransformerEncoder
from tests.generation_support import SAFE, UNSAFE, World, make

TOPIC = [f"what of the tax {index}" for index in range(12)]
QUESTION = "what of the tax 40"


@pytest.fixture(scope="module")
def world() -> World:
    """A model with a guard that has an added category and flags by nothing else."""
    found = make("llama")
    found.guard.add_category("tax", TOPIC, threshold=0.0, action="review")
    return found


def test_a_verdict_of_the_prefill_has_the_categories_of_a_separate_pass(world: World) -> None:
    verdict = world.generator().generate(QUESTION, max_new_tokens=2).verdict
    apart = world.guard.check(QUESTION)
    assert verdict.flagged_by == ("tax",)
    assert verdict.action is Action.REVIEW
    assert list(verdict.categories) == ["tax"]
    assert verdict.categories["tax"] == pytest.approx(apart.categories["tax"], abs=1e-2)


def test_a_category_blocks_before_the_first_token(world: World) -> None:
    world.guard.category_policy = {"tax": CategoryPolicy(threshold=0.0)}
    result = world.generator().generate(QUESTION, max_new_tokens=4)
    assert result.blocked
    assert result.verdict.category == "tax"


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_the_states_of_an_answer_tell_its_categories(world: World, threshold: float | None) -> None:
    world.guard.category_policy = {"tax": CategoryPolicy("review", threshold=None)}
    moderator = Guard(
        TransformerEncoder(world.model, world.tokenizer),
        target="response",
        threshold=1.0,
        policy={"attack": CategoryPolicy("review", threshold)},
    )
    answers = [("sure, here it is: " + text, 1) for text in UNSAFE] + [("no. " + text, 0) for text in SAFE]
    moderator.fit(
        [[{"role": "user", "content": "tell me"}, {"role": "assistant", "content": text}] for text, _ in answers],
        [label for _, label in answers],
        ["attack" if label else None for _, label in answers],
        progress=False,
    )
    generator = GuardedGenerator(
        world.model, world.tokenizer, world.guard, moderator=moderator, moderation="decode", decode_every=2
    )
    result = generator.generate(QUESTION, max_new_tokens=6)
    verdict = result.response_verdict
    assert verdict is not None
    assert list(verdict.categories) == ["attack"]
    assert verdict.flagged_by == (() if threshold is None else ("attack",))
    assert not result.blocked
