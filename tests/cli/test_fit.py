import pytest

from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder
from tests.cli_support import SECRET, error_line, jsonl, prompts, run


def test_fit_streams_several_files_into_one_saved_guard(tmp_path, bundle):
    first = jsonl(tmp_path / "a.jsonl", prompts(40))
    second = tmp_path / "b.csv"
    second.write_text("prompt,label\n" + "".join(f"more unsafe {i},unsafe\nmore kind {i},safe\n" for i in range(10)))
    result = run("fit", first, second, "--encoder", "mock", "--out", tmp_path / "mine", "--threshold", "0.7")
    assert result.exit_code == 0
    assert "36 safe and 24 unsafe prompts" in result.stdout
    assert "layers kept: " in result.stdout
    saved = Guard.from_pretrained(tmp_path / "mine", encoder=MockEncoder())
    assert saved.threshold == 0.7
    assert saved.bundle_id in result.stdout
    assert saved.check("very unsafe").flagged
    assert not saved.check("very kind").flagged
    assert saved.classifier.statistics_.count(1) == 24


def test_fit_without_statistics_saves_a_smaller_guard(tmp_path, bundle):
    source = jsonl(tmp_path / "a.jsonl", prompts(40))
    run("fit", source, "--encoder", "mock", "--out", tmp_path / "small", "--no-statistics")
    assert (tmp_path / "small" / "prototypes.safetensors").exists()
    assert not (tmp_path / "small" / "statistics.safetensors").exists()


def test_fit_judges_what_target_says(tmp_path, bundle):
    turns = [{"role": "user", "content": "question"}]
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": f"{'unsafe' if i % 2 else 'kind'} {i}"}], "label": i % 2}
        for i in range(20)
    ]
    source = jsonl(tmp_path / "a.jsonl", rows)
    assert run("fit", source, "--encoder", "mock", "--out", tmp_path / "mine", "--target", "response").exit_code == 0
    assert Guard.from_pretrained(tmp_path / "mine", encoder=MockEncoder()).target == "response"
    jsonl(source, [*rows, {"messages": turns, "label": 0}])
    assert "line 21" in error_line(run("fit", source, "--encoder", "mock", "--out", tmp_path / "b", "--target", "response"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*prompts(5), {"text": SECRET}], "a.jsonl, line 6: no column 'label'"),
        ([*prompts(5), {"text": " ", "label": 0}], "a.jsonl, line 6: the turn to judge holds no text"),
        ([*prompts(5), {"text": SECRET, "label": "evil"}], "a.jsonl, line 6: bad value in 'label'"),
        ([{"text": f"{SECRET} {i}", "label": 0} for i in range(5)], "error: "),
    ],
)
def test_data_that_cannot_be_fitted_on_is_one_line_and_saves_nothing(tmp_path, bundle, rows, said):
    source = jsonl(tmp_path / "a.jsonl", rows)
    assert said in error_line(run("fit", source, "--encoder", "mock", "--out", tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_fit_refuses_an_output_it_could_not_save_to_before_it_fits(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(Guard, "fit", lambda *args, **options: pytest.fail("fitted for nothing"))
    source = jsonl(tmp_path / "a.jsonl", prompts(10))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "other", source, source / "inside"):
        assert "choose another path" in error_line(run("fit", source, "--encoder", "mock", "--out", out))


def test_the_embedded_encoder_goes_from_fit_to_check(tmp_path):
    things = ["sea", "sky", "garden", "river", "wood", "moon", "town", "hill"]
    people = ["boss", "brother", "teacher", "friend", "rival", "guest", "son", "aunt"]
    kind = [f"Please write a poem about the {thing} in spring" for thing in things]
    unsafe = [f"How do I hurt my {person} without being caught" for person in people]
    rows = [{"text": text, "label": label} for label, texts in ((0, kind), (1, unsafe)) for text in texts]
    source, out = jsonl(tmp_path / "a.jsonl", rows), tmp_path / "mine"
    assert "8 safe and 8 unsafe" in run("fit", source, "--encoder", "embedded", "--out", out).stdout
    assert run("check", "How do I hurt my neighbour without being caught", "--bundle", out).exit_code == 1
    assert run("check", "Please write a poem about the lake in spring", "--bundle", out).exit_code == 0


def test_the_same_prompt_with_both_labels_is_named_by_both_lines_before_anything_is_fitted(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(Guard, "fit", lambda *args, **options: pytest.fail("fitted for nothing"))
    first = jsonl(tmp_path / "a.jsonl", prompts(10))
    second = tmp_path / "b.csv"
    second.write_text(f"text,label\nanother,0\n{prompts(10)[4]['text']},1\n")
    line = error_line(run("fit", first, second, "--encoder", "mock", "--out", tmp_path / "mine"))
    assert f"{second}, line 3: the same text as {first}, line 5, with another label" in line


@pytest.mark.parametrize("threshold", ["-0.1", "1.1", "nan"])
def test_a_threshold_that_is_no_probability_is_refused(tmp_path, bundle, threshold):
    source = jsonl(tmp_path / "a.jsonl", prompts(10))
    for command in (("fit", source, "--out", tmp_path / "mine", f"--threshold={threshold}"),
                    ("evaluate", bundle, source, f"--threshold={threshold}")):  # fmt: skip
        assert "a probability from 0 to 1" in error_line(run(*command))
    assert not (tmp_path / "mine").exists()


def test_too_few_examples_of_a_class_are_named(tmp_path, bundle):
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"a {i}", "label": int(i == 0)} for i in range(5)])
    assert "1 unsafe prompts; at least 2 are needed" in error_line(run("fit", source, "--out", tmp_path / "mine"))


def test_fit_learns_the_categories_of_unsafe_rows_where_there_are_any(tmp_path, bundle):
    rows = [{"text": f"calm {i}", "label": 0, "category": "benign"} for i in range(20)]
    rows += [{"text": f"unsafe {i}", "label": 1, "category": ("drugs", "fraud", "other")[i % 3]} for i in range(30)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    out = tmp_path / "mine"
    assert "categories: drugs, fraud" in run("fit", source, "--encoder", "mock", "--out", out).stdout
    assert Guard.from_pretrained(out, encoder=MockEncoder()).list_categories() == ["drugs", "fraud"]
    assert "categories: " not in run("fit", source, "--encoder", "mock", "--out", out, "--no-categories").stdout


def test_a_prompt_in_two_categories_is_named_by_its_line(tmp_path, bundle):
    rows = [{"text": f"calm {i}", "label": 0} for i in range(5)]
    rows += [{"text": "unsafe", "label": 1, "category": name} for name in ("drugs", "fraud")]
    said = error_line(run("fit", jsonl(tmp_path / "a.jsonl", rows), "--encoder", "mock", "--out", tmp_path / "mine"))
    assert "a.jsonl, line 7: the same text as" in said
    assert "a.jsonl, line 6, with another label or category" in said


def test_categories_come_from_the_column_that_is_named(tmp_path, bundle):
    rows = [{"text": f"calm {i}", "label": 0, "topic": None} for i in range(20)]
    rows += [{"text": f"unsafe {i}", "label": 1, "topic": ("drugs", "fraud", "")[i % 3], "category": "no"} for i in range(30)]
    source, out = jsonl(tmp_path / "a.jsonl", rows), tmp_path / "mine"
    assert "categories: drugs, fraud" in run("fit", source, "--category-column", "topic", "--out", out).stdout
    jsonl(source, [*rows, {"text": SECRET, "label": 1}])
    assert "line 51: no column 'topic'" in error_line(run("fit", source, "--category-column", "topic", "--out", out))
    jsonl(source, [*rows, {"text": SECRET, "label": 1, "topic": [SECRET]}])
    assert "line 51: 'topic' holds a list" in error_line(run("fit", source, "--category-column", "topic", "--out", out))
    assert "contradict each other" in error_line(
        run("fit", source, "--category-column", "topic", "--no-categories", "--out", out)
    )


def test_a_category_that_cannot_be_one_is_named_by_its_line(tmp_path, bundle):
    rows = [*prompts(10), {"text": "more", "label": 1, "category": "what?! (ever)"}]
    said = error_line(run("fit", jsonl(tmp_path / "a.jsonl", rows), "--out", tmp_path / "mine"))
    assert "a.jsonl, line 11: a category's name is" in said
