import numpy as np
import pytest

from mlpm_guard.errors import DataError
from mlpm_guard.evaluation.robustness import CLEAN, PromptSet, cell, judged, measure, table
from mlpm_guard.evaluation.transformations import TRANSFORMATIONS, transformation
from mlpm_guard.testing import MockGuard

HARMFUL = PromptSet("harmful", [f"please do the forbidden thing number {i}" for i in range(20)], harmful=True)
HARMLESS = PromptSet("harmless", [f"please bake cake number {i}" for i in range(10)], harmful=False)
SEES_THE_WORD = MockGuard(lambda text: "forbidden" in text)


def flags(*values):
    return np.array(values, bool)


FIVE = PromptSet("five", ["a", "b", "c", "d", "e"], harmful=True)


def test_a_guard_that_reads_words_loses_what_hides_them_and_keeps_what_does_not():
    cells = table(list(measure(SEES_THE_WORD, [HARMFUL, HARMLESS])))
    assert cells[CLEAN]["harmful"].share == 1.0
    for name in ("role_play", "padded_before", "padded_after"):
        assert cells[name]["harmful"].ratio == 1.0
    for name in ("upper_case", "base64", "spaced"):
        assert (cells[name]["harmful"].share, cells[name]["harmful"].ratio) == (0.0, 0.0)
    assert all(row["harmless"].share == 0.0 for row in cells.values())


def test_there_is_a_cell_for_every_set_and_transformation_and_a_clean_one():
    cells = list(measure(SEES_THE_WORD, [HARMFUL, HARMLESS]))
    names = [CLEAN, *(each.name for each in TRANSFORMATIONS)]
    assert [(each.prompts, each.transformation) for each in cells] == [
        (prompts, name) for prompts in ("harmful", "harmless") for name in names
    ]
    assert [each.rows for each in cells] == [20] * len(names) + [10] * len(names)


def test_shares_ratio_and_difference_are_those_of_the_judgements():
    found = cell("leet", FIVE, flags(1, 1, 0, 0, 0), flags(1, 1, 1, 1, 0), 0)
    assert (found.flagged, found.share, found.ratio) == (2, 0.4, 0.5)
    assert found.difference == pytest.approx(-0.4)
    assert found.interval.low < 0.4 < found.interval.high
    assert found.ratio_interval is not None
    assert found.ratio_interval.low <= 0.5 <= found.ratio_interval.high
    assert found.difference_interval.low <= -0.4 <= found.difference_interval.high


def test_intervals_compare_row_by_row():
    rows = 200
    clean = np.arange(rows) % 2 == 0
    prompts = PromptSet("many", ["x"] * rows, harmful=True)
    same = cell("leet", prompts, clean, clean, 0)
    assert same.difference_interval == (0.0, 0.0)
    other = cell("leet", prompts, ~clean, clean, 0)
    assert other.difference == 0.0
    assert other.difference_interval.high - other.difference_interval.low > 0.1


def test_nothing_found_before_has_no_ratio():
    found = cell("leet", FIVE, flags(1, 0, 0, 0, 0), flags(0, 0, 0, 0, 0), 0)
    assert (found.ratio, found.ratio_interval) == (None, None)
    assert found.difference == pytest.approx(0.2)


def test_what_cannot_be_judged_counts_as_flagged_and_is_counted():
    def breaks_at_b(text):
        if text == "b":
            raise RuntimeError
        return False

    flagged, errors = judged(MockGuard(breaks_at_b), ["a", "b"])
    assert flagged.tolist() == [False, True]
    assert errors == 1


def test_the_same_seed_gives_the_same_cells():
    chosen = [transformation("leet"), transformation("role_play")]
    assert list(measure(SEES_THE_WORD, [HARMFUL], chosen, seed=3)) == list(measure(SEES_THE_WORD, [HARMFUL], chosen, seed=3))


def test_an_empty_set_and_judgements_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="the set none has no prompts"):
        list(measure(SEES_THE_WORD, [PromptSet("none", [], harmful=True)]))
    with pytest.raises(DataError, match="5 prompts, 2 and 5 judgements"):
        cell("leet", FIVE, flags(1, 0), flags(1, 0, 0, 0, 0), 0)
