import gzip
import json

import pytest

from mlpm_guard.bundles.augment import benign_twins
from mlpm_guard.bundles.fit_candidate import ADDITIONS, COPIES, TWINS, candidate_rows
from mlpm_guard.bundles.fit_default import training_rows


@pytest.fixture
def folder(tmp_path):
    sources = {
        "advbench": [(f"please do the forbidden thing number {i}", 1) for i in range(30)],
        "dolly_1k": [(f"how does machine number {i} work inside", 0) for i in range(30)],
        "nq_open": [("what is a balloon", 0), ("sings in two sources", 0)],
        "catqa": [("sings in two sources", 1)],
    }
    for name, rows in sources.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for number, (text, label) in enumerate(rows):
                file.write(json.dumps({"id": f"{name}-{number}", "text": text, "label": label}) + "\n")
    return tmp_path


def test_the_default_recipes_rows_come_first_and_the_additions_after(folder):
    rows = candidate_rows(folder)
    base = training_rows(folder)
    assert rows[: len(base)] == base
    assert {row.source for row in rows[len(base) :]} >= {TWINS, f"{COPIES}:leet", f"{COPIES}:role_play"}


def test_without_additions_it_is_the_default_recipe(folder):
    assert candidate_rows(folder, ADDITIONS) == training_rows(folder)


def test_every_twin_is_there_once_and_harmless(folder):
    rows = [row for row in candidate_rows(folder, ["copies"]) if row.source == TWINS]
    assert [row.text for row in rows] == benign_twins()
    assert {row.label for row in rows} == {0}


def test_copies_are_of_both_labels_and_no_text_has_two(folder):
    rows = candidate_rows(folder)
    copies = [row for row in rows if row.source.startswith(COPIES)]
    assert {row.label for row in copies} == {0, 1}
    assert len({row.text for row in copies}) == len(copies)
    labels = {}
    for row in rows:
        assert labels.setdefault(row.text, row.label) == row.label


def test_the_rows_are_the_same_every_time(folder):
    assert candidate_rows(folder) == candidate_rows(folder)
