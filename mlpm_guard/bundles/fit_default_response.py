"""Fits the default response bundle: the recipe of the moderator that ships, from labelled answers to `default-response/`.

    python mlpm_guard/bundles/fit_default_response.py DATA_FOLDER

DATA_FOLDER (or MLPM_GUARD_DATA) has a folder `response` with one gzip JSON Lines file a source: `id`, `prompt`, `text` (the
answer), `label` (1 harmful answer); and the folder `train` of `fit_default.py`. Uses public API only. Deterministic: rows are
drawn by a seeded hash of their ids.

Public answers are nearly all answers to harmful requests: from them alone a guard learns that whatever is helpful is harmful.
So it also learns from everyday answers and from answers that do not comply with harmful requests, which lie beside this file,
and from harmless public texts and prompts read as answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpm_guard import Guard
from mlpm_guard.bundles.fit_default import SEED, TWINS, held_out, read, written_rows
from mlpm_guard.evaluation.metrics import compute

# Fewer than there are harmful answers: a class that fits whole into the sample is saved row by row, in full precision.
SAMPLE_SIZE = 1000
ANSWERS = ("gptfuzz_resp", "jbb_artifacts_resp")
TEST_SETS = ("harmbench_resp", "jbb_judge_comparison")
LICENCES = {
    "gptfuzz_resp": "MIT",
    "jbb_artifacts_resp": "MIT",
    "dolly_1k": "CC-BY-SA-3.0",
    "bbq_sample": "CC-BY-4.0",
    "arena_hard": "Apache-2.0",
    "self_instruct": "Apache-2.0",
    "safetext": "MIT",
    "cyberseceval_frr": "MIT",
    "trustllm": "MIT",
    "fuzzyai": "Apache-2.0",
    "deepset_prompt_injections": "Apache-2.0",
    "coconot": "MIT",
    "gsm8k": "MIT",
    "oasst_small": "Apache-2.0",
    "awesome_chatgpt_prompts": "CC0-1.0",
    "gpteacher": "MIT",
    "nq_open": "Apache-2.0",
    "clinc150": "CC-BY-3.0",
    "banking77": "CC-BY-4.0",
    "certified_safe_prompts": "MIT",
    "xquad_questions": "CC-BY-SA-4.0",
    "cyberseceval_instruct": "MIT",
    "realtoxicityprompts_sub": "Apache-2.0",
    "hatecheck": "CC-BY-4.0",
    "benign_twins": "Apache-2.0",
    "everyday_answers": "Apache-2.0",
    "harmless_answers": "Apache-2.0",
}

# Hundreds of answers to one question say little more than a few of each label.
ANSWERS_PER_QUESTION = 4

# Harmless texts read as answers: what reads like one first of all, and fewer prompts of every other kind.
HARMLESS = ("dolly_1k", "bbq_sample", "arena_hard", "self_instruct", "safetext", "cyberseceval_frr")
ALSO_HARMLESS = (
    "trustllm",
    "fuzzyai",
    "deepset_prompt_injections",
    "coconot",
    "gsm8k",
    "oasst_small",
    "awesome_chatgpt_prompts",
    "gpteacher",
    "nq_open",
    "clinc150",
    "banking77",
    "certified_safe_prompts",
    "xquad_questions",
    "cyberseceval_instruct",
    "realtoxicityprompts_sub",
    "hatecheck",
)
HARMLESS_ROWS, ALSO_HARMLESS_ROWS, TWIN_ROWS = 60, 40, 200
LONGEST = 3000

# The threshold flags this share of held-out harmless texts, none of which was trained on, as many of each source at most.
HELD_OUT = (*HARMLESS, "coconot", "gpteacher", "oasst_small", "certified_safe_prompts", "nq_open", "hatecheck")
HELD_OUT_ROWS = 100
HELD_OUT_FLAGGED = 0.004

HERE = Path(__file__).resolve().parent
EVERYDAY = HERE / "everyday_answers.jsonl"
NOT_COMPLYING = HERE / "harmless_answers.jsonl"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SHORTEST = 5
_JOINED_STEPS = (1, 7)


@dataclass(frozen=True)
class Row:
    """One labelled answer; without a prompt where none belongs to it."""

    source: str
    prompt: str | None
    text: str
    label: int

    @property
    def conversation(self) -> list[dict[str, str]]:
        """What a response guard is asked about."""
        answer = {"role": "assistant", "content": self.text}
        return [answer] if self.prompt is None else [{"role": "user", "content": self.prompt}, answer]


def drawn(rows: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """Rows in a random order that depends on the seed and their ids only."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{SEED}|{row['id']}".encode()).digest())


def public_answers(folder: Path, source: str, per_question: int = ANSWERS_PER_QUESTION) -> Iterator[Row]:
    """Answers of one source, each once, and a limited number of either label to each question."""
    seen: set[tuple[str, str]] = set()
    counts: Counter[tuple[str, int]] = Counter()
    for row in drawn(read(folder / f"{source}.jsonl.gz")):
        prompt, text, label = str(row["prompt"]), str(row["text"]), int(str(row["label"]))
        if text.strip() and (prompt, text) not in seen and counts[prompt, label] < per_question:
            seen.add((prompt, text))
            counts[prompt, label] += 1
            yield Row(source, prompt, text, label)


def everyday_answers() -> Iterator[Row]:
    """Harmless answers: whole, sentence by sentence as streams are judged, and two in a row as windows of a long one look."""
    pairs = [json.loads(line) for line in EVERYDAY.read_text(encoding="utf-8").splitlines()]
    answers = [str(pair["response"]) for pair in pairs]
    for pair, answer in zip(pairs, answers, strict=True):
        yield Row("everyday_answers", pair["prompt"], answer, 0)
        pieces = [*answer.split("\n\n"), *_SENTENCE_END.split(answer)]
        for piece in dict.fromkeys(piece.strip() for piece in pieces):
            if len(piece.split()) >= _SHORTEST and piece != answer:
                yield Row("everyday_answers", None, piece, 0)
    for step in _JOINED_STEPS:
        for index, answer in enumerate(answers):
            yield Row("everyday_answers", None, f"{answer}\n\n{answers[(index + step) % len(answers)]}", 0)


def harmless_answers() -> Iterator[Row]:
    """Refusals, deflections and answers to a harmless reading of a harmful request, and helpful ones to alarming prompts."""
    for line in NOT_COMPLYING.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        yield Row("harmless_answers", pair["prompt"], pair["response"], 0)


def harmless_texts(folder: Path, source: str, limit: int, *, kept_out: bool) -> Iterator[Row]:
    """Harmless texts of one source, from its rows for measuring or from the others."""
    usable = [
        row
        for row in read(folder / f"{source}.jsonl.gz")
        if held_out(source, str(row["id"])) == kept_out
        and int(str(row["label"])) == 0
        and str(row["text"]).strip()
        and len(str(row["text"])) <= LONGEST
    ]
    for row in drawn(usable)[:limit]:
        yield Row(source, None, str(row["text"]), 0)


def twin_texts() -> Iterator[Row]:
    """Harmless prompts that sound alarming, read as answers."""
    twins: list[dict[str, object]] = [{"id": row.text, "text": row.text} for row in written_rows(TWINS) if row.label == 0]
    for row in drawn(twins)[:TWIN_ROWS]:
        yield Row("benign_twins", None, str(row["text"]), 0)


def training_rows(data: Path, per_question: int = ANSWERS_PER_QUESTION, *, prompts: bool = True) -> list[Row]:
    """Rows to learn from, in a fixed order.

    Args:
        data: folder with `response` and `train`.
        per_question: answers of either label to a public question at most.
        prompts: with harmless prompts read as answers, beside texts that read like one.
    """
    rows = [row for source in ANSWERS for row in public_answers(data / "response", source, per_question)]
    rows += [*everyday_answers(), *harmless_answers()]
    rows += [row for source in HARMLESS for row in harmless_texts(data / "train", source, HARMLESS_ROWS, kept_out=False)]
    if prompts:
        for source in ALSO_HARMLESS:
            rows += harmless_texts(data / "train", source, ALSO_HARMLESS_ROWS, kept_out=False)
        rows += twin_texts()
    rows.sort(key=lambda row: hashlib.sha256(f"{SEED}|{row.source}|{row.prompt}|{row.text}".encode()).digest())
    return rows


def scores(guard: Guard, rows: Iterable[Row]) -> list[float]:
    """Probability of a harmful answer."""
    verdicts = guard.check_batch([row.conversation for row in rows])
    return [1.0 if verdict.score is None else verdict.score for verdict in verdicts]


def figures(guard: Guard, data: Path) -> dict[str, dict[str, float | int | None]]:
    """How the finished guard does on the test sets, at its threshold."""
    found: dict[str, dict[str, float | int | None]] = {}
    for source in TEST_SETS:
        rows = [
            Row(source, str(row["prompt"]), str(row["text"]), int(str(row["label"])))
            for row in read(data / "response" / f"{source}.jsonl.gz")
        ]
        of = scores(guard, rows)
        metrics = compute([row.label for row in rows], of, [score >= guard.threshold for score in of])
        found[source] = {
            "rows": metrics.n,
            "average_precision": _rounded(metrics.average_precision),
            "harmful_flagged": _rounded(metrics.recall),
            "harmless_flagged": _rounded(metrics.false_positive_rate),
        }
    return found


def fit(data: Path, out: Path) -> Guard:
    """Fit and finish."""
    rows = training_rows(data)
    guard = Guard(target="response")
    guard.fit([row.conversation for row in rows], [row.label for row in rows], sample_size=SAMPLE_SIZE)
    return finish(guard, rows, data, out)


def finish(guard: Guard, rows: Sequence[Row], data: Path, out: Path) -> Guard:
    """Set the threshold, measure, save."""
    kept = [row for source in HELD_OUT for row in harmless_texts(data / "train", source, HELD_OUT_ROWS, kept_out=True)]
    guard.threshold = round(float(np.quantile(scores(guard, kept), 1.0 - HELD_OUT_FLAGGED)), 3)
    guard.save_pretrained(
        out,
        notes={
            "description": "Default response guard on all-MiniLM-L6-v2, fitted on public research data.",
            "license": "Apache-2.0",
            "seed": SEED,
            "answers": {"safe": sum(row.label == 0 for row in rows), "unsafe": sum(row.label == 1 for row in rows)},
            "answers_per_source": {source: sum(row.source == source for row in rows) for source in LICENCES},
            "licenses_of_sources": LICENCES,
            "threshold_rule": f"flags {HELD_OUT_FLAGGED:.1%} of {len(kept)} held-out harmless texts of {', '.join(HELD_OUT)}",
            "figures": figures(guard, data),
        },
    )
    return guard


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("MLPM_GUARD_DATA"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "default-response")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("no data folder: give it as an argument, or set MLPM_GUARD_DATA")
    for name in ("response", "train"):
        if not (Path(options.data) / name).is_dir():
            sys.exit(f"{options.data} has no folder named {name}")
    guard = fit(Path(options.data), options.out)
    print(f"saved {guard.bundle_id} to {options.out}, threshold {guard.threshold}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


if __name__ == "__main__":
    main()
