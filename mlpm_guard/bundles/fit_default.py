"""Fits the default bundle: the recipe of the guard that ships, from labelled public prompts to `default/`.

    python mlpm_guard/bundles/fit_default.py DATA_FOLDER
    python mlpm_guard/bundles/fit_default.py DATA_FOLDER --categories-only

DATA_FOLDER (or MLPM_GUARD_DATA) has a folder `train` with one gzip JSON Lines file a source: `id`, `text`, `label` (1 unsafe),
`category`, `source_category`. With `--categories-only` the bundle that is there keeps its scores to the last bit, and learns
which of its training prompts belong to which category. Uses public API only. Deterministic: rows are drawn by a seeded hash of
their ids.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mlpm_guard import Guard
from mlpm_guard.bundles.augment import augmented, fillers
from mlpm_guard.bundles.phrases import messages, minimal_pairs

SEED = 0
ROWS_PER_SOURCE = 1300
SAMPLE_SIZE = 1950

# Fewer rows of sources whose texts are cut from one pattern, or whose label is not about a harmful request; more of the
# languages that are rare elsewhere, and all of the short everyday requests.
ROWS_OF = {
    "banking77": 6000,
    "clinc150": 6000,
    "nq_open": 6000,
    "xquad_questions": 2600,
    # Attacks on the instructions rather than harmful requests; many carry no harmful payload.
    "cyberseceval_prompt_injection": 100,
    "deepset_prompt_injections": 100,
    "inthewild_jailbreak": 100,
    # Many rows from few templates, or from few questions in many wrappers.
    "latent_jailbreak": 50,
    "sap200": 300,
    "aart": 600,
    # Almost all unsafe and in Chinese: more of them make Chinese itself look unsafe.
    "jade_db": 400,
    "trustllm": 700,
    "hatecheck": 600,
    "cyberseceval_interpreter": 200,
    "cyberseceval_mitre": 400,
    "gsm8k": 500,
    "bbq_sample": 500,
}

# Beyond those rows, harmless ones only: statements that are rude or speak of those who are hated elsewhere.
MORE_HARMLESS = {"hatecheck": 250, "realtoxicityprompts_sub": 250}

# Beyond those rows, all harmless ones in languages whose harmless questions were flagged far more often than others'.
ALL_HARMLESS_IN = {"xquad_questions": ("th", "tr", "vi", "zh")}

# Scenarios whose questions most policies answer.
DROPPED_CATEGORIES = {
    "forbidden_questions": {
        "Political Lobbying",
        "Legal Opinion",
        "Financial Advice",
        "Health Consultation",
        "Gov Decision",
    },
}

# Written for this project: prompts on both sides of the border; and business, Chinese, security, everyday and web texts as they
# come in traffic, harmless ones beside unsafe ones of the same voice.
TWINS = {"benign_twins": 0, "unsafe_twins": 1}
TRAFFIC = {"traffic_benign": 0, "traffic_unsafe": 1}
WRITTEN = {**TWINS, **TRAFFIC}
COPIES, FILLER, PAIRS = "copies", "fillers", "minimal_pairs"

# The threshold flags this share of held-out everyday questions at most, none of which was trained on.
EVERYDAY = ("clinc150", "banking77", "nq_open")
EVERYDAY_FLAGGED = 0.0045


@dataclass(frozen=True)
class Row:
    """One labelled prompt."""

    source: str
    text: str
    label: int
    category: str | None = None


def id_stem(source: str, row_id: str) -> str:
    """What translations of one prompt share."""
    return row_id.rsplit("-", 1)[0] if source in {"multijail", "xquad_questions"} else row_id


def held_out(source: str, row_id: str) -> bool:
    """Whether a row is kept for measuring."""
    return int(hashlib.sha1(id_stem(source, row_id).encode()).hexdigest(), 16) % 10 == 0  # noqa: S324


def read(path: Path) -> Iterator[dict[str, object]]:
    """Rows of one source."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def category(row: dict[str, object]) -> str | None:
    """The category of an unsafe row, where it is known."""
    found = row.get("category")
    return None if found in {None, "other"} or int(str(row["label"])) == 0 else str(found)


def training_rows(
    folder: Path,
    rows_of: Mapping[str, int] = ROWS_OF,
    more_harmless: Mapping[str, int] = MORE_HARMLESS,
    languages: Mapping[str, Sequence[str]] = ALL_HARMLESS_IN,
) -> list[Row]:
    """Rows to learn from, in a fixed order.

    Args:
        folder: with one file a source.
        rows_of: rows of a source at most.
        more_harmless: harmless ones beyond those, of a source at most; of no source that is also in `languages`.
        languages: of a source, the languages whose harmless rows are all learned.
    """
    rows: list[Row] = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        source = path.name.removesuffix(".jsonl.gz")
        dropped = DROPPED_CATEGORIES.get(source, set())
        usable = [
            row for row in read(path) if not held_out(source, str(row["id"])) and row.get("source_category") not in dropped
        ]
        usable.sort(key=lambda row: hashlib.sha256(f"{SEED}|{row['id']}".encode()).digest())
        most = rows_of.get(source, ROWS_PER_SOURCE)
        harmless = [row for row in usable[most:] if int(str(row["label"])) == 0]
        chosen = usable[:most] + harmless[: more_harmless.get(source, 0)]
        chosen += [row for row in harmless if row.get("lang") in languages.get(source, ())]
        rows += [
            Row(source, str(row["text"]), int(str(row["label"])), category(row)) for row in chosen if str(row["text"]).strip()
        ]
    # A few prompts stand in two sources with different labels: nothing can be learned from those.
    labels: dict[str, set[int]] = {}
    for row in rows:
        labels.setdefault(row.text, set()).add(row.label)
    rows = [row for row in rows if len(labels[row.text]) == 1]
    rows.sort(key=lambda row: hashlib.sha256(f"{SEED}|{row.source}|{row.text}".encode()).digest())
    return rows


def written_rows(files: Mapping[str, int] = WRITTEN) -> list[Row]:
    """Rows that this project wrote, by the stems of their files, whose labels are given."""
    rows: list[Row] = []
    for name, label in files.items():
        for line in (Path(__file__).resolve().parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append(Row(name, row["text"], label, row.get("category")))
    return rows


def rows_to_learn(
    folder: Path,
    rows_of: Mapping[str, int] = ROWS_OF,
    more_harmless: Mapping[str, int] = MORE_HARMLESS,
    languages: Mapping[str, Sequence[str]] = ALL_HARMLESS_IN,
    files: Mapping[str, int] = WRITTEN,
) -> list[Row]:
    """The public rows (see `training_rows`), then the project's own; no text twice with two labels."""
    public, written = training_rows(folder, rows_of, more_harmless, languages), written_rows(files)
    own = {row.text for row in written}
    return [row for row in public if row.text not in own] + written


def rows_and_pairs(folder: Path) -> list[Row]:
    """The rows to learn, and minimal pairs that are not among them."""
    rows = rows_to_learn(folder)
    known = {row.text for row in rows}
    return rows + [Row(PAIRS, pair.text, pair.label) for pair in minimal_pairs(seed=SEED) if pair.text not in known]


def rows_with_copies(folder: Path) -> list[Row]:
    """What the prototypes are fitted on: rows and pairs, fillers, and copies: disguised, wrapped, padded, or as messages."""
    rows = rows_and_pairs(folder)
    originals = [row for row in rows if row.source != PAIRS]
    known = {row.text for row in rows}
    copies: dict[str, Row] = {}
    for copy in chain(augmented(originals, seed=SEED), messages(originals, seed=SEED)):
        if copy.text not in known:
            copies.setdefault(copy.text, Row(f"{COPIES}:{copy.transformation}", copy.text, copy.label))
    padding = fillers([row.text for row in originals if row.label == 0], seed=SEED)
    return [*rows, *copies.values(), *(Row(FILLER, text, 0) for text in padding if text not in known)]


def everyday_rows(folder: Path) -> list[str]:
    """Held-out harmless everyday questions."""
    return [
        str(row["text"])
        for source in EVERYDAY
        for row in read(folder / f"{source}.jsonl.gz")
        if held_out(source, str(row["id"]))
    ]


def lowest_threshold(scores: Sequence[float], flagged: float = EVERYDAY_FLAGGED) -> float:
    """The lowest threshold of three digits that flags no more than a share of some scores."""
    ranked = sorted(scores, reverse=True)
    passing = ranked[int(flagged * len(ranked) + 1e-9)]
    thousandths = math.floor(passing * 1000)
    return next(step / 1000 for step in range(thousandths, thousandths + 3) if step / 1000 > passing)


def middle_threshold(scores: Sequence[float], flagged: float = EVERYDAY_FLAGGED) -> float:
    """As `lowest_threshold`, in the middle of the gap: as far from the scores that it flags as from those that it lets pass."""
    lowest = lowest_threshold(scores, flagged)
    above = [score for score in scores if score >= lowest]
    below = max(score for score in scores if score < lowest)
    return max(lowest, math.floor((below + min(above)) / 2 * 1000) / 1000) if above else lowest


def fit(data: Path, out: Path) -> Guard:
    """Fit, set the threshold, save."""
    rows = rows_with_copies(data / "train")
    guard = Guard().fit(
        [row.text for row in rows],
        [row.label for row in rows],
        [row.category for row in rows],
        sample_size=SAMPLE_SIZE,
    )
    verdicts = guard.check_batch(everyday_rows(data / "train"))
    # What could not be judged is flagged, as a gate would.
    guard.threshold = middle_threshold([1.0 if verdict.score is None else verdict.score for verdict in verdicts])
    sources = {source: sum(row.source == source for row in rows) for source in sorted({row.source for row in rows})}
    guard.save_pretrained(
        out,
        notes={
            "description": "Default prompt guard on all-MiniLM-L6-v2, fitted on public research data.",
            "license": "Apache-2.0",
            "seed": SEED,
            "prompts": {"safe": sum(row.label == 0 for row in rows), "unsafe": sum(row.label == 1 for row in rows)},
            "prompts_per_source": sources,
            "threshold_rule": f"flags at most {EVERYDAY_FLAGGED:.2%} of held-out rows of {', '.join(EVERYDAY)}, "
            "in the middle of the gap between the last of those and the next",
        },
    )
    return guard


def add_categories(data: Path, out: Path) -> Guard:
    """Learn the categories of the prompts that the bundle in `out` was fitted on; its scores stay what they are."""
    rows = [row for row in rows_to_learn(data / "train") if row.category is not None]
    guard = Guard.from_pretrained(out)
    guard.assign_categories([row.text for row in rows], [row.category for row in rows])
    guard.save_pretrained(out)
    return guard


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("MLPM_GUARD_DATA"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "default")
    parser.add_argument("--categories-only", action="store_true", help="leave the scores of the bundle as they are")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("no data folder: give it as an argument, or set MLPM_GUARD_DATA")
    if not (Path(options.data) / "train").is_dir():
        sys.exit(f"{options.data} has no folder named train")
    guard = (add_categories if options.categories_only else fit)(Path(options.data), options.out)
    print(f"saved {guard.bundle_id} to {options.out}, threshold {guard.threshold}")
    print(f"categories: {', '.join(guard.list_categories())}")


if __name__ == "__main__":
    main()
