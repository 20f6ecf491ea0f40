import pytest

from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.evaluation.suites import SETS, find_set, locate
from tests.suite_files import write_csv, write_jsonl, write_parquet

SECRET = "xyzzy"


def read(key, path):
    return [(each.conversation, each.label, each.category, each.id) for each in find_set(key).records(path)]


def test_openai_mod_is_unsafe_where_any_category_is_and_unknown_without_any(tmp_path):
    path = write_jsonl(
        tmp_path / "samples-1680.jsonl.gz",
        [
            {"prompt": "a", "S": 0, "H": 1, "V": 0, "HR": 0, "SH": 0, "S3": 0, "H2": 0, "V2": 0},
            {"prompt": "b", "S": 0, "V": 0},
            {"prompt": "c", "SH": 1},
            {"prompt": "d"},
            {"prompt": "e", "S": None, "V2": 1.0},
        ],
    )
    assert read("openai_mod", path) == [
        ("a", 1, "hate", None),
        ("b", 0, None, None),
        ("c", 1, "self-harm", None),
        ("e", 1, "violence/graphic", None),
    ]


def test_xstest_is_read_with_labels_and_without(tmp_path):
    first = write_csv(
        tmp_path / "xstest_prompts.csv",
        ["id", "prompt", "type", "label", "focus", "note"],
        [
            [1, "Kill a process?", "homonyms", "safe", "kill", ""],
            [26, "Kill a person?", "contrast_homonyms", "unsafe", "kill", ""],
        ],
    )
    second = write_csv(
        tmp_path / "xstest_v2_prompts.csv",
        ["", "id_v2", "type", "prompt", "focus", "note"],
        [
            ["", "v2-1", "homonyms", "Kill a process?", "kill", ""],
            ["", "v2-26", "contrast_homonyms", "Kill a person?", "kill", ""],
        ],
    )
    expected = [("Kill a process?", 0, "homonyms"), ("Kill a person?", 1, "contrast_homonyms")]
    assert read("xstest", first) == [(*row, identity) for row, identity in zip(expected, ["1", "26"], strict=True)]
    assert read("xstest", second) == [(*row, identity) for row, identity in zip(expected, ["v2-1", "v2-26"], strict=True)]


def test_harmbench_leaves_out_behaviours_that_need_a_context(tmp_path):
    path = write_csv(
        tmp_path / "harmbench_behaviors_text_test.csv",
        ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"],
        [
            ["a", "standard", "illegal", "", "", "id_a"],
            ["b", "contextual", "illegal", "context", "some", "id_b"],
            ["c", "copyright", "copyright", "lyrics", "", "id_c"],
        ],
    )
    assert read("harmbench", path) == [("a", 1, "illegal", "id_a"), ("c", 1, "copyright", "id_c")]


def test_toxicchat_keeps_what_people_annotated(tmp_path):
    path = write_csv(
        tmp_path / "toxic-chat_annotation_test.csv",
        ["conv_id", "user_input", "model_output", "human_annotation", "toxicity", "jailbreaking", "openai_moderation"],
        [
            ["1", "a", "x", "True", "1", "1", "[]"],
            ["2", "b", "x", "False", "1", "0", "[]"],
            ["3", "c", "x", "True", "0", "0", "[]"],
        ],
    )
    assert read("toxicchat", path) == [("a", 1, "jailbreaking", "1"), ("c", 0, None, "3")]


def test_wildguardtest_leaves_out_prompts_without_a_label(tmp_path):
    rows = [
        {"prompt": "a", "adversarial": True, "response": "x", "prompt_harm_label": "harmful", "subcategory": "fraud"},
        {"prompt": "b", "adversarial": False, "response": None, "prompt_harm_label": "unharmful", "subcategory": "benign"},
        {"prompt": "c", "adversarial": False, "response": "x", "prompt_harm_label": None, "subcategory": "benign"},
    ]
    expected = [("a", 1, "fraud", None), ("b", 0, None, None)]
    assert read("wildguardtest", write_jsonl(tmp_path / "wildguardtest.jsonl", rows)) == expected
    assert read("wildguardtest", write_parquet(tmp_path / "wildguard_test.parquet", rows)) == expected


def test_aegis_goes_by_the_majority_of_the_first_three_annotators(tmp_path):
    columns = ["id", "text", "text_type", "num_annotations", "labels_0", "labels_1", "labels_2", "labels_3", "labels_4"]
    values = [
        ["1", " a ", "user_message", 3, "Violence", "Safe", "Violence", "None", "None"],
        ["2", "b", "user_message", 3, "Safe", "Safe", "Violence", "None", "None"],
        ["3", "c", "llm_response", 3, "Violence", "Violence", "Violence", "None", "None"],
        ["4", "d", "user_message", 3, "Needs Caution", "Safe", "Hate", "None", "None"],
    ]
    path = write_csv(tmp_path / "aegis.csv", columns, values)
    assert read("aegis", path) == [("a", 1, "Violence", "1"), ("b", 0, None, "2"), ("d", 1, "Needs Caution", "4")]
    name = "Content Moderation Extracted Annotations 02.08.24_test_release_0418_v1.parquet"
    assert read("aegis", write_parquet(tmp_path / name, [dict(zip(columns, row, strict=True)) for row in values])) == read(
        "aegis", path
    )


@pytest.mark.parametrize("column", ["prompts_final", "prompt"])
def test_simple_safety_tests_are_all_unsafe(tmp_path, column):
    path = write_csv(
        tmp_path / "SimpleSafetyTests - test cases.csv",
        ["id", "harm_area", "counter", "category", column],
        [["sst_001", "Scams and fraud", 1, "Instructions and actions", "a"]],
    )
    assert read("simple_safety_tests", path) == [("a", 1, "Scams and fraud", "sst_001")]


def test_beavertails_are_answers_with_their_prompts(tmp_path):
    path = write_jsonl(
        tmp_path / "30k" / "test.jsonl.gz",
        [
            {"prompt": "p", "response": "r", "category": {"animal_abuse": False, "drug_abuse,weapons": True}, "is_safe": False},
            {"prompt": "q", "response": "s", "category": {"animal_abuse": False}, "is_safe": True},
        ],
    )
    conversations = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in ("pr", "qs")]
    assert read("beavertails", path) == [(conversations[0], 1, "drug_abuse,weapons", None), (conversations[1], 0, None, None)]


def test_files_are_found_by_the_publisher_s_name_or_by_the_set_s_key(tmp_path):
    (tmp_path / "deep" / "30K").mkdir(parents=True)
    for name in (
        "deep/Harmbench_behaviors_text_test.CSV",
        "xstest.csv",
        "deep/30K/test.jsonl.gz",
        "test.jsonl.gz",
        "aegis.txt",
    ):
        (tmp_path / name).write_text("")
    assert locate(SETS, tmp_path) == {
        "harmbench": tmp_path / "deep/Harmbench_behaviors_text_test.CSV",
        "xstest": tmp_path / "xstest.csv",
        "beavertails": tmp_path / "deep/30K/test.jsonl.gz",
    }
    assert find_set("xstest").find(tmp_path) == tmp_path / "xstest.csv"
    assert find_set("aegis").find(tmp_path) is None
    with pytest.raises(DataError, match="no such folder"):
        locate(SETS, tmp_path / "none")


@pytest.mark.parametrize("key", [each.key for each in SETS])
def test_a_file_of_another_format_is_refused_and_the_right_columns_are_named(tmp_path, key):
    path = write_jsonl(tmp_path / f"{key}.jsonl", [{"question": SECRET, "answer": SECRET}])
    with pytest.raises(DataError) as caught:
        read(key, path)
    message = str(caught.value)
    assert SECRET not in message
    assert str(path) in message
    # Its categories may all be missing, so that such a file of this set looks like one without labels.
    assert "holds no row" in message if key == "openai_mod" else "line 1: no column" in message
    assert find_set(key).title in message


@pytest.mark.parametrize(
    ("key", "row", "said"),
    [
        ("xstest", {"prompt": "a", "type": "x", "label": SECRET}, "line 2: 'label' holds neither 'unsafe' nor 'safe'"),
        ("xstest", {"prompt": 5, "type": "x", "label": "safe"}, "line 2: 'prompt' holds no text"),
        ("xstest", {"prompt": "a", "label": "safe"}, None),
        ("xstest", {"type": "a", "label": "safe"}, "line 2: no column 'prompt'"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_never_repeated(tmp_path, key, row, said):
    path = write_jsonl(tmp_path / "xstest.jsonl", [{"prompt": "a", "type": "x", "label": "safe"}, row])
    if said is None:
        assert len(read(key, path)) == 2
        return
    with pytest.raises(DataError, match=said) as caught:
        read(key, path)
    assert SECRET not in str(caught.value)


def test_flags_that_are_none_and_files_without_a_row_that_counts_are_refused(tmp_path):
    columns = ["conv_id", "user_input", "human_annotation", "toxicity", "jailbreaking"]
    with pytest.raises(DataError, match="line 2: 'toxicity' holds neither 0 nor 1"):
        read("toxicchat", write_csv(tmp_path / "a.csv", columns, [["1", "a", "True", SECRET, "0"]]))
    with pytest.raises(DataError, match="no row of ToxicChat that counts: human_annotation is true"):
        read("toxicchat", write_csv(tmp_path / "b.csv", columns, [["1", "a", "False", "1", "0"]]))


def test_an_unknown_set_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigurationError, match="aegis, harmbench, openai_mod"):
        find_set("none")


def test_published_figures_are_there_for_the_sets_of_prompts():
    for each in SETS:
        assert len(each.published) == (4 if each.target == "prompt" else 0)
        assert all(0 < figure <= 100 for figure in each.published.values())
