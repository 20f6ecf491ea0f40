import gzip
import json
import random

import numpy as np
import pytest

from mlpm_guard.bundles.augment import benign_twins
from mlpm_guard.bundles.lessons import (
    BEGINNING,
    EXAM,
    HEAVIEST,
    READ,
    VARIED,
    Lesson,
    Variation,
    answers,
    fewer_prompts,
    prompts,
    weighted,
)


def lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def data(tmp_path):
    unsafe = [{"id": f"a{i}", "text": f"do the forbidden thing {i}", "label": 1, "category": "crime"} for i in range(40)]
    safe = [{"id": f"d{i}", "text": f"how does machine {i} work", "label": 0, "category": None} for i in range(40)]
    lines(tmp_path / "train" / "advbench.jsonl.gz", unsafe)
    for name in ("dolly_1k", "bbq_sample", "arena_hard", "self_instruct", "safetext", "cyberseceval_frr"):
        lines(tmp_path / "train" / f"{name}.jsonl.gz", safe if name == "dolly_1k" else [])
    answer = {"id": "r1", "prompt": "p", "text": "here is how", "label": 1}
    for name in ("gptfuzz_resp", "jbb_artifacts_resp"):
        lines(tmp_path / "response" / f"{name}.jsonl.gz", [answer, {**answer, "id": "r2", "text": "I will not", "label": 0}])
    return tmp_path


def test_prompts_are_the_recipes_rows_the_twins_and_the_pairs_of_both_labels(data):
    found = prompts(data)
    sources = {lesson.source for lesson in found}
    assert {"advbench", "dolly_1k", "benign_twins", "unsafe_twins", "traffic_benign", "traffic_unsafe"} <= sources
    assert {lesson.label for lesson in found if lesson.source == "minimal_pairs"} == {0, 1}
    assert {lesson.label for lesson in found if lesson.source == "unsafe_twins"} == {1}
    assert [lesson.text for lesson in found if lesson.source == "benign_twins"] == benign_twins()
    assert {lesson.category for lesson in found if lesson.source == "advbench"} == {"crime"}
    assert found == prompts(data)


def test_answers_are_a_kind_of_their_own(data):
    found = answers(data)
    assert {lesson.kind for lesson in found} == {"answer"}
    assert {"here is how", "I will not"} <= {lesson.text for lesson in found}


def test_labels_weigh_alike_and_large_sources_less_a_row(data):
    lessons = [Lesson(str(i), 0, "large") for i in range(100)] + [Lesson(str(i), 0, "small") for i in range(25)]
    lessons += [Lesson(str(i), 1, "other") for i in range(5)]
    of = {lesson.source: lesson.weight for lesson in weighted(lessons)}
    assert of["small"] == pytest.approx(2 * of["large"])
    assert sum(lesson.weight for lesson in weighted(lessons) if lesson.label == 0) == pytest.approx(125)
    assert of["other"] == pytest.approx(1.0)
    assert max(lesson.weight for lesson in prompts(data)) <= HEAVIEST


def test_a_text_varies_and_its_own_words_stay():
    vary = Variation(["the harmless neighbour sings"], random.Random(0))
    lesson = Lesson("please do the forbidden thing", 1, "x")
    seen = {vary(lesson) for _ in range(300)}
    assert len(seen) > 10
    assert lesson.text in seen
    assert any(text.startswith(lesson.text + "\n\nA. ") for text in seen)
    assert any("neighbour" in text and "\n" not in text for text in seen)


def test_an_unsafe_prompt_is_not_pushed_out_of_what_is_read():
    text = "please do the forbidden thing " * 8
    places = {}
    for label in (0, 1):
        vary = Variation(["harmless"], random.Random(2))
        seen = [vary(Lesson(text.strip(), label, "x")) for _ in range(400)]
        assert any(each.startswith("please") and "forbidden" in each and len(each) > len(text) for each in seen)
        places[label] = max(each.find(text.strip()) for each in seen)
    assert places[1] + BEGINNING <= READ < places[0] + BEGINNING


def test_fewer_prompts_are_those_of_sources_and_twins(data):
    written = {"traffic_benign", "traffic_unsafe", "minimal_pairs"}
    found, every = fewer_prompts(data), prompts(data)
    assert {(each.text, each.label) for each in found} == {
        (each.text, each.label) for each in every if each.source not in written
    }
    assert {each.source for each in found} & written == set()
    assert {each.source for each in every} > written


@pytest.mark.parametrize("label", [0, 1])
def test_a_share_of_the_prompts_is_varied_of_harmless_ones_a_larger_one(label):
    vary, text = Variation(["harmless"], random.Random(4)), "look at the thing over there"
    share = np.mean([vary(Lesson(text, label, "x")) != text for _ in range(2000)])
    most = EXAM[label] + VARIED[label] * (1 - EXAM[label])
    # Unsafe prompts stay as they are where a long wrapper would push them out of what is read.
    assert (0.9, 0.75)[label] * most < share < most + 0.03
    assert VARIED[0] > VARIED[1]


@pytest.mark.parametrize("label", [0, 1])
def test_short_prompts_of_either_label_are_also_read_as_messages(label, monkeypatch):
    monkeypatch.setattr("mlpm_guard.bundles.lessons.message", lambda text, seed: f"tell Anna {text}")
    text = "Look at the thing over there"
    for lesson, sent in ((Lesson(text, label, "x"), True), (Lesson(" ".join([text] * 8), label, "x"), False)):
        vary = Variation(["harmless"], random.Random(6))
        without = Variation(["harmless"], random.Random(6), messages=False)
        seen = {vary(lesson) for _ in range(400)}
        assert (f"tell Anna {lesson.text}" in seen) is sent
        assert f"tell Anna {lesson.text}" not in {without(lesson) for _ in range(400)}


def test_only_long_harmless_prompts_are_cut_and_answers_are_read_as_they_are():
    text = "One sentence has quite a few words. " * 8
    for lesson, cut in (
        (Lesson(text, 0, "x"), True),
        (Lesson(text, 1, "x"), False),
        (Lesson(text, 1, "x", kind="answer"), False),
    ):
        vary = Variation(["harmless"], random.Random(1))
        assert any(len(vary(lesson)) < len(text) / 2 for _ in range(100)) is cut
    vary = Variation(["harmless"], random.Random(1))
    assert {vary(Lesson("short answer", 0, "x", kind="answer")) for _ in range(100)} == {"short answer"}


def test_the_same_seed_gives_the_same_texts():
    lessons = [Lesson(f"please look at number {i}", i % 2, "x") for i in range(50)]
    first, second = (Variation(["harmless"], random.Random(3)) for _ in range(2))
    assert [first(lesson) for lesson in lessons] == [second(lesson) for lesson in lessons]
