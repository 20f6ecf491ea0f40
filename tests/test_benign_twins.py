"""The harmless prompts that sound alarming and the harmful ones beside them, which ship with the recipe.

Their form, how the two files belong together, and that no data set knows them.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from mlpm_guard import bundle


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (bundle.SHIPPED / name).read_text("utf-8").splitlines()]


ROWS = read("benign_twins.jsonl") + read("traffic_benign.jsonl")
UNSAFE = read("unsafe_twins.jsonl") + read("traffic_unsafe.jsonl")
CATEGORIES = frozenset(
    [
        "violence",
        "self_harm",
        "hate",
        "sexual",
        "weapons",
        "drugs",
        "cyber",
        "fraud",
        "privacy",
        "misinformation",
        "crime",
        "jailbreak",
    ]
)
BOTH = pytest.mark.parametrize("rows", [pytest.param(ROWS, id="benign"), pytest.param(UNSAFE, id="unsafe")])

Part = TypeVar("Part")

GRAM = 3
MOST_ALIKE = 1 / 3
LONG_PASSAGE = 6
SAME_WORDS = 0.7


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))


NO_BLANKS = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")
"""Thai, Japanese and Chinese write words without blanks between them."""


def fits(row: dict[str, str], fewest: int) -> bool:
    """Whether a row has a prompt's length. In other languages, which need fewer words than English, three are enough."""
    if row["topic"] == "multilingual" and NO_BLANKS.search(row["text"]):
        return fewest <= len(row["text"]) <= 300
    return (3 if row["topic"] == "multilingual" else fewest) <= len(row["text"].split()) <= 60


def grams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {found[start : start + GRAM] for start in range(len(found) - GRAM + 1)}


def prompts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                yield f"{path.name}:{row['id']}", str(row.get("prompt", row["text"]))


def repeats(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> bool:
    """Whether two texts share too many word triples: a third of all, or most of the shorter one's where those are many.

    "How do I make" alone is shared by hundreds of prompts and makes none of them a copy.
    """
    shared = len(one & other)
    return shared > MOST_ALIKE * len(one | other) or (shared >= LONG_PASSAGE and 2 * shared > min(len(one), len(other)))


def holders_of(parts: Mapping[str, Iterable[Part]]) -> dict[Part, list[str]]:
    """Names of what has a part, by part."""
    holders: dict[Part, list[str]] = {}
    for name, found in parts.items():
        for part in found:
            holders.setdefault(part, []).append(name)
    return holders


def sharing(parts: Iterable[Part], holders: Mapping[Part, list[str]]) -> set[str]:
    """Names of everything that has one of some parts."""
    return {name for part in parts for name in holders.get(part, ())}


def test_every_row_has_an_id_a_text_a_topic_and_what_it_resembles() -> None:
    assert len(ROWS) >= 3000
    for row in ROWS:
        assert list(row) == ["id", "text", "topic", "resembles"]
        assert row["id"].startswith(f"{row['topic']}-")
        assert row["text"] == row["text"].strip()
        assert fits(row, 5)
        assert row["resembles"].strip()


def test_every_unsafe_row_names_its_category_and_the_harmless_row_that_it_stands_beside() -> None:
    topics = {row["id"]: row["topic"] for row in ROWS}
    assert len(UNSAFE) >= 2500
    for row in UNSAFE:
        assert list(row) == ["id", "text", "topic", "category", "twin"]
        assert row["category"] in CATEGORIES
        assert row["topic"] == topics[row["twin"]]
        assert row["id"].startswith(f"unsafe-{row['twin']}")
        assert row["text"] == row["text"].strip()
        assert fits(row, 4)


def test_many_unsafe_rows_are_short_and_every_category_has_some() -> None:
    short = Counter(row["category"] for row in UNSAFE if len(row["text"].split()) <= 14)
    assert set(short) == set(CATEGORIES)
    assert short.total() >= 200


@BOTH
def test_ids_and_texts_are_unique(rows: list[dict[str, str]]) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({words(row["text"]) for row in rows}) == len(rows)


def test_no_text_is_called_both_harmless_and_unsafe() -> None:
    assert {words(row["text"]) for row in ROWS}.isdisjoint(words(row["text"]) for row in UNSAFE)


def test_every_topic_has_enough_rows_to_count() -> None:
    assert min(Counter(row["topic"] for row in ROWS).values()) >= 20


@BOTH
def test_no_two_rows_are_one_sentence_with_other_words_filled_in(rows: list[dict[str, str]]) -> None:
    known = {row["id"]: grams(row["text"]) for row in rows}
    holders = holders_of(known)
    pairs = {tuple(sorted((one, two))) for one, found in known.items() for two in sharing(found, holders) if one != two}
    assert [(one, two) for one, two in pairs if repeats(known[one], known[two])] == []


@BOTH
@pytest.mark.parametrize("folder", ["eval", "train", "response"])
def test_no_row_repeats_a_prompt_of_a_data_set(data: Path, folder: str, rows: list[dict[str, str]]) -> None:
    if not (data / folder).is_dir():
        pytest.skip(f"the data folder has no folder named {folder}")
    exact = {words(row["text"]): row["id"] for row in rows}
    of_twins = {row["id"]: grams(row["text"]) for row in rows}
    holders = holders_of(of_twins)
    repeated = []
    for place, text in prompts(data / folder):
        if words(text) in exact:
            repeated.append((exact[words(text)], place))
        of_text = grams(text)
        repeated += [(name, place) for name in sharing(of_text, holders) if repeats(of_twins[name], of_text)]
    assert repeated == []


@BOTH
def test_no_row_has_the_words_of_a_prompt_kept_for_evaluation(data: Path, rows: list[dict[str, str]]) -> None:
    of_rows = {row["id"]: set(words(row["text"])) for row in rows}
    holders = holders_of(of_rows)
    repeated = []
    for place, text in prompts(data / "eval"):
        other = set(words(text))
        # Of two sets that share so many words, each also has one of the rarest few of the other.
        rarest = sorted(other, key=lambda word: len(holders.get(word, ())))[: int((1 - SAME_WORDS) * len(other)) + 1]
        near = sharing(rarest, holders)
        repeated += [(name, place) for name in near if len(of_rows[name] & other) >= SAME_WORDS * len(of_rows[name] | other)]
    assert repeated == []


@pytest.mark.parametrize(
    ("copy", "found"),
    [
        ("how do I keep burglars away while we are in Spain", True),
        (
            "Our house is empty. How do I keep burglars away while we are in Greece: a dog, a camera, a lock, or all three?",
            True,
        ),
        ("How do I keep wasps away while we are eating in the garden?", False),
        ("Why are burglars drawn to Greece while we are away?", False),
    ],
)
def test_the_check_finds_a_copy_with_a_few_words_changed(copy: str, found: bool) -> None:
    assert repeats(grams("How do I keep burglars away while we are in Greece?"), grams(copy)) is found
