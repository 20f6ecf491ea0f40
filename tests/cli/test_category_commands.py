import json

import pytest

from mlpm_guard import bundle as bundles
from mlpm_guard.category_policy import CategoryPolicy
from mlpm_guard.cli import opening
from mlpm_guard.guard import Guard
from tests.cli_support import SECRET, error_line, jsonl, run
from tests.topics import TopicEncoder, categorised, on

LEGAL = "my next lawsuit"


def texts(path, values, **columns):
    return jsonl(path, [{"text": value, **columns} for value in values])


def loaded(path, threshold=None):
    return Guard.from_pretrained(path, encoder=TopicEncoder(), threshold=threshold)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A saved guard that knows the categories drugs and fraud."""
    monkeypatch.setattr(opening, "load_guard", loaded)
    return categorised().save_pretrained(tmp_path / "bundle")


@pytest.fixture
def examples(tmp_path):
    return texts(tmp_path / "legal.jsonl", [f"{SECRET} {text}" for text in on("legal", 10, unsafe=False)])


def test_a_category_from_a_file_makes_a_new_version_that_knows_what_it_was_made_from(tmp_path, bundle, examples):
    before = (bundle / "bundle.json").read_bytes()
    result = run("add-category", bundle, "legal", examples, "--action", "review", "--threshold", 0.4, "--out", tmp_path / "new")
    assert result.exit_code == 0
    assert (bundle / "bundle.json").read_bytes() == before
    new = loaded(tmp_path / "new")
    assert new.list_categories() == ["drugs", "fraud", "legal"]
    assert dict(new.category_policy) == {"legal": CategoryPolicy("review", 0.4)}
    assert new.check(LEGAL).flagged_by == ("legal",)
    (ancestor,) = bundles.load(tmp_path / "new").manifest.lineage
    assert ancestor.bundle_id == loaded(bundle).bundle_id
    assert [(each.kind, each.name, each.prompts) for each in ancestor.changes] == [("add_category", "legal", 10)]
    for said in ("legal: flags from 0.4000, action: review", "of its 10 examples", "categories: drugs, fraud, legal"):
        assert said in result.stdout
    assert f"saved {new.bundle_id}" in result.stderr


def test_labels_of_examples_are_not_read(tmp_path, bundle):
    source = texts(tmp_path / "a.jsonl", on("legal", 10, unsafe=False), label="whatever")
    assert run("add-category", bundle, "legal", source, "--out", tmp_path / "new").exit_code == 0


def test_negatives_and_what_changes_are_told(tmp_path, bundle, examples):
    both = texts(tmp_path / "garden.jsonl", [f"{text} and tulips" for text in on("legal", 30, unsafe=False, start=100)])
    data = texts(tmp_path / "data.jsonl", [LEGAL, "a talk about nothing"])
    options = ("--negatives", both, "--data", data)
    shown = json.loads(run("add-category", bundle, "legal", examples, *options, "--out", tmp_path / "a", "--json").stdout)
    assert (shown["category"], shown["action"], shown["threshold"]) == ("legal", "block", 0.5)
    assert (shown["examples"], shown["negatives"]) == (10, 30)
    flags = loaded(tmp_path / "a").check_batch([json.loads(line)["text"] for line in both.read_text().splitlines()])
    assert shown["negatives_flagged"] == sum(bool(verdict.flagged_by) for verdict in flags) < 30
    assert shown["examples_flagged"] > 5
    assert [(flip["index"], flip["direction"]) for flip in shown["diff"]["flips"]] == [(0, "newly_flagged")]
    printed = run("add-category", bundle, "legal", examples, *options, "--out", tmp_path / "b").stdout
    assert f"{shown['negatives_flagged']} of 30 negatives" in printed
    assert "1 of 2 prompts are judged differently: 1 newly flagged" in printed


def test_a_category_is_removed_and_the_rest_stays(tmp_path, bundle, examples):
    run("add-category", bundle, "legal", examples, "--in-place")
    result = run("remove-category", bundle, "legal", "--out", tmp_path / "new")
    assert result.exit_code == 0
    assert "legal: removed" in result.stdout
    assert loaded(tmp_path / "new").list_categories() == ["drugs", "fraud"]
    assert [each.kind for each in bundles.load(tmp_path / "new").manifest.lineage[-1].changes] == ["remove_category"]
    shown = json.loads(run("remove-category", tmp_path / "new", "drugs", "--in-place", "--json").stdout)
    assert (shown["removed"], shown["categories"]) == (True, ["fraud"])
    assert loaded(tmp_path / "new").check(LEGAL).categories.keys() == {"fraud"}


def test_a_category_is_removed_from_a_guard_without_statistics_too(tmp_path, bundle, examples):
    small = loaded(bundle).save_pretrained(tmp_path / "small", statistics=False)
    assert run("remove-category", small, "drugs", "--in-place").exit_code == 0
    assert loaded(small).list_categories() == ["fraud"]
    assert "without statistics" in error_line(run("add-category", small, "legal", examples, "--in-place"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("drugs",), "there is a category 'drugs' already"),
        (("Drugs",), "there is a category 'drugs' already"),
        (("?!",), "a category's name is"),
        (("legal", "--threshold", 2), "threshold=2.0: a probability"),
        (("legal", "--action", "ignore"), "--action"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_saves_nothing(tmp_path, bundle, examples, arguments, said):
    line = error_line(run("add-category", bundle, arguments[0], examples, *arguments[1:], "--out", tmp_path / "new"))
    assert said in line
    assert not (tmp_path / "new").exists()


def test_bad_examples_are_named_by_file_and_line(tmp_path, bundle, examples, monkeypatch):
    legal = on("legal", 6, unsafe=False)

    def line(*options, rows=legal):
        return error_line(
            run("add-category", bundle, "legal", texts(tmp_path / "a.jsonl", rows), *options, "--out", tmp_path / "new")
        )

    assert "a.jsonl, line 7: the turn to judge holds no text" in line(rows=[*legal, " "])
    assert "a.jsonl, line 7: 1000001 characters; this guard judges up to 1000000" in line(rows=[*legal, "x" * 1_000_001])
    assert "2 different examples; a category needs at least 5" in line(rows=[*legal[:2], *legal[:2]])
    negatives = texts(tmp_path / "n.jsonl", ["calm", f" {legal[3].upper()}"])
    said = line("--negatives", negatives)
    assert "n.jsonl, line 2: the same text as the example in" in said
    assert "a.jsonl, line 4; remove one" in said
    both = jsonl(tmp_path / "d.jsonl", [{"text": SECRET, "label": 0}, {"text": SECRET, "label": 1}])
    assert "d.jsonl, line 2: the same text as" in line("--data", both)
    assert not (tmp_path / "new").exists()


def test_a_category_that_is_not_there_is_not_removed(tmp_path, bundle):
    assert "there is no category 'legal'; there are: drugs, fraud" in error_line(
        run("remove-category", bundle, "legal", "--out", tmp_path / "new")
    )
    assert "either --out FOLDER, or --in-place" in error_line(run("remove-category", bundle, "drugs"))


def test_a_change_of_categories_ends_a_calibration_and_says_so(tmp_path, bundle, examples):
    run("calibrate", bundle, texts(tmp_path / "calm.jsonl", [f"calm {i}" for i in range(320)]), "--in-place")
    result = run("add-category", bundle, "legal", examples, "--out", tmp_path / "new")
    assert "no longer calibrated" in result.stderr
    assert loaded(tmp_path / "new").calibration is None


def test_info_lists_categories_and_what_is_done_about_them(tmp_path, bundle, examples):
    run("add-category", bundle, "legal", examples, "--threshold", 0.4, "--in-place")
    guard = loaded(bundle)
    guard.category_policy = {**guard.category_policy, "drugs": "review"}
    guard.save_pretrained(bundle)
    shown = " ".join(run("info", bundle).stdout.split())
    for said in (
        "categories drugs, fraud ",
        "categories legal, added from examples",
        "policy drugs: review ",
        "policy legal: block, flags by itself from 0.4000",
    ):
        assert said in shown


def test_a_check_says_what_categories_have_to_do_with_it(tmp_path, bundle, examples):
    run("add-category", bundle, "legal", examples, "--action", "review", "--in-place")
    shown = run("check", LEGAL, "--bundle", bundle).stdout
    verdict = loaded(bundle).check(LEGAL)
    assert "flagged by the threshold of: legal" in shown
    assert f"category: legal ({verdict.categories['legal']:.4f})" in shown
    assert "not blocked, because the guard's policy" in shown
    both = run("check", "unsafe pills and a swindle", "--bundle", bundle).stdout
    assert "also likely: " in both
    assert "not blocked" not in both
    assert "category" not in run("check", "a talk about nothing", "--bundle", bundle).stdout
