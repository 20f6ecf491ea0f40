"""Writes the model cards of the shipped guards: measures both, and the reference recipe beside the first.

    python mlpm_guard/bundles/card.py DATA_FOLDER [--reference FOLDER]
    python mlpm_guard/bundles/card.py --readme

DATA_FOLDER (or MLPM_GUARD_DATA) has the folders `train`, `eval` and `response`. The cards go to `default/README.md` and
`default-response/README.md` beside this file, what was measured to `benchmarks/results/card.json`, where there is that folder.
The reference recipe is fitted every time, unless a folder to keep it in is named. `--readme` prints the rows of a shorter table
from what was measured last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpm_guard import Guard, bundle
from mlpm_guard.bundles.card_figures import HELD_OUT_ROWS, ROWS, SEED, CardFigures, Trial, measured
from mlpm_guard.bundles.card_outside import outside_in
from mlpm_guard.bundles.card_page import prompt_page
from mlpm_guard.bundles.card_reference import reference
from mlpm_guard.bundles.card_response import response_measured, response_page
from mlpm_guard.bundles.card_sources import missing
from mlpm_guard.bundles.card_tables import published_table, readme_table
from mlpm_guard.errors import DataError

BUNDLES = Path(__file__).resolve().parent
RESULTS = BUNDLES.parents[1] / "benchmarks" / "results"
PROMPT, RESPONSE = "default", "default-response"
_DIGITS = 6


def write_cards(
    data: Path,
    bundles: Path = BUNDLES,
    *,
    results: Path | None = RESULTS,
    reference_folder: Path | None = None,
    rows: int = ROWS,
    held_out_rows: int = HELD_OUT_ROWS,
    seed: int = SEED,
) -> CardFigures:
    """Measure the guards and write their cards.

    Args:
        data: folder with `train`, `eval` and `response`.
        bundles: folder with `default` and `default-response`; the cards are written there.
        results: folder for `card.json`, where those of `ablation`, `left_out` and `outside` are looked for; None keeps nothing.
        reference_folder: where the reference recipe's guard is kept; see `card_reference.reference`.
        rows: of a disguised set at most.
        held_out_rows: of a source and label at most.
        seed: of disguises and resamples.

    Raises:
        DataError: a file of the data folder is missing or cannot be used.
        BundleError: a guard cannot be loaded.
        ConfigurationError: `reference_folder` holds another guard.
    """
    for name in ("train", "eval", "response"):
        if not (data / name).is_dir():
            raise DataError(f"{data} has no folder named {name}")
    # Without a separator a folder would be taken for the name of a shipped guard.
    guard, moderator = (Guard.from_pretrained(bundles.absolute() / name) for name in (PROMPT, RESPONSE))
    _tell("fitting the reference recipe, or taking the one that was kept")
    plain, learned = reference(data, reference_folder)
    limits = {"rows": rows, "held_out_rows": held_out_rows, "seed": seed}
    _tell("measuring the shipped guard")
    shipped = measured(guard, data, progress=_tell, **limits)
    _tell("measuring the reference recipe")
    beside = measured(plain, data, progress=_tell, **limits)
    _tell("measuring the response guard")
    figures = CardFigures(
        rows=rows,
        held_out_rows=held_out_rows,
        seed=seed,
        shipped=shipped,
        reference=beside,
        reference_rows=learned,
        response=response_measured(moderator, data),
        trials=trials_in(results),
        outside=outside_in(results, guard.bundle_id, moderator.bundle_id),
    )
    figures = CardFigures.model_validate(_rounded(figures.model_dump()))
    for name, page in pages(figures, bundles).items():
        (bundles / name / "README.md").write_text(page, encoding="utf-8")
    if results is not None and results.is_dir():
        (results / "card.json").write_text(figures.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return figures


def pages(figures: CardFigures, bundles: Path = BUNDLES) -> dict[str, str]:
    """The cards by bundle, from what was measured.

    Raises:
        BundleError: a guard cannot be loaded.
        DataError: the figures are of other guards than those.
    """
    prompt, response = (bundle.load(bundles.absolute() / name) for name in (PROMPT, RESPONSE))
    for each, measured_id in ((prompt, figures.shipped.bundle_id), (response, figures.response.bundle_id)):
        if each.bundle_id != measured_id:
            raise DataError(f"the figures are of {measured_id}, and {each.path} holds {each.bundle_id}; measure again")
    return {PROMPT: prompt_page(prompt, figures), RESPONSE: response_page(response, figures)}


def trials_in(results: Path | None) -> dict[str, Trial]:
    """Recipes that `benchmarks/ablation.py` compared, by name, and what `left_out.py` found of the one that ships.

    Empty where the results of neither are there.
    """
    rows: dict[str, dict[str, Any]] = {}
    for each in _results_of(results, "ablation"):
        what, _, name = str(each["name"]).partition(", ")
        rows.setdefault(name, {})[what] = each
    found = {
        name: Trial(precision=of["average precision"]["median"], change=of["change"]["median"], worst=of["change"]["minimum"])
        for name, of in rows.items()
        if {"average precision", "change"} <= of.keys()
    }
    of_shipped = {str(each["name"]): float(each["median"]) for each in _results_of(results, "left_out")}
    if of_shipped:
        found["as shipped, with an adapter that has not seen the source, either"] = Trial(
            precision=of_shipped["average precision, shipped recipe, mean over sources"],
            change=of_shipped["change, mean over sources"],
            worst=of_shipped["change, worst source"],
        )
    return found


def _results_of(results: Path | None, benchmark: str) -> list[dict[str, Any]]:
    path = None if results is None else results / f"{benchmark}.json"
    figures: list[dict[str, Any]] = []
    if path is not None and path.is_file():
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("MLPM_GUARD_DATA"))
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help="folder with default and default-response")
    parser.add_argument("--reference", type=Path, help="folder to keep the reference recipe's guard in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for card.json")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a disguised set at most")
    parser.add_argument("--held-out-rows", type=int, default=HELD_OUT_ROWS, help="held-out rows of a source and label at most")
    parser.add_argument("--readme", action="store_true", help="print tables for a README from card.json, and measure nothing")
    options = parser.parse_args()
    if options.readme:
        _print_readme(options.results / "card.json")
        return
    if options.data is None:
        sys.exit("no data folder: give it as an argument, or set MLPM_GUARD_DATA")
    write_cards(
        Path(options.data),
        options.bundles,
        results=options.results,
        reference_folder=options.reference,
        rows=options.rows,
        held_out_rows=options.held_out_rows,
    )
    for name in (PROMPT, RESPONSE):
        without = missing(_sources(options.bundles / name))
        sys.stdout.write(f"wrote {options.bundles / name / 'README.md'}\n")
        if without:
            sys.stdout.write(f"no licence is recorded for {', '.join(without)}: add them to card_sources.py\n")


def _print_readme(path: Path) -> None:
    if not path.is_file():
        sys.exit(f"{path} is not there: write the cards first")
    figures = CardFigures.model_validate_json(path.read_text(encoding="utf-8"))
    sys.stdout.write(f"{readme_table(figures)}\n\n{published_table()}\n")


def _sources(folder: Path) -> Sequence[str]:
    from mlpm_guard.bundles.card_page import counts_of

    return list(counts_of(bundle.load(folder.absolute())))


def _rounded(value: Any) -> Any:
    """Floats with a few digits, so that what is kept shows no noise of the last bits."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_rounded, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_rounded, value))
    return round(value, _DIGITS) if isinstance(value, float) else value


def _tell(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    main()
