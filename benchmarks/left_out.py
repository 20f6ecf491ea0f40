"""Sources that neither the adapter nor the prototypes have seen: the shipped recipe against the plain one.

The sources are dealt into `FOLDS` folds, each of harmless, mixed and unsafe ones alike. For every fold an adapter is trained,
by `train_adapter.py`'s own code, on the sources of the other folds (so that a third of them is missing at once, not one); then
every source of the fold is left out of the prototypes, too, in turn. A source's rows of one label are scored beside a fixed
pool of held-out rows of the other label; the figure is average precision. The plain recipe is the reference of `ablation.py`:
the published encoder, probabilities, no twins, no copies, every source up to the same number of rows.

The twins were written with sources in view, and are learned from in every fold. `eval/` is not read.

The prompts are not part of this project: the script needs a data folder (an argument, or the environment variable
MLPM_GUARD_DATA) with `train/` and `response/`. Without one it says so and ends. Adapters and states are kept in `--cache`.
Takes about an hour on 2 cores.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _bench import figure, options, report, share
from _recipes import PLAIN, REFERENCE, Prompts
from _states import load
from ablation import Outcome, judged, leave_one_source_out, targets

FOLDS = 3
_ROWS, _QUICK_ROWS, _QUICK_EPOCHS = 200, 60, (0.02, 0.02)


def dealt(data: Path, folds: int = FOLDS) -> list[list[str]]:
    """Sources by fold, dealt out in the order of their unsafe shares."""
    from mlpm_guard.bundles.fit_default import WRITTEN, rows_to_learn

    labels: dict[str, list[int]] = {}
    for row in rows_to_learn(data / "train"):
        if row.source not in WRITTEN:
            labels.setdefault(row.source, []).append(row.label)
    ordered = sorted(labels, key=lambda name: (sum(labels[name]) / len(labels[name]), name))
    return [ordered[fold::folds] for fold in range(folds)]


def adapter_without(data: Path, left_out: Sequence[str], path: Path, epochs: tuple[float, float] | None) -> Path:
    """An adapter that was trained without some sources, from the cache or made anew."""
    from mlpm_guard.bundles.lessons import answers, fewer_prompts, prompts
    from mlpm_guard.bundles.low_rank import save
    from mlpm_guard.bundles.train_adapter import EPOCHS, train_both
    from mlpm_guard.encoders.embedded import EmbeddedEncoder

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        to_answers = answers(data)
        runs = [[*of(data), *to_answers] for of in (fewer_prompts, prompts)]
        fewer, every = ([lesson for lesson in run if lesson.source not in left_out] for run in runs)
        tensors = train_both(fewer, every, epochs=EPOCHS if epochs is None else epochs)
        save(path, tensors, EmbeddedEncoder(adapter=None).identity)
    return path


def learned(prompts: Prompts) -> npt.NDArray[np.bool_]:
    """Which prompts the shipped recipe learns from: no held-out ones, and no more of a source than its cap."""
    from mlpm_guard.bundles.fit_default import ROWS_OF

    chosen = ~prompts.held
    for source, cap in ROWS_OF.items():
        rows = np.flatnonzero(chosen & (prompts.source == source) & (prompts.kind == PLAIN))
        chosen[rows[cap:]] = False
    return chosen


def shipped(prompts: Prompts, sources: Sequence[str]) -> Outcome:
    """Each of some sources judged by prototypes that were fitted without it, by the library's own classifier."""
    from mlpm_guard.bundles.fit_default import SAMPLE_SIZE
    from mlpm_guard.prototypes.classifier import PrototypeClassifier

    usable = learned(prompts)[prompts.owner]
    source, label = prompts.source[prompts.owner], prompts.label[prompts.owner]
    outcome = Outcome({}, {})
    for name in sources:
        chosen = usable & (source != name)
        classifier = PrototypeClassifier(sample_size=SAMPLE_SIZE).fit(prompts.states[chosen], label[chosen])
        for _, of, rows in (each for each in targets(prompts) if each[0] == name):
            judged(prompts, name, of, rows, classifier.decision_function, outcome)
    return outcome


def main() -> int:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", help="data folder; by default the environment variable MLPM_GUARD_DATA")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "results" / "cache", help="folder for states")
    arguments = parser.parse_args()
    folder = arguments.data or os.environ.get("MLPM_GUARD_DATA")
    if not folder:
        print("left_out: skipped, no data folder: give one as an argument or in MLPM_GUARD_DATA")
        return 0
    data, quick = Path(folder), bool(arguments.quick)
    rows, epochs = (_QUICK_ROWS, _QUICK_EPOCHS) if quick else (_ROWS, None)
    published = load(data, arguments.cache, rows)
    reference, ours = leave_one_source_out(published, REFERENCE), Outcome({}, {})
    for fold, sources in enumerate(folds := dealt(data)):
        path = arguments.cache / f"adapter-{'quick' if quick else 'fold'}-{fold}.safetensors"
        prompts = load(data, arguments.cache, rows, adapter_without(data, sources, path, epochs))
        found = shipped(prompts, sources)
        ours.precision.update(found.precision)
        ours.found.update(found.found)
        print(json.dumps({"fold": fold, "sources": sources, "average precision": round(found.mean(), 4)}), flush=True)
    # The twins belong to no fold.
    plain = Outcome(
        {key: reference.precision[key] for key in sorted(ours.precision)}, {key: reference.found[key] for key in ours.found}
    )
    changes = {key: ours.precision[key] - value for key, value in plain.precision.items()}
    worse = [change for change in changes.values() if change < -0.02]
    figures = [
        figure("average precision, plain recipe, median source", list(plain.precision.values()), "share"),
        figure("average precision, shipped recipe, median source", list(ours.precision.values()), "share"),
        share("average precision, plain recipe, mean over sources", plain.mean(), len(changes)),
        share("average precision, shipped recipe, mean over sources", ours.mean(), len(changes)),
        share("change, mean over sources", ours.mean() - plain.mean(), len(changes), at_least=0.04),
        share("change, unsafe sources", ours.mean(1) - plain.mean(1), len(ours.found)),
        share("change, harmless sources", ours.mean(0) - plain.mean(0), len(changes) - len(ours.found)),
        share("change, worst source", min(changes.values()), len(changes), at_least=-0.02),
        share("sources worse by more than 2 points", len(worse) / len(changes), len(changes)),
        share("found at 2 % flagged, plain recipe", float(np.mean(list(plain.found.values()))), len(plain.found)),
        share("found at 2 % flagged, shipped recipe", float(np.mean(list(ours.found.values()))), len(ours.found)),
    ]
    by_source = {
        f"{source}, {'unsafe' if label else 'safe'}": {
            "plain": round(plain.precision[source, label], 4),
            "shipped": round(ours.precision[source, label], 4),
        }
        for source, label in changes
    }
    return report("left_out", figures, quick=quick, folds=folds, average_precision=by_source)


if __name__ == "__main__":
    sys.exit(main())
