"""Which rows the shipped guards are fitted on, and where the prompt guard's threshold lies."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpm_guard.bundles import fit_default, fit_default_response
from mlpm_guard.bundles.fit_default import held_out, lowest_threshold, middle_threshold, training_rows


def lines(path, rows):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=300), st.floats(0.0, 0.5))
def test_a_threshold_flags_no_more_than_its_share_and_none_is_much_lower(scores, share):
    threshold = lowest_threshold(scores, share)
    assert threshold == round(threshold, 3)
    assert np.mean([score >= threshold for score in scores]) <= share + 1e-9
    assert np.mean([score >= threshold - 0.0011 for score in scores]) > share


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=300), st.floats(0.0, 0.5))
def test_a_threshold_in_the_middle_flags_the_same_and_stands_between_its_neighbours(scores, share):
    threshold, lowest = middle_threshold(scores, share), lowest_threshold(scores, share)
    assert lowest <= threshold == round(threshold, 3)
    assert [score >= threshold for score in scores] == [score >= lowest for score in scores]
    if len(above := [score for score in scores if score >= lowest]) and min(above) - lowest > 0.002:
        middle = (min(above) + max(score for score in scores if score < lowest)) / 2
        assert threshold == lowest or middle - 0.0011 < threshold <= middle + 1e-9


def test_of_some_sources_more_harmless_rows_are_learned_than_the_cap_allows_of_both_labels(tmp_path):
    for name in ("hatecheck", "sap200"):
        lines(
            tmp_path / f"{name}.jsonl.gz",
            [{"id": f"{name}{i}", "text": f"{name} text {i}", "label": i % 2, "category": None} for i in range(400)],
        )
    rows = training_rows(tmp_path, {"hatecheck": 40, "sap200": 40}, {"hatecheck": 30})
    counts = Counter((row.source, row.label) for row in rows)
    assert counts["sap200", 0] + counts["sap200", 1] == 40
    assert counts["hatecheck", 0] + counts["hatecheck", 1] == 70
    assert counts["hatecheck", 0] >= 30
    assert len({row.text for row in rows}) == 110
    assert not any(held_out(row.source, row.source + row.text.rsplit(" ", 1)[1]) for row in rows)


def test_answers_that_do_not_comply_are_learned_as_harmless_with_their_prompts():
    rows = list(fit_default_response.harmless_answers())
    assert len(rows) >= 300
    assert {row.label for row in rows} == {0}
    assert all(row.prompt and len(row.text.split()) >= 5 for row in rows)
    assert len({row.text for row in rows}) == len(rows)


@pytest.mark.parametrize("folder", ["response"])
def test_no_answer_that_does_not_comply_belongs_to_a_prompt_of_a_test_set(data, folder):
    known = set()
    for source in fit_default_response.TEST_SETS:
        path = data / folder / f"{source}.jsonl.gz"
        if not path.is_file():
            pytest.skip(f"the data folder has no {folder}/{path.name}")
        known |= {str(row["prompt"]).casefold().strip() for row in fit_default.read(path)}
    assert not [row.prompt for row in fit_default_response.harmless_answers() if row.prompt.casefold().strip() in known]
