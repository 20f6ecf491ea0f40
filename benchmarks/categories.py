"""Categories: from twenty examples that the guard has never seen, and as the shipped guard names them.

The prompts are not part of this project: the script needs a data folder (an argument, or the environment variable
MLPM_GUARD_DATA) with `train/` and `eval/`, gzip JSON lines of `id, text, label, category, source_category`. Without one it says
so and ends.

Protocol. Every figure of added categories comes from the shipped guard after it has forgotten all rows that belong to what is
added (exact unlearning, `Guard.forget`), so that it is as if fitted without them; then `Guard.add_category` gets 20 examples. A
text is read as its first window. Average precision (AP) depends on how rare the category is among what it is looked for in, so
the share is stated: "as they are" is the share that the rows have, and for "1 in 4", "1 in 10" rows are weighted to that share.
Means over draws and topics.

* Topics: 30 intents of clinc150, of which the guard has forgotten all rows. Examples are 20 of an intent's 40 rows; the
  other 20 are looked for among the rows of the other 29 topics (1 in 59), and among the rows of all other intents (1 in
  299). With negatives: 100 random rows of the 120 intents that are no topics are given as `negatives=` and not measured on.
* Unsafe categories: eleven, each left out in turn. Examples are 20 rows of its training part, five draws; looked for are its
  held-out rows, among everyday prompts (mt_vicuna_bench, mmlu_sample, truthfulqa, humaneval) and among the held-out rows of the
  other ten.
* Names: the shipped guard's likeliest category, by `check_batch`, of every held-out unsafe row whose category is known.

The encoder's adapter is not unlearned: it was trained on rows of clinc150 (as harmless prompts) and of every unsafe category;
what is added here is not new to it.

The settings of the method were chosen on 20 other intents, and on the categories drugs, fraud, hate and privacy; the mean over
the seven others stands beside the mean over all. "Plain" is a single prototype against the midpoint of safe and unsafe with the
guard's tied covariance, on the same draws.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _bench import Figure, figure, options, report, share
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlpm_guard import Guard

EVERYDAY = ("mt_vicuna_bench", "mmlu_sample", "truthfulqa", "humaneval")
UNSAFE = (
    "crime",
    "cyber",
    "drugs",
    "fraud",
    "hate",
    "misinformation",
    "privacy",
    "self_harm",
    "sexual",
    "violence",
    "weapons",
)
CHOSEN_ON = ("drugs", "fraud", "hate", "privacy")
EXAMPLES, DRAWS, TOPICS, TOPICS_CHOSEN_ON, NEGATIVES, SEED = 20, 5, 30, 20, 100, 123
LANGUAGE_IN_ID = ("multijail", "xquad_questions")

Row = dict[str, Any]
States = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass
class Precision:
    """Average precisions of one topic and draw, by what it was looked for in."""

    topic: str
    figures: dict[str, float]


def main() -> int:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", help="data folder; by default the environment variable MLPM_GUARD_DATA")
    parser.add_argument("--bundle", default="default", help="name or folder of another saved guard to measure")
    arguments = parser.parse_args()
    folder = arguments.data or os.environ.get("MLPM_GUARD_DATA")
    if not folder:
        print("categories: skipped, no data folder: give one as an argument or in MLPM_GUARD_DATA")
        return 0
    from mlpm_guard import Guard

    guard = Guard.from_pretrained(arguments.bundle).load()
    data = Path(folder)
    seconds: list[float] = []
    topics = _topics(guard, data, seconds, quick=arguments.quick)
    unsafe = _unsafe(guard, data, seconds, quick=arguments.quick)
    figures = [
        *_of_topics(topics),
        *_of_unsafe(unsafe),
        figure("add_category after encoding, 20 examples", seconds, "s", at_most=1.0),
        *_names(guard, data, quick=arguments.quick),
    ]
    per_category = {
        name: {key: round(_mean(unsafe, key, (name,)), 3) for key in unsafe[0].figures if not key.startswith("plain")}
        for name in sorted({each.topic for each in unsafe})
    }
    return report("categories", figures, quick=arguments.quick, bundle=guard.bundle_id, per_category=per_category)


# -- topics of a user ---------------------------------------------------------------------------------------------------------


def _topics(guard: Guard, data: Path, seconds: list[float], *, quick: bool) -> list[Precision]:
    rows = [row for row in _rows(data / "train", "clinc150") if row["source_category"] != "oos"]
    guard = _without(guard, _learned(data, ("clinc150",)))
    states = _states(guard, rows)
    intent = np.array([row["source_category"] for row in rows])
    order = np.random.default_rng(SEED).permutation(len(names := sorted(set(intent.tolist()))))
    measured = [names[index] for index in order[TOPICS_CHOSEN_ON : TOPICS_CHOSEN_ON + TOPICS]]
    elsewhere = np.flatnonzero(~np.isin(intent, measured))
    found: list[Precision] = []
    for topic in measured[: 3 if quick else None]:
        rng = np.random.default_rng([SEED, names.index(topic)])
        own = np.flatnonzero(intent == topic)
        given = rng.choice(own, EXAMPLES, replace=False)
        negatives = rng.choice(elsewhere, NEGATIVES, replace=False)
        looked_for = np.setdiff1d(own, given)
        among = {
            "topics": np.flatnonzero(np.isin(intent, measured) & (intent != topic)),
            "all": np.setdiff1d(np.flatnonzero(intent != topic), negatives),
        }
        figures: dict[str, float] = {}
        for kind, chosen in (("", None), ("negatives, ", negatives)):
            scores = _added(
                guard, [rows[index] for index in given], None if chosen is None else [rows[i] for i in chosen], states
            )
            figures |= {kind + name: _precision(scores[looked_for], scores[others]) for name, others in among.items()}
        plain = _plain(guard, states[given], states)
        figures |= {f"plain, {name}": _precision(plain[looked_for], plain[others]) for name, others in among.items()}
        seconds.append(_seconds(guard, states[given]))
        found.append(Precision(topic, figures))
    return found


def _of_topics(found: list[Precision]) -> list[Figure]:
    rows = len(found)
    return [
        share("topics: AP among the other topics, 1 in 59", _mean(found, "topics"), rows, at_least=0.9),
        share("topics: AP among all other intents, 1 in 299", _mean(found, "all"), rows),
        share(
            f"topics: AP among the other topics, {NEGATIVES} negatives", _mean(found, "negatives, topics"), rows, at_least=0.9
        ),
        share(f"topics: AP among all other intents, {NEGATIVES} negatives", _mean(found, "negatives, all"), rows),
        share("topics: AP among the other topics, plain prototype", _mean(found, "plain, topics"), rows),
        share("topics: AP among all other intents, plain prototype", _mean(found, "plain, all"), rows),
    ]


# -- unsafe categories, each left out -----------------------------------------------------------------------------------------


def _unsafe(guard: Guard, data: Path, seconds: list[float], *, quick: bool) -> list[Precision]:
    learned = _learned(data, None)
    everyday = [row for name in EVERYDAY for row in _rows(data / "eval", name)]
    held = [row for row in _held_out(data) if row["category"] in UNSAFE]
    everyday_states, held_states = _states(guard, everyday), _states(guard, held)
    category = np.array([row["category"] for row in held])
    found: list[Precision] = []
    for name in UNSAFE[: 2 if quick else None]:
        own = [row for row in learned if row["category"] == name]
        without = _without(guard, own)
        for draw in range(1 if quick else DRAWS):
            rng = np.random.default_rng([SEED, draw, UNSAFE.index(name)])
            given = [own[index] for index in rng.choice(len(own), EXAMPLES, replace=False)]
            figures: dict[str, float] = {}
            for kind, scored in (
                ("", lambda states, given=given, without=without: _added(without, given, None, states)),
                ("plain, ", lambda states, given=given, without=without: _plain(without, _states(without, given), states)),
            ):
                of_held, of_everyday = scored(held_states), scored(everyday_states)
                for among, others in (("everyday", of_everyday), ("unsafe", of_held[category != name])):
                    for text, part in (("as they are", None), ("1 in 4", 0.25), ("1 in 10", 0.1)):
                        figures[f"{kind}{among}, {text}"] = _precision(of_held[category == name], others, part)
            found.append(Precision(name, figures))
        seconds.append(_seconds(without, _states(without, given)))
    return found


def _of_unsafe(found: list[Precision]) -> list[Figure]:
    rows = len(found)
    others = tuple(name for name in UNSAFE if name not in CHOSEN_ON)
    figures: list[Figure] = []
    for among, target in (("everyday", 0.75), ("unsafe", 0.7)):
        for text in ("as they are", "1 in 4", "1 in 10"):
            key = f"{among}, {text}"
            least = target if text != "1 in 10" else None
            figures.append(share(f"left out: AP among {key}", _mean(found, key), rows, at_least=least))
            figures.append(share(f"left out: AP among {key}, the seven", _mean(found, key, others), rows))
            figures.append(share(f"left out: AP among {key}, plain", _mean(found, f"plain, {key}"), rows))
    return figures


# -- the shipped names --------------------------------------------------------------------------------------------------------


def _names(guard: Guard, data: Path, *, quick: bool) -> list[Figure]:
    known = set(guard.list_categories())
    held = [row for row in _held_out(data) if row["category"] in known]
    if quick:
        held = held[:: max(1, len(held) // 60)]
    verdicts = guard.check_batch([str(row["text"]) for row in held])
    likeliest = [max(verdict.categories, key=verdict.categories.__getitem__) for verdict in verdicts]
    right = [name == row["category"] for name, row in zip(likeliest, held, strict=True)]
    flagged = [(verdict, row) for verdict, row in zip(verdicts, held, strict=True) if verdict.flagged]
    named = [verdict.category == row["category"] for verdict, row in flagged if verdict.category is not None]
    found = sorted({str(row["category"]) for row in held})
    by_category = [np.mean([ok for ok, row in zip(right, held, strict=True) if row["category"] == name]) for name in found]
    return [
        share("names: likeliest category is right", float(np.mean(right)), len(right), at_least=0.72),
        share("names: the same, mean over categories", float(np.mean(by_category)), len(right)),
        share("names: flagged prompts that get a name", len(named) / max(len(flagged), 1), len(flagged)),
        share("names: names given that are right", float(np.mean(named)) if named else 0.0, len(named)),
    ]


# -- how ----------------------------------------------------------------------------------------------------------------------


def _added(guard: Guard, examples: Sequence[Row], negatives: Sequence[Row] | None, states: States) -> Scores:
    """Log-odds of a category that is added to a copy of the guard."""
    mine = copy.copy(guard)
    mine.add_category(
        "measured",
        [str(row["text"]) for row in examples],
        negatives=None if negatives is None else [str(row["text"]) for row in negatives],
    )
    categories = mine.policy().categories
    positions = np.arange(states.shape[1])
    return categories.log_odds(states, positions)[:, categories.names.index("measured")]


def _plain(guard: Guard, examples: States, states: States) -> Scores:
    statistics = guard.classifier.statistics_
    from mlpm_guard.prototypes.category_fitting import scatter_of

    scores = np.zeros(len(states))
    for layer in range(states.shape[1]):
        upper = scatter_of(statistics, layer)
        scatter = np.triu(upper) + np.triu(upper, 1).T
        ridge = np.trace(scatter) / (statistics.count(0) + statistics.count(1) - 1)
        middle = 0.5 * (statistics.means(0)[layer] + statistics.means(1)[layer])
        delta = examples[:, layer].mean(axis=0, dtype=np.float64) - middle
        scores += states[:, layer] @ np.linalg.solve(scatter + ridge * np.eye(len(scatter)), delta)
    return scores


def _seconds(guard: Guard, examples: States) -> float:
    """Seconds that a category takes when its examples are encoded."""
    from mlpm_guard.prototypes.few_shot import add_from_statistics

    statistics = guard.classifier.statistics_
    positions = guard.policy().scorer.positions
    start = time.perf_counter()
    add_from_statistics("measured", examples, None, statistics, positions)
    return time.perf_counter() - start


def _without(guard: Guard, rows: Sequence[Row]) -> Guard:
    """The guard after it has forgotten these rows."""
    return copy.copy(guard).forget([str(row["text"]) for row in rows], [int(row["label"]) for row in rows])


def _states(guard: Guard, rows: Sequence[Row]) -> States:
    """Layer states of the first window of every text."""
    from mlpm_guard.conversation import Conversation, Message
    from mlpm_guard.windows import cut

    encoder = guard.encoder
    texts = [str(row["text"]) for row in rows]
    pieces = [cut(text, spans, guard.window)[0] for text, spans in zip(texts, encoder.spans(texts), strict=True)]
    firsts = [text[piece.start : piece.end] for text, piece in zip(texts, pieces, strict=True)]
    return np.asarray(encoder.encode([Conversation((Message("user", text),)) for text in firsts]), np.float32)


def _learned(data: Path, sources: Sequence[str] | None) -> list[Row]:
    """Rows that the shipped guard was fitted on."""
    from mlpm_guard.bundles.fit_default import training_rows

    return [
        {"text": row.text, "label": row.label, "category": row.category}
        for row in training_rows(data / "train")
        if sources is None or row.source in sources
    ]


def _held_out(data: Path) -> list[Row]:
    """Unsafe rows of the training sets that are kept for measuring and whose category is known."""
    found = []
    for path in sorted((data / "train").glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        for row in _rows(path.parent, name):
            row_id = str(row["id"])
            stem = row_id.rsplit("-", 1)[0] if name in LANGUAGE_IN_ID else row_id
            held = int(hashlib.sha1(stem.encode()).hexdigest(), 16) % 10 == 0
            if held and row["label"] == 1 and row.get("category") not in (None, "other") and str(row["text"]).strip():
                found.append(row)
    return found


def _rows(folder: Path, name: str) -> list[Row]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _precision(inside: Scores, outside: Scores, part: float | None = None) -> float:
    """Average precision, with rows weighted so that `part` of them are inside; None takes them as they are."""
    from sklearn.metrics import average_precision_score

    labels = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    weights = None if part is None else np.where(labels == 1, part / len(inside), (1.0 - part) / len(outside))
    return float(average_precision_score(labels, np.r_[inside, outside], sample_weight=weights))


def _mean(found: Sequence[Precision], key: str, topics: Sequence[str] | None = None) -> float:
    return float(np.mean([each.figures[key] for each in found if topics is None or each.topic in topics]))


if __name__ == "__main__":
    sys.exit(main())
