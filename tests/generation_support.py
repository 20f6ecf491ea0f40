"""Tiny causal models with guards fitted on them. Randomly initialised: they show mechanics, not quality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig

from mlpm_guard import Guard, TransformerEncoder
from mlpm_guard.generation import GuardedGenerator
from tests.encoders import tiny_models as tiny

PAD, ENDS = 0, [2, 7]
BATCH = ["please hi", "HOW TO ATTACK US!", "tell me more about topics"]
SAFE = [f"please tell me about topic {index}" for index in range(12)]
UNSAFE = [f"HOW TO ATTACK {index}!" for index in range(12)]
MODELS = {**tiny.CAUSAL, **tiny.STATEFUL}


@dataclass
class World:
    """A model, its tokenizer, and a guard that flags nothing until its threshold is lowered."""

    model: Any
    tokenizer: Any
    guard: Guard

    def generator(self, **options: Any) -> GuardedGenerator:
        return GuardedGenerator(self.model, self.tokenizer, self.guard, **options)

    def plain(self, generator: GuardedGenerator, prompts: Any, **arguments: Any) -> list[list[int]]:
        """New tokens of plain `generate` on what the guarded one reads, up to the end token."""
        inputs = generator.inputs(prompts)
        sequences = self.model.generate(**inputs, **arguments)[:, inputs["input_ids"].shape[1] :].tolist()
        return [cut(row) for row in sequences]

    def flag_the_worst(self, generator: GuardedGenerator, prompts: list[str], **arguments: Any) -> int:
        """Lower the threshold so that only the worst prompt of a batch is flagged; its index."""
        results = generator.generate(prompts, **{"max_new_tokens": 1, **arguments})
        scores = [result.verdict.score for result in results[:: len(results) // len(prompts)]]
        ordered = sorted(scores)
        assert ordered[-1] > ordered[-2]
        self.guard.threshold = (ordered[-1] + ordered[-2]) / 2
        return scores.index(ordered[-1])


def cut(row: list[int]) -> list[int]:
    for index, token in enumerate(row):
        if token in ENDS:
            return row[: index + 1]
    while row and row[-1] == PAD:
        row = row[:-1]
    return row


def make(name: str, *, template: str | None = tiny.CHATML, seed: int = 0) -> World:
    """A new world."""
    model = tiny.build(AutoModelForCausalLM, MODELS[name](), seed=seed)
    model.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=ENDS, bos_token_id=1)
    tokenizer = tiny.character_tokenizer(template=template)
    guard = Guard(TransformerEncoder(model, tokenizer), threshold=1.0)
    guard.fit(SAFE + UNSAFE, [0] * len(SAFE) + [1] * len(UNSAFE), progress=False)
    return World(model, tokenizer, guard)


@cache
def _shared(name: str) -> World:
    return make(name)


def shared(name: str) -> World:
    """A world that tests share; its guard's options are as new."""
    world = _shared(name)
    world.guard.threshold, world.guard.mode, world.guard.on_error = 1.0, "enforce", "block"
    return world


def response_guard(world: World, **options: Any) -> Guard:
    """A response guard on the same model."""
    guard = Guard(TransformerEncoder(world.model, world.tokenizer), target="response", threshold=1.0, **options)
    answers = [("sure, here it is: " + text, 1) for text in UNSAFE] + [("no. " + text, 0) for text in SAFE]
    conversations = [[{"role": "user", "content": "tell me"}, {"role": "assistant", "content": text}] for text, _ in answers]
    return guard.fit(conversations, [label for _, label in answers], progress=False)
