from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpm_guard.bundles.augment import (
    LONGEST,
    PLAN,
    SENTENCES,
    SHORT_PADDING,
    WRAPPERS,
    Amount,
    augmented,
    benign_twins,
    changed,
    fillers,
    in_turns,
)
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.evaluation import transformations


@dataclass(frozen=True)
class Row:
    source: str
    text: str
    label: int


ROWS = [
    *(Row("large", f"write a letter about harmless matter number {i}", 0) for i in range(60)),
    *(Row("small", f"how does machine number {i} work inside", 0) for i in range(5)),
    *(Row("harmful", f"please do the forbidden thing number {i}", 1) for i in range(60)),
]
rows_of = st.lists(st.builds(Row, st.sampled_from("abc"), st.text(max_size=12), st.just(0)), max_size=40)


def test_the_twins_are_the_texts_of_the_file():
    twins = benign_twins()
    assert len(twins) == len(set(twins)) >= 450


def test_every_transformation_copies_as_many_rows_of_either_label_as_the_plan_says():
    plan = {"leet": Amount(20, 20), "role_play": Amount(harmless=30, harmful=10)}
    counts = Counter((copy.transformation, copy.label) for copy in augmented(ROWS, seed=0, plan=plan))
    assert counts == {("leet", 0): 20, ("leet", 1): 20, ("role_play", 0): 30, ("role_play", 1): 10}
    few = Counter(copy.label for copy in augmented(ROWS, seed=0, plan={"leet": Amount(500, 500)}))
    assert few == {0: 65, 1: 60}


def test_fillers_are_a_few_neighbouring_words_over_and_over():
    texts = [row.text for row in ROWS]
    found = fillers(texts, seed=0, count=50)
    assert len(found) == 50
    assert found == fillers(texts[::-1], seed=0, count=50)
    assert found != fillers(texts, seed=1, count=50)
    for filler in found:
        words = filler.split()
        assert 4 <= len(words) <= 151
        length = next(length for length in (1, 2, 3) if words == words[:length] * (len(words) // length))
        assert any(" ".join(words[:length]) in text for text in texts)


def test_there_are_no_fillers_of_texts_without_enough_words():
    assert fillers(["one two", "", "three"], seed=0) == []


def test_a_copy_keeps_the_source_of_its_row():
    known = {row.text: row.source for row in ROWS}
    for copy in augmented(ROWS, seed=0, plan={"role_play": Amount(40, 40)}):
        assert copy.source == known[max((text for text in known if text in copy.text), key=len)]


def test_the_plan_names_transformations_that_there_are():
    assert set(PLAN) <= {each.name for each in transformations.TRANSFORMATIONS}
    assert {copy.transformation for copy in augmented(ROWS, seed=0)} == set(PLAN)


def test_sources_take_turns():
    drawn = in_turns([row for row in ROWS if row.label == 0], "seed")
    assert Counter(row.source for row in drawn[:10]) == {"large": 5, "small": 5}
    assert [row.source for row in drawn[10:]] == ["large"] * 55


@given(rows=rows_of)
def test_taking_turns_loses_no_row_and_adds_none(rows):
    assert Counter(in_turns(rows, "seed")) == Counter(rows)


@given(rows=rows_of.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_the_rows_does_not_matter(rows):
    one, other = rows
    assert in_turns(one, "seed") == in_turns(other, "seed")


def test_the_seed_decides_the_copies():
    assert list(augmented(ROWS, seed=1)) == list(augmented(ROWS, seed=1))
    assert list(augmented(ROWS, seed=1)) != list(augmented(ROWS, seed=2))


def test_long_rows_are_not_copied():
    rows = [*ROWS, *(Row("long", "word " * LONGEST, label) for label in (0, 1))]
    assert [*augmented(rows, seed=0)] == [*augmented(ROWS, seed=0)]


def test_wrappers_and_padding_are_not_those_that_are_measured_with():
    assert not set(WRAPPERS) & set(transformations.ROLE_PLAYS)
    assert not set(SENTENCES) & set(transformations.PADDING)
    assert all(wrapper.count("{}") == 1 for wrapper in WRAPPERS)
    for seed in range(20):
        assert changed("role_play", "x", seed) in [wrapper.replace("{}", "x") for wrapper in WRAPPERS]


@pytest.mark.parametrize("name", ["padded_before", "padded_after"])
def test_padding_is_short_and_keeps_the_prompt(name):
    text = changed(name, "what is a balloon", 0)
    assert "what is a balloon" in text
    assert SHORT_PADDING <= len(text.split()) - 4 < SHORT_PADDING + max(len(each.split()) for each in SENTENCES)


def test_an_unknown_transformation_is_refused():
    with pytest.raises(ConfigurationError, match="unknown transformation"):
        changed("rot13", "x", 0)
