"""The prompts that the shipped guards are measured on, from a data folder: test sets, held-out rows, sets to disguise.

DATA_FOLDER has `eval` and `train`, gzip JSON Lines of `id, text, label, category` (in `train` also `lang`). No guard here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlpm_guard.bundles.fit_default import held_out, read
from mlpm_guard.errors import DataError
from mlpm_guard.evaluation.robustness import PromptSet

SAFE, UNSAFE = 0, 1

EVERYDAY = ("mt_vicuna_bench", "mmlu_sample", "truthfulqa", "humaneval")
"""Harmless test sets; together they are what operating points are measured by."""

QUESTIONS = ("clinc150", "banking77", "nq_open")
"""Harmless training sources whose held-out rows are short everyday questions."""

TRANSLATED = ("multijail", "xquad_questions")
"""Sources that say the same in several languages; the first is harmful, the second harmless."""

STANDARD, COPYRIGHT = "harmbench standard", "harmbench copyright"

# Held-out requests in plain words; sets of jailbreaks, of toxic statements and of near-identical rows are left out.
_PLAIN_HARMFUL = ("advbench", "aart", "catqa", "dangerousqa", "forbidden_questions", "fuzzyai", "multijail")
_PLAIN_HARMLESS = (*QUESTIONS, "arena_hard", "certified_safe_prompts", "coconot", "dolly_1k", "gpteacher", "self_instruct")
_LONGEST = 600


class Prompt(NamedTuple):
    """A labelled prompt.

    Attributes:
        id: of the row.
        source: stem of its file's name.
        text: the prompt.
        label: 1 unsafe, 0 safe.
        category: of an unsafe prompt, where it is known.
        language: its code, where it is known.
    """

    id: str
    source: str
    text: str
    label: int
    category: str | None
    language: str | None


def prompts(folder: Path, source: str) -> list[Prompt]:
    """Rows of one file, blank ones left out.

    Raises:
        DataError: there is no such file, it has no prompts, or a row of it lacks something; names the row.
    """
    path = folder / f"{source}.jsonl.gz"
    try:
        found = [_prompt(path, number, source, row) for number, row in enumerate(read(path), 1)]
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read ({type(error).__name__}); it is a gzip file of JSON Lines") from None
    found = [prompt for prompt in found if prompt.text.strip()]
    if not found:
        raise DataError(f"{path} holds no prompts")
    return found


def evaluation_sets(data: Path) -> dict[str, list[Prompt]]:
    """The test sets by name. No recipe learns from them. HarmBench's requests for copyrighted text are a set of their own."""
    folder = data / "eval"
    harmbench = prompts(folder, "harmbench_guard")
    return {
        "aegis_test": prompts(folder, "aegis_test"),
        "xstest": prompts(folder, "xstest"),
        STANDARD: _filled(STANDARD, [each for each in harmbench if (each.category or "").startswith("standard")]),
        COPYRIGHT: _filled(COPYRIGHT, [each for each in harmbench if (each.category or "").startswith("copyright")]),
        "simple_safety_tests": prompts(folder, "simple_safety_tests"),
        **{name: prompts(folder, name) for name in EVERYDAY},
    }


def questions(data: Path) -> dict[str, list[Prompt]]:
    """Held-out short everyday questions by source."""
    return {name: _filled(name, [each for each in prompts(data / "train", name) if kept_out(each)]) for name in QUESTIONS}


def translations(data: Path, source: str) -> dict[str, list[Prompt]]:
    """Held-out rows of a source by language."""
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts(data / "train", source):
        if kept_out(prompt) and prompt.language is not None:
            found.setdefault(prompt.language, []).append(prompt)
    return dict(sorted(found.items()))


def held_out_prompts(data: Path, limit: int) -> list[Prompt]:
    """Held-out rows of every training source, at most `limit` of each label of each."""
    chosen: list[Prompt] = []
    for path in sorted((data / "train").glob("*.jsonl.gz")):
        kept = [each for each in prompts(data / "train", path.name.removesuffix(".jsonl.gz")) if kept_out(each)]
        for label in (SAFE, UNSAFE):
            chosen += drawn([each for each in kept if each.label == label], limit)
    return chosen


def prompt_sets(data: Path, limit: int) -> list[PromptSet]:
    """The sets that are disguised, wrapped and padded, at most `limit` rows of each."""
    sets = evaluation_sets(data)
    chosen = [
        (STANDARD, sets[STANDARD], True),
        ("simple_safety_tests", sets["simple_safety_tests"], True),
        ("held-out harmful", _plain(data, _PLAIN_HARMFUL, UNSAFE), True),
        ("harmless benchmarks", [each for name in EVERYDAY for each in sets[name]], False),
        ("held-out harmless", _plain(data, _PLAIN_HARMLESS, SAFE), False),
    ]
    return [PromptSet(name, [each.text for each in drawn(rows, limit)], harmful) for name, rows, harmful in chosen]


def kept_out(prompt: Prompt) -> bool:
    """Whether no recipe learns from a row of a training source."""
    return held_out(prompt.source, prompt.id)


def drawn(rows: Iterable[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` rows, by a hash of their ids."""
    return sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:limit]


def _plain(data: Path, names: Sequence[str], label: int) -> list[Prompt]:
    """Held-out English rows; long ones are left out, since padding would not make them longer."""
    return [
        each
        for name in names
        for each in prompts(data / "train", name)
        if each.label == label and each.language == "en" and len(each.text) <= _LONGEST and kept_out(each)
    ]


def _prompt(path: Path, number: int, source: str, row: dict[str, Any]) -> Prompt:
    absent = [name for name in ("id", "text", "label") if row.get(name) is None]
    if absent or row["label"] not in (SAFE, UNSAFE):
        what = f"has no {absent[0]}" if absent else "has a label that is neither 0 nor 1"
        raise DataError(f"{path}, row {number} {what}")
    category, language = row.get("category"), row.get("lang")
    return Prompt(
        str(row["id"]),
        source,
        str(row["text"]),
        int(row["label"]),
        None if category is None else str(category),
        None if language is None else str(language),
    )


def _filled(name: str, rows: list[Prompt]) -> list[Prompt]:
    if not rows:
        raise DataError(f"the data folder holds no rows of the set {name}")
    return rows
