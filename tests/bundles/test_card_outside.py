"""What the cards say of sets outside the data folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlpm_guard.bundles.card_outside import answers_section, outside_in, prompts_section

FIGURES = {
    "F1, chat traffic": (0.6, 500),
    "F1, jailbreaks": (0.9, 300),
    "mean F1": (0.75, 800),
    "unsafe flagged, templates": (0.98, 100),
    "safe flagged, reviews": (0.25, 200),
    "average precision, answers, objectives": (0.7, 80),
    "unsafe flagged, answers, objectives": (0.5, 40),
    "safe flagged, answers, objectives": (0.1, 40),
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    figures: list[dict[str, Any]] = [{"name": name, "median": value, "runs": rows} for name, (value, rows) in FIGURES.items()]
    found = {"details": {"bundle": "default-1", "response_bundle": "default-response-2"}, "figures": figures}
    (tmp_path / "outside.json").write_text(json.dumps(found))
    return tmp_path


def test_figures_are_told_apart_by_what_they_measure(results: Path) -> None:
    outside = outside_in(results, "default-1", "default-response-2")
    assert outside is not None
    assert outside.f1 == {"chat traffic": 0.6, "jailbreaks": 0.9}
    assert outside.mean_f1 == 0.75
    assert list(outside.flagged) == ["unsafe flagged, templates", "safe flagged, reviews"]
    assert outside.answers["unsafe flagged, answers, objectives"].value == 0.5
    assert outside.answers_precision == 0.7
    reviews = outside.flagged["safe flagged, reviews"]
    assert reviews.low < 0.25 < reviews.high


def test_figures_of_other_guards_are_left_out(results: Path, tmp_path: Path) -> None:
    assert outside_in(results, "default-3", "default-response-2") is None
    assert outside_in(results, "default-1", "default-response-3") is None
    assert outside_in(tmp_path / "elsewhere", "default-1", "default-response-2") is None
    assert outside_in(None, "default-1", "default-response-2") is None


def test_the_sections_have_a_row_a_set(results: Path) -> None:
    outside = outside_in(results, "default-1", "default-response-2")
    assert outside is not None
    of_prompts, of_answers = prompts_section(outside), answers_section(outside)
    assert "chat traffic 0.600, jailbreaks 0.900; mean 0.750" in of_prompts
    assert "| templates | 100 harmful | 0.980 (" in of_prompts
    assert "| reviews | 200 harmless | 0.250 (" in of_prompts
    assert "| objectives | 40 harmless | 0.100 (" in of_answers
    assert "objectives" not in of_prompts
