"""What reaches the user with the shipped guard before a model, the shipped response guard behind it, and both.

The prompts and answers are not part of this project: the script needs a data folder (an argument, or the environment variable
MLPM_GUARD_DATA) with `response/`, gzip JSON lines of `prompt, text, label`. Without one it says so and ends. The everyday
answers are those under `tests/`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from _bench import Figure, options, report, share

if TYPE_CHECKING:
    from mlpm_guard import Guard
    from mlpm_guard.datafiles import Pair
    from mlpm_guard.evaluation.pipeline import Flow

SETS = ("harmbench_resp", "jbb_judge_comparison")
EVERYDAY = Path(__file__).resolve().parents[1] / "tests" / "everyday_answers.jsonl"
_QUICK_ROWS = 60


def main() -> int:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", help="data folder; by default the environment variable MLPM_GUARD_DATA")
    parser.add_argument("--bundle", default="default", help="name or folder of the guard that judges prompts")
    parser.add_argument("--moderator", default="default-response", help="name or folder of the guard that judges answers")
    arguments = parser.parse_args()
    folder = arguments.data or os.environ.get("MLPM_GUARD_DATA")
    if not folder:
        print("pipeline: skipped, no data folder: give one as an argument or in MLPM_GUARD_DATA")
        return 0
    from mlpm_guard import Guard
    from mlpm_guard.datafiles import DataFile
    from mlpm_guard.evaluation.pipeline import evaluate_pipeline

    guard, moderator = Guard.from_pretrained(arguments.bundle), Guard.from_pretrained(arguments.moderator)
    figures: list[Figure] = []
    for name in SETS:
        rows = DataFile(Path(folder) / "response" / f"{name}.jsonl.gz", require_label=True).pairs()
        pairs = list(islice(rows, _QUICK_ROWS) if arguments.quick else rows)
        figures += _chains(name, evaluate_pipeline(guard, moderator, pairs).overall)
        figures += _ranking(name, moderator, pairs)
    figures.append(_everyday(moderator))
    details = {
        "guard": guard.bundle_id,
        "threshold": guard.threshold,
        "moderator": moderator.bundle_id,
        "moderator threshold": moderator.threshold,
    }
    return report("pipeline", figures, quick=arguments.quick, **details)


def _chains(name: str, flow: Flow) -> list[Figure]:
    """What reaches the user and what is lost; both together must let less through than either alone."""
    figures: list[Figure] = []
    chains = flow.chains
    best = min(chains[chain].harmful_reaching for chain in ("input_gate", "output_moderation"))
    for chain, outcome in chains.items():
        shown = chain.replace("_", " ")
        assert outcome.harmful_share is not None
        assert outcome.harmless_share is not None
        most = (best - 1) / flow.harmful if chain == "both" else None
        figures.append(share(f"harmful reaching, {shown}, {name}", outcome.harmful_share, flow.harmful, at_most=most))
        figures.append(share(f"harmless lost, {shown}, {name}", outcome.harmless_share, flow.harmless))
    return figures


def _ranking(name: str, moderator: Guard, pairs: Sequence[Pair]) -> list[Figure]:
    """Threshold-free figures of the response guard."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    verdicts = moderator.check_batch(
        [[{"role": "user", "content": pair.prompt}, {"role": "assistant", "content": pair.response}] for pair in pairs]
    )
    scores = [1.0 if verdict.score is None else verdict.score for verdict in verdicts]
    labels = [pair.label for pair in pairs]
    return [
        share(f"average precision, {name}", average_precision_score(labels, scores), len(pairs)),
        share(f"area under the ROC curve, {name}", roc_auc_score(labels, scores), len(pairs)),
    ]


def _everyday(moderator: Guard) -> Figure:
    """How many harmless everyday answers are stopped."""
    rows = [json.loads(line) for line in EVERYDAY.read_text(encoding="utf-8").splitlines()]
    verdicts = moderator.check_batch(
        [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}] for row in rows]
    )
    stopped = sum(verdict.blocked for verdict in verdicts)
    return share("everyday answers stopped, output moderation", stopped / len(rows), len(rows))


if __name__ == "__main__":
    sys.exit(main())
