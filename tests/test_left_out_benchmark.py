"""What `benchmarks/left_out.py` learns from and judges."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LAYERS, DIM = 2, 4
SOURCES = {"gsm8k": 0, "letters": 0, "sap200": 1, "thefts": 1}


@pytest.fixture
def left_out(open_benchmark: Any) -> Any:
    return open_benchmark("left_out")


def prompts_of(left_out: Any, rows: int) -> Any:
    rng = np.random.default_rng(0)
    source = np.repeat(list(SOURCES), rows)
    label = np.array([SOURCES[name] for name in source])
    states = rng.normal(size=(len(source), LAYERS, DIM)).astype(np.float32)
    states[..., 0] += 2.0 * label[:, None]
    held = np.arange(len(source)) % 4 == 0
    kinds = np.full(len(source), left_out.PLAIN)
    return left_out.Prompts(states, np.arange(len(source)), source, label, kinds, held)


def test_no_more_is_learned_of_a_source_than_the_recipe_takes_and_nothing_that_is_held_out(left_out: Any) -> None:
    prompts = prompts_of(left_out, 480)
    chosen = left_out.learned(prompts)
    assert not (chosen & prompts.held).any()
    counts = {name: int(chosen[prompts.source == name].sum()) for name in SOURCES}
    assert counts == {"gsm8k": 360, "letters": 360, "sap200": 300, "thefts": 360}


def test_a_source_that_is_judged_has_no_say(left_out: Any) -> None:
    prompts = prompts_of(left_out, 400)
    found = left_out.shipped(prompts, ["thefts"])
    assert list(found.precision) == [("thefts", 1)]
    assert found.precision["thefts", 1] > 0.8
    judged = np.concatenate([rows for source, _, rows in left_out.targets(prompts) if source == "thefts"])

    def with_shifted(source: str) -> Any:
        # Rows that are learned from and not judged.
        moved = np.setdiff1d(np.flatnonzero((prompts.source == source) & ~prompts.held), judged)
        states = prompts.states.copy()
        states[moved, :, 1] += 3.0
        return left_out.shipped(left_out.Prompts(states, *list(vars(prompts).values())[1:]), ["thefts"])

    assert with_shifted("thefts").precision == found.precision
    assert with_shifted("sap200").precision != found.precision


def test_every_source_is_in_one_fold_and_every_fold_has_both_labels(left_out: Any, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for source, label in {"a": 0, "b": 0, "c": 1, "d": 1, "e": 0, "f": 1}.items():
        with gzip.open(folder / f"{source}.jsonl.gz", "wt") as file:
            for number in range(12):
                row = {"id": f"{source}{number}", "text": f"{source} text {number}", "label": label, "category": None}
                file.write(json.dumps({**row, "source_category": None}) + "\n")
    folds = left_out.dealt(tmp_path, folds=3)
    assert sorted(name for fold in folds for name in fold) == list("abcdef")
    assert all(set(fold) & set("abe") and set(fold) & set("cdf") for fold in folds)
