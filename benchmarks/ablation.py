"""Recipes of the default guard compared on the same cached layer states, each judged on sources that it has not seen.

Leave-one-source-out: a source's rows of one label, scored by a fit without that source, beside a fixed pool of held-out rows
of the other label; the figure is average precision. It is the honest estimate of what prompts from elsewhere meet, and what a
recipe is chosen by. `eval/` is not read.

The states are those of the published encoder: the adapter that ships has learned from every source, so that on its states no
source would be unseen. `left_out.py` trains adapters that have not. Calibration is not compared: an affine map of the log-odds
leaves every average precision as it is.

The prompts are not part of this project: the script needs a data folder (an argument, or the environment variable
MLPM_GUARD_DATA) with `train/`. Without one it says so and ends. States are kept in `--cache` and encoded only once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _bench import Figure, options, report
from _recipes import PLAIN, REFERENCE, TWIN, Array, Fits, Prompts, Variant, scorer
from _states import load, with_maxima

_ROWS, _QUICK_ROWS = 200, 60
_POOL_ROWS = 20
_TARGET_ROWS = 300
_FEWEST = 20
_FLAGGED = 0.02

NOISY = ("realtoxicityprompts_sub", "safetext", "hatecheck", "harmfulqa", "ailuminate_demo", "jade_db")
ATTACKS = ("cyberseceval_prompt_injection", "deepset_prompt_injections", "inthewild_jailbreak")


def variants(copies: Sequence[str]) -> list[Variant]:
    """What is compared, the reference first, one change at a time and then together."""
    log_odds = replace(REFERENCE, aggregation="log_odds")
    noisy, attacks = dict.fromkeys(NOISY, 0.25), dict.fromkeys(ATTACKS, 0.25)
    kinds = (PLAIN, TWIN, *copies)
    return [
        REFERENCE,
        replace(log_odds, name="log-odds"),
        replace(REFERENCE, name="mean of log-odds", aggregation="mean"),
        replace(REFERENCE, name="aggregation out of fold", out_of_fold=True),
        replace(log_odds, name="log-odds, aggregation out of fold", out_of_fold=True),
        # The reference has the mean over the tokens and the state of [CLS].
        replace(REFERENCE, name="mean without [CLS]", parts=("mean",)),
        replace(REFERENCE, name="[CLS] alone", parts=("cls",)),
        replace(REFERENCE, name="max alone", parts=("max",)),
        replace(REFERENCE, name="mean and max", parts=("mean", "max")),
        replace(REFERENCE, name="mean, [CLS] and max", parts=("mean", "cls", "max")),
        *(replace(REFERENCE, name=f"layer {index + 1} alone", layers=(index,)) for index in (2, 5)),
        *(replace(REFERENCE, name=f"ridge {ridge:g}", ridge=ridge) for ridge in (0.1, 0.3, 1.0)),
        replace(REFERENCE, name="Ledoit-Wolf", shrinkage="ledoit_wolf"),
        replace(REFERENCE, name="oracle approximating shrinkage", shrinkage="oas"),
        replace(REFERENCE, name="categories as sub-classes", categories=True),
        *(replace(REFERENCE, name=f"unsafe rows x {weight:g}", unsafe_weight=weight) for weight in (0.5, 2.0)),
        *(replace(REFERENCE, name=f"between sources x {weight:g}", between=weight) for weight in (0.0, 3.0, 10.0, 30.0)),
        *(replace(REFERENCE, name=f"sources balanced, power {power:g}", balance=power) for power in (0.5, 1.0)),
        replace(REFERENCE, name="noisy sources x 0.25", weights=noisy),
        replace(REFERENCE, name="attack sources x 0.25", weights=attacks),
        replace(REFERENCE, name="with twins", kinds=(PLAIN, TWIN)),
        replace(REFERENCE, name="with twins and copies", kinds=kinds),
        replace(log_odds, name="log-odds, with twins and copies", kinds=kinds),
        *(replace(REFERENCE, name=f"joint, ridge {ridge:g}", joint=True, ridge=ridge) for ridge in (0.1, 0.5)),
    ]


@dataclass(frozen=True)
class Outcome:
    """How a variant does on sources that it has not seen.

    Attributes:
        precision: average precision by source and label.
        found: by unsafe source, the share scoring above all but 2 % of the harmless pool.
    """

    precision: dict[tuple[str, int], float]
    found: dict[str, float]

    def mean(self, label: int | None = None) -> float:
        """Mean average precision over all sources, or over those of one label."""
        return float(np.mean([value for (_, of), value in self.precision.items() if label in (None, of)]))


def leave_one_source_out(prompts: Prompts, variant: Variant) -> Outcome:
    """Judge every source by a fit without it."""
    fits = Fits(prompts, variant)
    outcome = Outcome({}, {})
    for source, label, rows in targets(prompts):
        judged(prompts, source, label, rows, scorer(fits, variant, source), outcome)
    return outcome


def judged(
    prompts: Prompts,
    source: str,
    label: int,
    rows: npt.NDArray[np.int64],
    score: Callable[[npt.NDArray[np.float32]], Array],
    outcome: Outcome,
) -> None:
    """Add the figures of one source and label, whose rows are scored beside the pool of the other label."""
    from sklearn.metrics import average_precision_score

    own, others = _best_window(prompts, rows, score), _best_window(prompts, _pool(prompts, 1 - label), score)
    truth = np.concatenate([np.full(len(own), label), np.full(len(others), 1 - label)])
    outcome.precision[source, label] = float(average_precision_score(truth, np.concatenate([own, others])))
    if label:
        outcome.found[source] = float((own > np.quantile(others, 1.0 - _FLAGGED)).mean())


def targets(prompts: Prompts) -> Iterator[tuple[str, int, npt.NDArray[np.int64]]]:
    """Sources to leave out, a label of them, and the rows to judge."""
    for source in np.unique(prompts.source).tolist():
        for label in (0, 1):
            rows = np.flatnonzero((prompts.source == source) & (prompts.label == label) & np.isin(prompts.kind, (PLAIN, TWIN)))
            if len(rows) >= _FEWEST:
                yield source, label, np.random.default_rng(0).permutation(rows)[:_TARGET_ROWS]


def _pool(prompts: Prompts, label: int) -> npt.NDArray[np.int64]:
    chosen = (prompts.label == label) & prompts.held & (prompts.kind == PLAIN)
    return np.concatenate(
        [np.flatnonzero(chosen & (prompts.source == source))[:_POOL_ROWS] for source in np.unique(prompts.source[chosen])]
    )


def _best_window(prompts: Prompts, rows: npt.NDArray[np.int64], score: Callable[[npt.NDArray[np.float32]], Array]) -> Array:
    windows = np.flatnonzero(np.isin(prompts.owner, rows))
    best = np.full(len(prompts.label), -np.inf)
    np.maximum.at(best, prompts.owner[windows], score(prompts.states[windows]))
    return best[rows]


def main() -> int:
    """Compare and report."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", help="data folder; by default the environment variable MLPM_GUARD_DATA")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "results" / "cache", help="folder for states")
    parser.add_argument("--rows", type=int, help="rows of a source at most")
    parser.add_argument("--only", help="names of variants, separated by semicolons; the reference always runs")
    arguments = parser.parse_args()
    folder = arguments.data or os.environ.get("MLPM_GUARD_DATA")
    if not folder:
        print("ablation: skipped, no data folder: give one as an argument or in MLPM_GUARD_DATA")
        return 0
    rows = arguments.rows or (_QUICK_ROWS if arguments.quick else _ROWS)
    prompts = load(Path(folder), arguments.cache, rows)
    copies = sorted(set(prompts.kind.tolist()) - {PLAIN, TWIN})
    only = None if arguments.only is None else {REFERENCE.name, *arguments.only.split(";")}
    figures: list[Figure] = []
    by_source: dict[str, dict[str, float]] = {}
    reference: Outcome | None = None
    for variant in variants(copies):
        if only is not None and variant.name not in only:
            continue
        maxima = "max" in (variant.parts or ())
        read = with_maxima(prompts, Path(folder), arguments.cache, rows) if maxima else prompts
        outcome = leave_one_source_out(read, variant)
        reference = reference or outcome
        figures += list(_figures(variant, outcome, reference))
        by_source[variant.name] = {
            f"{source}, {'unsafe' if label else 'safe'}": round(value, 4)
            for (source, label), value in outcome.precision.items()
        }
        print(json.dumps({"variant": variant.name, **{each.name.split(", ")[0]: each.median for each in figures[-4:]}}))
    return report("ablation", figures, quick=arguments.quick, average_precision=by_source)


def _figures(variant: Variant, outcome: Outcome, reference: Outcome) -> Iterator[Figure]:
    """Mean, minimum and maximum over the sources."""
    for what, values in (
        ("average precision", outcome.precision.values()),
        ("unsafe sources", [value for (_, label), value in outcome.precision.items() if label]),
        ("found at 2 % flagged", outcome.found.values()),
        ("change", [outcome.precision[key] - reference.precision[key] for key in outcome.precision]),
    ):
        listed = list(values)
        yield Figure(f"{what}, {variant.name}", float(np.mean(listed)), min(listed), max(listed), len(listed), "share")


if __name__ == "__main__":
    sys.exit(main())
