"""Fits a candidate for the default bundle: the recipe of `fit_default.py` and, on top, what this project wrote to learn from.

    python mlpm_guard/bundles/fit_candidate.py DATA_FOLDER --out candidate [--without twins] [--without copies]

The additions are the harmless prompts that sound alarming (`benign_twins.jsonl`) and disguised or wrapped copies of training
rows (`augment.py`). Threshold rule, seed and classifier are those of the default recipe, so that the two bundles differ in
their data only: compare them with `benchmarks/accuracy.py --bundle`. Uses public API only. Deterministic.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlpm_guard import Guard
from mlpm_guard.bundles.augment import PLAN, augmented, benign_twins
from mlpm_guard.bundles.fit_default import EVERYDAY, EVERYDAY_FLAGGED, SAMPLE_SIZE, SEED, Row, everyday_rows, training_rows

TWINS, COPIES = "benign_twins", "copies"
ADDITIONS = ("twins", "copies")


def candidate_rows(folder: Path, without: Sequence[str] = ()) -> list[Row]:
    """Rows to learn from: those of the default recipe first, in its order, then the additions; every text once.

    Args:
        folder: one gzip JSON Lines file a source.
        without: additions to leave out, of `ADDITIONS`.
    """
    rows = training_rows(folder)
    if "twins" not in without:
        rows += [Row(TWINS, text, 0) for text in benign_twins()]
    if "copies" not in without:
        # A copy's source says what was done, so that the manifest counts copies apart from what they were made of.
        rows += [Row(f"{COPIES}:{copy.transformation}", copy.text, copy.label) for copy in augmented(rows, seed=SEED)]
    labels: dict[str, set[int]] = {}
    for row in rows:
        labels.setdefault(row.text, set()).add(row.label)
    seen: set[str] = set()
    kept: list[Row] = []
    for row in rows:
        if len(labels[row.text]) == 1 and not (row.text in seen and row.source.startswith(COPIES)):
            seen.add(row.text)
            kept.append(row)
    return kept


def fit(data: Path, out: Path, without: Sequence[str] = ()) -> Guard:
    """Fit, set the threshold by the rule of the default recipe, save."""
    rows = candidate_rows(data / "train", without)
    guard = Guard().fit([row.text for row in rows], [row.label for row in rows], sample_size=SAMPLE_SIZE)
    scores = np.array([verdict.score for verdict in guard.check_batch(everyday_rows(data / "train"))])
    guard.threshold = round(float(np.quantile(scores, 1.0 - EVERYDAY_FLAGGED)), 3)
    labels = Counter(row.label for row in rows)
    guard.save_pretrained(
        out,
        notes={
            "description": "Candidate prompt guard on all-MiniLM-L6-v2, fitted on public research data and additions.",
            "license": "Apache-2.0",
            "seed": SEED,
            "prompts": {"safe": labels[0], "unsafe": labels[1]},
            "prompts_per_source": dict(sorted(Counter(row.source for row in rows).items())),
            "copies_planned": {} if "copies" in without else dict(PLAN),
            "threshold_rule": f"flags {EVERYDAY_FLAGGED:.1%} of held-out rows of {', '.join(EVERYDAY)}",
        },
    )
    return guard


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("MLPM_GUARD_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without", action="append", choices=ADDITIONS, default=[], help="an addition to leave out")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("no data folder: give it as an argument, or set MLPM_GUARD_DATA")
    if not (Path(options.data) / "train").is_dir():
        sys.exit(f"{options.data} has no folder named train")
    guard = fit(Path(options.data), options.out, options.without)
    print(f"saved {guard.bundle_id} to {options.out}, threshold {guard.threshold}")


if __name__ == "__main__":
    main()
