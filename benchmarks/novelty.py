"""Is novelty measured right: the low-rank form against exact distances, and percentiles of prompts that were held out.

The prompts are not part of this project: the script needs a data folder (an argument, or the environment variable
MLPM_GUARD_DATA) with `train/`, gzip JSON lines a source. Held-out rows of the default guard's own sources are measured; they
are like its training prompts, so their percentiles should be spread evenly. Without a folder it says so and ends.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
from _bench import options, report, share
from accuracy import _rows, held_out

_PER_SOURCE, _QUICK_ROWS = 25, 5
_CHARACTERS = 600


def main() -> int:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", help="data folder; by default the environment variable MLPM_GUARD_DATA")
    parser.add_argument("--bundle", default="default", help="name or folder of a guard on prompts, saved with its statistics")
    arguments = parser.parse_args()
    folder = arguments.data or os.environ.get("MLPM_GUARD_DATA")
    if not folder:
        print("novelty: skipped, no data folder: give one as an argument or in MLPM_GUARD_DATA")
        return 0
    from scipy.stats import kstest, spearmanr

    from mlpm_guard import Guard
    from mlpm_guard.conversation import Conversation

    guard = Guard.from_pretrained(arguments.bundle).load()
    novelty = guard.policy().novelty
    if novelty is None:
        print(f"novelty: {arguments.bundle} does not measure it")
        return 1
    texts = _held_out(Path(folder) / "train", _QUICK_ROWS if arguments.quick else _PER_SOURCE)
    positions = guard.policy().scorer.positions
    states = guard.encoder.encode([Conversation.parse(text) for text in texts])[:, positions]
    distances = novelty.distances(states)
    percentiles = novelty.percentile(distances)
    correlation = spearmanr(distances.sum(axis=2).min(axis=1), _exact(guard, states, positions)).statistic
    figures = [
        share("rank correlation with exact distances", float(correlation), len(texts), at_least=0.97),
        share("largest distance of percentiles from even", float(kstest(percentiles, "uniform").statistic), len(texts)),
        *(
            share(f"held-out prompts from percentile {level} on", float((percentiles >= level).mean()), len(texts))
            for level in (0.9, 0.95, 0.99)
        ),
    ]
    return report("novelty", figures, quick=arguments.quick, bundle=guard.bundle_id)


def _held_out(folder: Path, number: int) -> list[str]:
    texts: list[str] = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        rows = [row for row in _rows(folder, name) if held_out(str(row["id"]), name) and str(row["text"]).strip()]
        rows.sort(key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
        texts += [str(row["text"])[:_CHARACTERS] for row in rows[:number]]
    return texts


def _exact(guard, states, positions):  # type: ignore[no-untyped-def]
    """Distances to the nearest class by inverted covariances, shape (n,)."""
    from mlpm_guard.prototypes.discriminant import moments
    from mlpm_guard.prototypes.gram import mirrored

    total = np.zeros((len(states), 2))
    for column, layer in enumerate(positions.tolist()):
        of_layer = moments(guard.classifier.statistics_, layer, {})
        covariance = mirrored(of_layer.upper) / (of_layer.count - 1)
        covariance += np.trace(covariance) / (of_layer.count - 1) * np.eye(len(covariance))
        precision = np.linalg.inv(covariance)
        for label, mean in enumerate(of_layer.means):
            off = states[:, column] - mean
            total[:, label] += np.einsum("nd,nd->n", off @ precision, off)
    return total.min(axis=1)


if __name__ == "__main__":
    sys.exit(main())
