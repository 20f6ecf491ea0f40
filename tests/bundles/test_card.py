"""The cards of the shipped guards: written by a command from a folder of rows, and true to what it measured."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mlpm_guard import Guard, bundle
from mlpm_guard.bundles import card, card_page, card_reference, card_sets
from mlpm_guard.bundles.card_figures import CardFigures
from mlpm_guard.bundles.card_reference import ROWS_PER_SOURCE, reference, reference_rows
from mlpm_guard.bundles.card_sets import EVERYDAY, QUESTIONS, TRANSLATED, kept_out
from mlpm_guard.bundles.card_sources import find, missing
from mlpm_guard.bundles.fit_default_response import ANSWERS, HELD_OUT, TEST_SETS
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.testing import MockEncoder

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {*card_sets._PLAIN_HARMFUL, *card_sets._PLAIN_HARMLESS, *TRANSLATED, *HELD_OUT}
HARMFUL = {*card_sets._PLAIN_HARMFUL, "hatecheck"}
MARK = "zanzibar"
"""Stands in every made-up text, so that a page that repeated one would show it."""


def invented(label: int, number: int, source: str = "") -> str:
    verb = "poison and rob" if label else "water and praise"
    return f"How do I {verb} the {source} gardener number {number} of {MARK}?"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of invented rows: every file that the command reads, a few dozen rows each."""
    data = tmp_path_factory.mktemp("data")
    for source in sorted(SOURCES):
        label = int(source in HARMFUL)
        rows = [
            {
                "id": f"{source}-{number}" + ("-en" if source in TRANSLATED else ""),
                "text": invented(label, number, source),
                "label": label,
                "category": "crime" if label else None,
                "source_category": "x",
                "lang": "en",
            }
            for number in range(60)
        ]
        if source == "fuzzyai":
            rows += [{**row, "id": f"{row['id']}b", "text": invented(0, n, source), "label": 0} for n, row in enumerate(rows)]
        if source in TRANSLATED:
            rows += [{**row, "id": str(row["id"])[:-3] + "-sw", "text": f"Je, {row['text']}", "lang": "sw"} for row in rows]
        write(data / "train" / f"{source}.jsonl.gz", rows)
    for name in ("aegis_test", "xstest"):
        both = [{"id": f"{n}", "text": invented(n % 2, n, name), "label": n % 2, "category": "c"} for n in range(12)]
        write(data / "eval" / f"{name}.jsonl.gz", both)
    for name in ("harmbench_guard", "simple_safety_tests"):
        kinds = ("standard/x", "copyright/x")
        unsafe = [{"id": f"{n}", "text": invented(1, n, name), "label": 1, "category": kinds[n % 2]} for n in range(12)]
        write(data / "eval" / f"{name}.jsonl.gz", unsafe)
    for name in EVERYDAY:
        safe = [{"id": f"{n}", "text": invented(0, n, name), "label": 0, "category": None} for n in range(30)]
        write(data / "eval" / f"{name}.jsonl.gz", safe)
    for name in (*ANSWERS, *TEST_SETS):
        answers = [
            {
                "id": f"{n}",
                "prompt": invented(1, n),
                "text": f"Answer {n}: {invented(n % 2, n)}",
                "label": n % 2,
                "category": "c",
            }
            for n in range(12)
        ]
        write(data / "response" / f"{name}.jsonl.gz", answers)
    return data


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the bundles that ship."""
    place = tmp_path_factory.mktemp("bundles")
    for name in (card.PROMPT, card.RESPONSE):
        shutil.copytree(card.BUNDLES / name, place / name, ignore=shutil.ignore_patterns("README.md"))
    return place


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("results")
    trial = {"runs": 3, "maximum": 0.2}
    named = [("average precision, plain", 0.8, 0.1), ("change, plain", 0.0, -0.25)]
    figures = [{**trial, "name": name, "median": middle, "minimum": least} for name, middle, least in named]
    (place / "ablation.json").write_text(json.dumps({"figures": figures}))
    shipped = {"average precision, shipped recipe, mean over sources": 0.87, "change, mean over sources": 0.07}
    left_out = [{**trial, "name": name, "median": value} for name, value in (shipped | {"change, worst source": -0.03}).items()]
    (place / "left_out.json").write_text(json.dumps({"figures": left_out}))
    return place


class Named(Guard):
    """A guard that says which saved guard it is."""

    name: str | None = None

    @property
    def bundle_id(self) -> str | None:
        return self.name


def encoder() -> MockEncoder:
    return MockEncoder(lambda text: "poison" in text)


def standing_in(path: Path) -> Guard:
    """A guard without weights, fitted on invented rows, in the place of a saved one."""
    manifest = bundle.load(path)
    rows = [invented(label, number) for label in (0, 1) for number in range(30)]
    guard = Named(encoder(), target=manifest.manifest.target)
    role = "user" if guard.target == "prompt" else "assistant"
    guard.fit([[{"role": role, "content": text}] for text in rows], [0] * 30 + [1] * 30, progress=False)
    guard.name = manifest.bundle_id
    return guard


@pytest.fixture(scope="module")
def figures(folder: Path, bundles: Path, results: Path) -> CardFigures:
    """What the command measured and wrote, once for all tests. Guards without weights stand in for those that it loads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card.Guard, "from_pretrained", standing_in)
        patch.setattr(card_reference, "_encoder", encoder)
        return card.write_cards(
            folder, bundles, results=results, reference_folder=results / "reference", rows=4, held_out_rows=5
        )


@pytest.fixture(scope="module")
def page(figures: CardFigures, bundles: Path) -> str:
    return (bundles / card.PROMPT / "README.md").read_text(encoding="utf-8")


def test_the_front_matter_is_read_by_the_hubs_own_library_and_holds_what_was_measured(page: str, figures: CardFigures) -> None:
    data = ModelCard(page).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "mlpm-guard", "text-classification")
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.datasets
    values = {(each.dataset_type, each.metric_type): each.metric_value for each in data.eval_results}
    f1 = figures.shipped.sets["xstest"].f1
    assert f1 is not None
    assert values["xstest", "f1"] == round(f1.value, 4)
    assert set(data.metrics) >= {metric for _, metric in values}


def test_every_source_of_the_bundle_stands_in_the_card_with_its_count_and_licence(page: str, bundles: Path) -> None:
    counts = card_page.counts_of(bundle.load(bundles / card.PROMPT))
    assert counts
    for name, count in counts.items():
        source = find(name)
        assert source is not None
        assert f"| `{name}` | {count:,} | {source.licence} |" in page


@pytest.mark.parametrize("name", [card.PROMPT, card.RESPONSE])
def test_the_licence_of_every_source_of_a_shipped_bundle_is_recorded(name: str) -> None:
    assert missing(card_page.counts_of(bundle.load(name))) == []


def test_a_source_without_a_recorded_licence_is_reported_as_such() -> None:
    assert missing(["xstest-of-tomorrow", "gsm8k", "copies:leet"]) == ["xstest-of-tomorrow"]
    assert "not recorded" in card_page.card_tables.data_table({"xstest-of-tomorrow": 3})


def test_no_text_of_a_prompt_stands_in_a_card_or_in_the_figures(page: str, bundles: Path, results: Path) -> None:
    kept = (results / "card.json").read_text(encoding="utf-8")
    response = (bundles / card.RESPONSE / "README.md").read_text(encoding="utf-8")
    assert not [text for text in (page, response, kept) if MARK in text]


def test_every_figure_lies_within_its_interval(figures: CardFigures) -> None:
    def found(value: Any) -> list[dict[str, float]]:
        if isinstance(value, dict):
            return (
                [value]
                if {"value", "low", "high"} <= value.keys()
                else [each for part in value.values() for each in found(part)]
            )
        return [each for part in value for each in found(part)] if isinstance(value, list) else []

    measured = found(json.loads(figures.model_dump_json(exclude={"shipped": {"calibration"}, "reference": {"calibration"}})))
    assert len(measured) > 100
    assert [each for each in measured if not 0 <= each["low"] <= each["value"] <= each["high"] <= 1] == []


def test_at_every_point_of_the_curve_no_more_of_the_everyday_prompts_is_flagged_than_allowed(figures: CardFigures) -> None:
    for guard in (figures.shipped, figures.reference):
        assert [each.rate for each in guard.curve] == [0.01, 0.02, 0.05]
        assert all(each.everyday.value <= each.rate for each in guard.curve)
        assert all(one.threshold >= other.threshold for one, other in zip(guard.curve, guard.curve[1:], strict=False))


def test_what_was_measured_is_kept_and_gives_the_same_cards_again(figures: CardFigures, bundles: Path, results: Path) -> None:
    kept = CardFigures.model_validate_json((results / "card.json").read_text(encoding="utf-8"))
    assert kept == figures
    for name, text in card.pages(kept, bundles).items():
        assert (bundles / name / "README.md").read_text(encoding="utf-8") == text


def test_figures_of_another_guard_give_no_card(figures: CardFigures, bundles: Path) -> None:
    other = figures.model_copy(update={"shipped": figures.shipped.model_copy(update={"bundle_id": "default-000000000000"})})
    with pytest.raises(DataError, match="figures are of default-000000000000"):
        card.pages(other, bundles)


def test_published_figures_stand_under_a_heading_that_says_that_others_measured_them(page: str) -> None:
    _, _, behind = page.partition("## Figures that others published")
    section, _, _ = behind.partition("\n## ")
    assert "None of these was measured by this project" in section
    assert [
        name for name in ("Llama Guard 3 8B", "WildGuard 7B", "Aegis-Defensive 7B", "MLPM, OLMo2-7B") if name not in section
    ] == []
    assert "98.9" in section
    assert "98.9" not in page.replace(section, "")


def test_recipes_that_were_tried_are_listed(page: str) -> None:
    assert "| plain | 0.800 | +0.000 | -0.250 |" in page
    assert "not seen the source, either | 0.870 | +0.070 | -0.030 |" in page


def test_the_weakest_cells_are_the_lowest_of_all(figures: CardFigures) -> None:
    recalls, alarms = card_page.card_tables.weakest(figures.shipped)
    assert recalls
    assert alarms
    assert [each.figure.value for each in recalls] == sorted(each.figure.value for each in recalls)
    assert [each.figure.value for each in alarms] == sorted((each.figure.value for each in alarms), reverse=True)


def test_the_python_blocks_of_the_cards_run(page: str, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    response = (bundles / card.RESPONSE / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page + response, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "card", "exec"), {"__name__": "card"})


def test_the_rows_for_a_readme_are_printed_from_what_was_kept(figures: CardFigures, results: Path) -> None:
    command = [sys.executable, "mlpm_guard/bundles/card.py", "--readme", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"| this bundle, threshold {figures.shipped.threshold:g} |" in done.stdout
    assert "| reference recipe, encoder as published, threshold 0.5 |" in done.stdout
    assert "| WildGuard 7B |" in done.stdout


def test_without_a_data_folder_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLPM_GUARD_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["card.py"])
    with pytest.raises(SystemExit, match="no data folder"):
        card.main()
    with pytest.raises(DataError, match="has no folder named train"):
        card.write_cards(tmp_path)


def test_a_missing_file_and_a_bad_row_are_named_and_never_repeated(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl\.gz cannot be read"):
        card_sets.prompts(folder / "eval", "absent")
    write(tmp_path / "eval" / "xstest.jsonl.gz", [{"id": "1", "text": MARK, "label": 1}, {"id": "2", "text": MARK, "label": 2}])
    with pytest.raises(DataError, match="row 2 has a label that is neither 0 nor 1") as caught:
        card_sets.prompts(tmp_path / "eval", "xstest")
    assert MARK not in str(caught.value)


def test_the_reference_recipe_learns_from_no_held_out_row_and_at_most_so_many_of_a_source(folder: Path) -> None:
    rows = reference_rows(folder)
    assert not any(kept_out(each) for each in rows)
    assert {each.source for each in rows} == SOURCES
    assert max(sum(each.source == source for each in rows) for source in SOURCES) <= ROWS_PER_SOURCE
    assert rows == reference_rows(folder)


def test_a_kept_reference_is_taken_and_another_guard_in_its_place_is_not(
    figures: CardFigures, folder: Path, bundles: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_reference, "_encoder", encoder)
    kept, counts = reference(folder, results / "reference")
    assert (kept.bundle_id, counts) == (figures.reference.bundle_id, figures.reference_rows)
    with pytest.raises(ConfigurationError, match="not the reference recipe"):
        reference(folder, bundles / card.PROMPT)


def test_held_out_questions_and_translations_are_those_that_no_recipe_learns_from(folder: Path) -> None:
    assert set(card_sets.questions(folder)) == set(QUESTIONS)
    for source in TRANSLATED:
        languages = card_sets.translations(folder, source)
        assert set(languages) == {"en", "sw"}
        assert all(kept_out(each) for prompts in languages.values() for each in prompts)
        assert len(languages["en"]) == len(languages["sw"])


def test_the_cards_that_ship_are_those_of_the_figures_that_were_kept() -> None:
    kept = card.RESULTS / "card.json"
    if not kept.is_file():
        pytest.skip("no cards were written yet: python mlpm_guard/bundles/card.py DATA_FOLDER")
    written = card.pages(CardFigures.model_validate_json(kept.read_text(encoding="utf-8")))
    for name, text in written.items():
        assert (card.BUNDLES / name / "README.md").read_text(encoding="utf-8") == text
