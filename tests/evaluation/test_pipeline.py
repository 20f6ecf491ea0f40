import json

import pytest

from mlpm_guard.cli import opening
from mlpm_guard.datafiles import DataFile, Pair
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.evaluation.pipeline import CHAINS, PipelineEvaluation, evaluate_pipeline
from mlpm_guard.testing import MockGuard
from tests.cli_support import SECRET, error_line, jsonl, run

# What the prompt says, what the answer says, and whether the answer is harmful.
CASES = [
    ("unsafe", "unsafe", 1),
    ("unsafe", "kind", 1),
    ("kind", "unsafe", 1),
    ("kind", "kind", 1),
    ("unsafe", "kind", 0),
    ("kind", "unsafe", 0),
    ("kind", "kind", 0),
]


def says_unsafe(text):
    return "unsafe" in text


def gate(**options):
    return MockGuard(says_unsafe, **options)


def moderator(**options):
    return MockGuard(says_unsafe, target="response", **options)


def pair(line, prompt, response, label, source="set"):
    return Pair(line=line, prompt=prompt, response=response, label=label, source=source)


def pairs(cases=CASES, source="set"):
    return [pair(i + 1, *case, source) for i, case in enumerate(cases)]


def counts(flow):
    return {chain: (flow.chains[chain].harmful_reaching, flow.chains[chain].harmless_lost) for chain in CHAINS}


def test_each_chain_stops_what_one_of_its_members_blocks():
    flow = evaluate_pipeline(gate(), moderator(), pairs()).overall
    assert (flow.n, flow.harmful, flow.harmless, flow.errors) == (7, 4, 3, 0)
    assert counts(flow) == {"neither": (4, 0), "input_gate": (2, 1), "output_moderation": (2, 1), "both": (1, 2)}
    assert flow.chains["both"].harmful_share == 0.25
    assert flow.chains["both"].harmless_share == pytest.approx(2 / 3)


def test_a_guard_that_flags_and_does_not_block_stops_nothing():
    flow = evaluate_pipeline(gate(mode="monitor"), moderator(), pairs()).overall
    assert counts(flow)["input_gate"] == counts(flow)["neither"]
    assert counts(flow)["both"] == counts(flow)["output_moderation"]


def test_the_moderator_sees_the_prompt_and_judges_the_answer():
    seen = []

    def answer_only(text):
        seen.append(text)
        return False

    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the question"}]
    evaluate_pipeline(gate(), MockGuard(answer_only, target="response"), [pair(1, chat, "the answer", 0)])
    assert seen == ["the answer"]


def test_every_source_is_counted_apart_and_all_together():
    rows = [*pairs(source="b"), *pairs(CASES[:2], source="a")]
    evaluation = evaluate_pipeline(gate(), moderator(), rows)
    assert list(evaluation.sources) == ["a", "b"]
    assert counts(evaluation.sources["a"])["both"] == (0, 0)
    assert evaluation.sources["a"].chains["neither"].harmless_share is None
    assert evaluation.overall.n == 9
    assert counts(evaluation.overall)["input_gate"] == (2, 1)


@pytest.mark.parametrize(("on_error", "lost"), [("block", 1), ("allow", 0)])
def test_what_cannot_be_judged_is_counted_and_follows_on_error(on_error, lost):
    flow = evaluate_pipeline(
        gate(), moderator(on_error=on_error), [pair(1, "kind", " ", 0), pair(2, "kind", "kind", 0)]
    ).overall
    assert flow.errors == 1
    assert flow.chains["output_moderation"].harmless_lost == lost


def test_rows_are_judged_in_batches_and_never_all_read_at_once():
    guard, seen = gate(), []

    def stream():
        for row in pairs(CASES + CASES[:3]):
            assert row.line - 1 - sum(guard.calls) < 4
            yield row

    evaluation = evaluate_pipeline(guard, moderator(), stream(), batch_size=4, progress=seen.append)
    assert evaluation.overall.n == 10
    assert guard.calls == seen == [4, 4, 2]


def test_an_evaluation_survives_json_and_holds_no_text():
    evaluation = evaluate_pipeline(gate(), moderator(), [pair(1, "xyzzy one", "xyzzy two", 1)])
    dumped = evaluation.model_dump_json()
    assert PipelineEvaluation.model_validate_json(dumped) == evaluation
    assert "xyzzy" not in dumped + repr(pair(1, "xyzzy", "xyzzy", 1))


def test_guards_of_the_wrong_kind_and_rows_without_labels_are_refused():
    with pytest.raises(ConfigurationError, match="the moderator judges the prompt"):
        evaluate_pipeline(gate(), gate(), pairs())
    with pytest.raises(ConfigurationError, match="the guard judges the response"):
        evaluate_pipeline(moderator(), moderator(), pairs())
    with pytest.raises(DataError, match="line 7 of 'set' has no label"):
        evaluate_pipeline(gate(), moderator(), [pair(7, "a", "b", None)])
    with pytest.raises(DataError, match="no rows"):
        evaluate_pipeline(gate(), moderator(), [])
    with pytest.raises(ConfigurationError, match="batch_size"):
        evaluate_pipeline(gate(), moderator(), pairs(), batch_size=0)


# -- the files ----------------------------------------------------------------------------------------------------------------


def rows(answer="response"):
    return [
        {"prompt": f"{SECRET} {prompt}", answer: f"{SECRET} {response}", "label": label} for prompt, response, label in CASES
    ]


@pytest.mark.parametrize("answer", ["response", "text"])
def test_pairs_come_from_the_columns_prompt_and_response_else_text(tmp_path, answer):
    found = list(DataFile(jsonl(tmp_path / "a.jsonl", rows(answer)), require_label=True).pairs())
    assert [(each.line, each.label, each.source) for each in found] == [(i + 1, case[2], "a") for i, case in enumerate(CASES)]
    assert (found[1].prompt, found[1].response) == (f"{SECRET} unsafe", f"{SECRET} kind")


def test_pairs_come_from_the_columns_that_are_named(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "q"}], "text": "no", "a": "yes", "label": 0}])
    (found,) = DataFile(file).pairs(prompt_column="messages", response_column="a")
    assert (found.prompt, found.response) == ([{"role": "user", "content": "q"}], "yes")
    with pytest.raises(ConfigurationError, match="different columns"):
        list(DataFile(file).pairs(prompt_column="text"))


def test_pairs_are_read_from_csv_and_parquet_alike(tmp_path):
    csv = tmp_path / "a.csv"
    csv.write_text("prompt,answer,label\nq,a,1\n")
    (from_csv,) = DataFile(csv).pairs(response_column="answer")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"prompt": ["q"], "answer": ["a"], "label": [1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (from_parquet,) = DataFile(tmp_path / "a.parquet").pairs(response_column="answer")
    assert (from_csv.prompt, from_csv.response, from_csv.label) == ("q", "a", 1)
    assert (from_parquet.prompt, from_parquet.response, from_parquet.label) == ("q", "a", 1)


# -- the command --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def guards(monkeypatch):
    """What the command then loads: a gate by the name "default", a moderator by any other."""

    def load(bundle, threshold):
        made = gate() if bundle == "default" else moderator()
        made.threshold = 0.5 if threshold is None else threshold
        return made

    monkeypatch.setattr(opening, "load_guard", load)


def test_the_command_prints_every_chain_by_source_and_overall(tmp_path, guards):
    one, two = jsonl(tmp_path / "one.jsonl", rows()), jsonl(tmp_path / "two.jsonl", rows("text"))
    measured = PipelineEvaluation.model_validate_json(run("evaluate", "default", one, two, "--pipeline", "--json").stdout)
    assert list(measured.sources) == ["one", "two"]
    assert counts(measured.overall)["both"] == (2, 4)
    table = run("evaluate", "default", one, two, "--pipeline").stdout
    for said in ("one", "two", "all", "neither", "input gate", "output moderation", "both", "2 of 8", "0.250", "4 of 6"):
        assert said in table


def test_the_command_obeys_both_thresholds_and_names_its_moderator(tmp_path, guards):
    file = jsonl(tmp_path / "a.jsonl", rows())
    lax = ("--threshold", "1", "--moderator-threshold", "1", "--moderator", "another")
    measured = json.loads(run("evaluate", "default", file, "--pipeline", "--json", *lax).stdout)
    assert measured["overall"]["chains"]["both"] == measured["overall"]["chains"]["neither"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": SECRET, "label": 1}, "line 8: no column 'response'"),
        ({"response": SECRET, "label": 1}, "line 8: no column 'prompt'"),
        ({"prompt": SECRET, "response": SECRET}, "line 8: no column 'label'"),
        ({"prompt": SECRET, "response": SECRET, "label": SECRET}, "line 8: bad value in 'label'"),
        ({"prompt": SECRET, "response": [SECRET], "label": 1}, "line 8: 'response' holds a list"),
        ({"prompt": None, "response": SECRET, "label": 1}, "line 8: 'prompt' is null"),
        ({"prompt": SECRET, "response": None, "label": 1}, "line 8: 'response' is null"),
    ],
)
def test_a_bad_row_ends_the_command_and_is_named_by_its_line(tmp_path, guards, row, said):
    file = jsonl(tmp_path / "a.jsonl", [*rows(), row])
    assert said in error_line(run("evaluate", "default", file, "--pipeline"))


def test_options_that_do_not_go_together_are_refused(tmp_path, guards):
    file = jsonl(tmp_path / "a.jsonl", rows())
    assert "--prompt-column and --response-column" in error_line(
        run("evaluate", "default", file, "--pipeline", "--text-column", "text")
    )
    for option in ("--moderator", "--prompt-column", "--response-column"):
        assert "need --pipeline" in error_line(run("evaluate", "default", file, option, "x"))
    assert "judges the response" in error_line(run("evaluate", "another", file, "--pipeline"))
