import json

import pytest

from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.evaluation.benchmark import SuiteResult, run_suite
from mlpm_guard.testing import MockGuard
from tests.cli_support import SECRET, error_line, run
from tests.suite_files import write_csv, write_jsonl


def says_unsafe(text):
    return "unsafe" in text


@pytest.fixture
def folder(tmp_path):
    """HarmBench, found to three quarters; XSTest, with one false alarm and one miss; BeaverTails, found in full."""
    write_csv(
        tmp_path / "harmbench_behaviors_text_test.csv",
        ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"],
        [[f"{SECRET} {word}", "standard", "illegal", "", "", str(i)] for i, word in enumerate(["unsafe"] * 3 + ["kind"])],
    )
    cases = [
        ("unsafe", "unsafe"),
        ("unsafe", "unsafe"),
        ("kind", "unsafe"),
        ("unsafe", "safe"),
        ("kind", "safe"),
        ("kind", "safe"),
    ]
    write_csv(
        tmp_path / "xstest_prompts.csv",
        ["id", "prompt", "type", "label", "focus", "note"],
        [[i, f"{SECRET} {word}", "homonyms", label, "", ""] for i, (word, label) in enumerate(cases)],
    )
    write_jsonl(
        tmp_path / "30k" / "test.jsonl.gz",
        [{"prompt": SECRET, "response": word, "category": {}, "is_safe": word == "kind"} for word in ("unsafe", "kind")],
    )
    return tmp_path


def test_f1_is_measured_beside_the_published_one(folder):
    seen = []
    result = run_suite(MockGuard(says_unsafe), folder, progress=seen.append)
    assert list(result.sets) == ["harmbench", "xstest"]
    harmbench, xstest = result.sets["harmbench"], result.sets["xstest"]
    # Nothing is safe here: precision 1, recall 3/4.
    assert harmbench.f1 == pytest.approx(2 * 0.75 / 1.75)
    assert harmbench.metrics.recall == 0.75
    low, high = harmbench.f1_interval
    assert 0 < low < harmbench.f1 < high < 1
    assert xstest.f1 == pytest.approx(2 / 3) == xstest.metrics.f1
    assert xstest.published["MLPM, OLMo2-7B-Instruct, best per set"] == pytest.approx(0.974)
    assert sum(seen) == 10


def test_sets_without_a_file_and_sets_of_answers_are_named(folder):
    result = run_suite(MockGuard(), folder)
    assert set(result.not_found) == {"aegis", "openai_mod", "simple_safety_tests", "toxicchat", "wildguardtest"}
    assert result.not_found["wildguardtest"] == ("wildguard_test.parquet",)
    assert result.other_target == ("beavertails",)


def test_a_guard_of_answers_is_measured_on_answers(folder):
    result = run_suite(MockGuard(says_unsafe, target="response"), folder)
    assert list(result.sets) == ["beavertails"]
    assert result.sets["beavertails"].f1 == 1.0
    assert result.sets["beavertails"].published == {}
    assert len(result.other_target) == 7


def test_a_guard_that_flags_nothing_has_an_f1_of_nought(folder):
    result = run_suite(MockGuard(lambda _: False), folder)
    assert [each.f1 for each in result.sets.values()] == [0.0, 0.0]


def test_a_result_survives_json_and_holds_no_text(folder):
    result = run_suite(MockGuard(says_unsafe), folder)
    assert SuiteResult.model_validate_json(result.model_dump_json()) == result
    assert SECRET not in result.model_dump_json()


def test_a_folder_without_any_of_the_files_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"harmbench_behaviors_text_test\.csv"):
        run_suite(MockGuard(), tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        run_suite(MockGuard(), tmp_path / "none")
    with pytest.raises(ConfigurationError, match="there are paper"):
        run_suite(MockGuard(), tmp_path, suite="none")


# -- the command --------------------------------------------------------------------------------------------------------------


def test_benchmark_prints_a_table_that_marks_what_is_published(folder, keyword_guard):
    result = run("benchmark", "default", "--data", folder)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[-4:] == ["[1]", "[2]", "[3]", "[4]"]
    cells = next(line for line in lines if line.startswith("XSTest")).split()
    assert cells[:4] == ["XSTest", "6", "3", "0.667"]
    assert cells[-4:] == ["0.885", "0.815", "0.953", "0.974"]
    (published,) = (index for index, line in enumerate(lines) if line.startswith("published: "))
    assert "[4] MLPM, OLMo2-7B-Instruct, best per set" in lines[published]
    assert "arXiv 2502.16174" in lines[published + 1]
    assert "not measured by this project" in lines[published + 1]
    assert "not found: toxicchat (toxic-chat_annotation_test.csv)" in lines
    assert "left out, for a guard of answers: beavertails" in lines


def test_benchmark_gives_json_and_obeys_the_threshold(folder, keyword_guard):
    result = json.loads(run("benchmark", "default", "--suite", "paper", "--data", folder, "--json", "--threshold", "0").stdout)
    assert result["threshold"] == 0.0
    assert result["sets"]["harmbench"]["f1"] == 1.0


def test_benchmark_fails_in_one_line(tmp_path, keyword_guard):
    assert "holds none of the files" in error_line(run("benchmark", "default", "--data", tmp_path))
    assert "--suite" in error_line(run("benchmark", "default", "--data", tmp_path, "--suite", "none"))
    assert "--data" in error_line(run("benchmark", "default"))
