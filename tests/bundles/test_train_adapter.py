import random
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from mlpm_guard.bundles import train_adapter
from mlpm_guard.bundles.lessons import Lesson
from mlpm_guard.bundles.low_rank import save
from mlpm_guard.bundles.train_adapter import BATCH_TOKENS, LENGTHS, batches, computes_in_half, rate, train
from mlpm_guard.encoders.embedded import EmbeddedEncoder, embedded_folder

ANIMALS = ("cat", "dog", "cow", "hen", "horse", "goat", "duck", "pig")
TOOLS = ("saw", "drill", "hammer", "plane", "rasp", "chisel", "vice", "file")


def lessons():
    found = [Lesson(f"where is the {a} of my {b}", 1, "x", "animals") for a in ANIMALS for b in ("aunt", "friend", "boss")]
    found += [Lesson(f"where is the {a} of my {b}", 0, "x") for a in TOOLS for b in ("aunt", "friend", "boss")]
    return [
        *found,
        Lesson("an answer about a cat", 1, "y", kind="answer"),
        Lesson("an answer about a saw", 0, "y", kind="answer"),
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_folder())


def test_batches_hold_every_chosen_lesson_in_few_shapes(tokenizer):
    chosen = list(range(40))
    found = list(batches(lessons(), chosen, tokenizer, random.Random(0)))
    assert {row for batch in found for row in batch.rows} == set(chosen)
    for batch in found:
        assert batch.ids.shape == batch.mask.shape == (BATCH_TOKENS // batch.ids.shape[1], batch.ids.shape[1])
        assert batch.ids.shape[1] in LENGTHS
        assert bool((batch.ids[:, 0] == tokenizer.cls_token_id).all())
        ends = batch.ids[torch.arange(len(batch.ids)), batch.mask.sum(1) - 1]
        assert bool((ends == tokenizer.sep_token_id).all())


def test_long_texts_are_cut(tokenizer):
    long = [Lesson("word " * 500, label, "x", kind=kind) for label in (0, 1) for kind in ("prompt", "answer")]
    lengths = {long[row].kind: batch.mask.sum(1).max().item() for batch in batches(long, range(4), tokenizer, random.Random(0))
               for row in batch.rows}  # fmt: skip
    assert lengths["prompt"] <= 64 < lengths["answer"] <= 112


@pytest.mark.parametrize(
    ("able", "half"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False), ({}, False)],
)
def test_numbers_of_16_bits_are_used_where_the_processor_has_them(monkeypatch, able, half):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    computes_in_half.cache_clear()
    assert computes_in_half() is half
    computes_in_half.cache_clear()


def test_the_rate_rises_and_falls():
    rates = [rate(done) for done in (0.0, 0.025, 0.05, 0.5, 1.0)]
    assert rates[0] == 0.0
    assert rates[1] == pytest.approx(0.5)
    assert rates[2] == pytest.approx(1.0)
    assert rates[3] > rates[4] > 0.0


def test_training_moves_the_classes_apart_and_the_file_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(train_adapter, "BATCH_TOKENS", 384)
    saved = save(tmp_path / "a.safetensors", train(lessons(), epochs=15, rank=4), EmbeddedEncoder(adapter=None).identity)
    assert saved.info.rank == 4
    unseen = [f"i like your {word} a lot" for word in (*ANIMALS, *TOOLS)]
    apart = []
    for adapter in (None, tmp_path / "a.safetensors"):
        states = EmbeddedEncoder(adapter=adapter).encode(unseen)[:, -1]
        animals, tools = states[: len(ANIMALS)], states[len(ANIMALS) :]
        between = np.linalg.norm(animals.mean(0) - tools.mean(0))
        within = np.mean([np.linalg.norm(group - group.mean(0), axis=1).mean() for group in (animals, tools)])
        apart.append(between / within)
    assert apart[1] > 1.5 * apart[0]


def test_the_adapter_is_the_mean_of_a_run_on_fewer_lessons_and_one_on_all(monkeypatch):
    seen = []

    def run(lessons, *, epochs, rank, messages=True):
        seen.append((lessons, epochs, messages))
        size = float(len(seen))
        return {"map.up": size * torch.ones(4, rank), "map.down": torch.ones(rank, 4)}

    monkeypatch.setattr(train_adapter, "train", run)
    fewer, every = [Lesson("a", 0, "x")], [Lesson("a", 0, "x"), Lesson("b", 0, "minimal_pairs")]
    found = train_adapter.train_both(fewer, every, epochs=(0.5, 0.25), rank=2)
    assert seen == [(fewer, 0.5, False), (every, 0.25, True)]
    # The runs add 2 and 4 everywhere; both are of rank one, so that nothing is cut.
    added = found["map.up"].float() @ found["map.down"].float()
    torch.testing.assert_close(added, torch.full((4, 4), 6.0 / 2), rtol=1e-2, atol=1e-2)


def test_a_missing_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train_adapter.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="no folder named response"):
        train_adapter.main()
