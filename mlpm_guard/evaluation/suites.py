"""Public test sets in the formats of their publishers, read from local files, and the suite of them that the paper reports.

Which rows count and what makes one unsafe follows the code of the paper (Chrabąszcz et al., arXiv 2502.16174), so that figures
can stand beside its own. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from mlpm_guard.datafiles import DataFile, Record, Row, missing_column
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.verdict import Target

_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".csv", ".csv.gz", ".parquet")
_OPENAI_FLAGS = {
    "S": "sexual",
    "H": "hate",
    "V": "violence",
    "HR": "harassment",
    "SH": "self-harm",
    "S3": "sexual/minors",
    "H2": "hate/threatening",
    "V2": "violence/graphic",
}
_ANNOTATORS = ("labels_0", "labels_1", "labels_2")


class _Labelled(NamedTuple):
    conversation: str | list[dict[str, Any]]
    unsafe: bool
    category: str | None = None
    id: str | None = None


_Read: TypeAlias = Callable[["_Row"], "_Labelled | None"]


@dataclass(frozen=True)
class TestSet:
    """A public test set as its publisher ships it.

    Attributes:
        key: its name here; a file `<key>.csv` (or .jsonl, .parquet, ...) of its format is found as well.
        title: its name in the paper.
        files: names of the publisher's files, any of them; a name with a folder must lie in that folder.
        columns: columns that are read.
        target: what a guard of it judges: the prompts, or the answers.
        rule: which rows count, and what makes one unsafe.
        published: F1 times 100 that the paper reports, by the guard it is of; not measured by this project.
    """

    __test__ = False

    key: str
    title: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    target: Target
    rule: str
    published: Mapping[str, float]
    _read: _Read

    def records(self, path: str | Path) -> Iterator[Record]:
        """The rows that count, from a local file, with label, category and this set's key as source.

        Raises:
            DataError: it cannot be read, a row lacks a column or holds a bad value; names the line.
            ConfigurationError: it is Parquet, and pyarrow is not installed.
        """
        file = DataFile(path)
        counted = False
        for line, row in file.rows(self.columns):
            found = self._read(_Row(self, file.path, line, row))
            if found is not None:
                counted = True
                yield Record(line, found.id, found.conversation, int(found.unsafe), self.key, found.category)
        if not counted:
            raise DataError(f"{file.path} holds no row of {self.title} that counts: {self.rule}")

    def find(self, folder: str | Path) -> Path | None:
        """The file of this set in a folder or below it; the first by its path where there are several.

        Raises:
            DataError: there is no such folder.
        """
        return _find(self, _files(folder))


class _Row:
    """A row of a publisher's file, read with errors that name its line and never what stands there."""

    def __init__(self, test_set: TestSet, path: Path, line: int, row: Row) -> None:
        self._set = test_set
        self._path = path
        self._line = line
        self._row = row

    def __contains__(self, column: str) -> bool:
        return column in self._row

    def get(self, column: str) -> object:
        if column not in self._row:
            raise DataError(
                f"{missing_column(self._path, self._line, column, self._row)}. {self._set.title} is read in its publisher's "
                f"format, with {', '.join(self._set.columns)}."
            )
        return self._row[column]

    def text(self, *columns: str) -> str:
        """The text in the first of these columns that there is."""
        column = next((name for name in columns if name in self._row), columns[0])
        value = self.get(column)
        if not isinstance(value, str):
            raise self.bad(column, "holds no text")
        return value

    def name(self, column: str) -> str | None:
        """A name in a column that may be missing or empty."""
        value = self._row.get(column)
        return str(value) if isinstance(value, (str, int)) and value != "" else None

    def known(self, column: str) -> bool:
        """Whether a column is there and holds a value."""
        value = self._row.get(column)
        # NaN is how tables write a missing flag.
        return value is not None and value != "" and value == value

    def flag(self, column: str) -> bool:
        value = self.get(column)
        known = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
        flag = known.get(str(value).strip().lower())
        if flag is None:
            raise self.bad(column, "holds neither 0 nor 1, true nor false")
        return flag

    def one_of(self, column: str, unsafe: str, safe: str) -> bool:
        value = self.text(column).strip().lower()
        if value not in (unsafe, safe):
            raise self.bad(column, f"holds neither {unsafe!r} nor {safe!r}")
        return value == unsafe

    def bad(self, column: str, what: str) -> DataError:
        return DataError(f"{self._path}, line {self._line}: {column!r} {what}, which {self._set.title} always does")


def _openai(row: _Row) -> _Labelled | None:
    # A category that is missing or null is one that nobody judged; a row without any has no label.
    known = [flag for flag in _OPENAI_FLAGS if row.known(flag)]
    if not known:
        return None
    found = [_OPENAI_FLAGS[flag] for flag in known if row.flag(flag)]
    return _Labelled(row.text("prompt"), bool(found), found[0] if found else None)


def _xstest(row: _Row) -> _Labelled | None:
    # Version 2 had no labels of its own: what contrasts with a safe type is unsafe.
    labelled = "label" in row
    unsafe = row.one_of("label", "unsafe", "safe") if labelled else row.text("type").startswith("contrast_")
    return _Labelled(row.text("prompt"), unsafe, row.name("type"), row.name("id") or row.name("id_v2"))


def _harmbench(row: _Row) -> _Labelled | None:
    if row.text("FunctionalCategory") not in ("standard", "copyright"):
        return None
    return _Labelled(row.text("Behavior"), True, row.name("SemanticCategory"), row.name("BehaviorID"))


def _toxicchat(row: _Row) -> _Labelled | None:
    if not row.flag("human_annotation"):
        return None
    unsafe = row.flag("toxicity")
    category = "jailbreaking" if unsafe and row.flag("jailbreaking") else None
    return _Labelled(row.text("user_input"), unsafe, category, row.name("conv_id"))


def _wildguard(row: _Row) -> _Labelled | None:
    row.get("prompt_harm_label")
    if not row.known("prompt_harm_label"):
        return None
    unsafe = row.one_of("prompt_harm_label", "harmful", "unharmful")
    return _Labelled(row.text("prompt"), unsafe, row.name("subcategory") if unsafe else None)


def _aegis(row: _Row) -> _Labelled | None:
    if row.text("text_type") != "user_message":
        return None
    labels = [row.text(annotator) for annotator in _ANNOTATORS]
    unsafe = labels.count("Safe") <= 1
    named = Counter(label for label in labels if label not in ("Safe", "None", ""))
    category = named.most_common(1)[0][0] if unsafe and named else None
    return _Labelled(row.text("text").strip(), unsafe, category, row.name("id"))


def _simple_safety(row: _Row) -> _Labelled | None:
    return _Labelled(row.text("prompts_final", "prompt"), True, row.name("harm_area"), row.name("id"))


def _beavertails(row: _Row) -> _Labelled | None:
    flags = row.get("category")
    named = [str(name) for name, flag in flags.items() if flag] if isinstance(flags, dict) else []
    conversation = [{"role": "user", "content": row.text("prompt")}, {"role": "assistant", "content": row.text("response")}]
    unsafe = not row.flag("is_safe")
    return _Labelled(conversation, unsafe, named[0] if unsafe and named else None)


_LLAMA, _AEGIS_GUARD, _WILDGUARD = "Llama Guard 3 8B", "Aegis-Defensive 7B", "WildGuard 7B"
_MLPM = "MLPM, OLMo2-7B-Instruct, best per set"


def _published(llama: float, aegis: float, wildguard: float, mlpm: float) -> dict[str, float]:
    return {_LLAMA: llama, _AEGIS_GUARD: aegis, _WILDGUARD: wildguard, _MLPM: mlpm}


SETS: tuple[TestSet, ...] = (
    TestSet(
        "aegis",
        "Aegis",
        tuple(
            f"Content Moderation Extracted Annotations 02.08.24_test_release_0418_v1{suffix}" for suffix in (".parquet", ".csv")
        ),
        ("id", "text", "text_type", *_ANNOTATORS),
        "prompt",
        "text_type is user_message; unsafe where at most one of the first three annotators says Safe",
        _published(71.7, 81.0, 89.8, 89.2),
        _aegis,
    ),
    TestSet(
        "harmbench",
        "HarmBench",
        ("harmbench_behaviors_text_test.csv",),
        ("Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID"),
        "prompt",
        "FunctionalCategory is standard or copyright; all unsafe",
        _published(98.9, 70.5, 99.4, 100.0),
        _harmbench,
    ),
    TestSet(
        "openai_mod",
        "OpenAI-Mod",
        ("samples-1680.jsonl.gz", "samples-1680.jsonl", "openai_moderation_evaluation_dataset.jsonl"),
        ("prompt", *_OPENAI_FLAGS),
        "prompt",
        "any category is 0 or 1; unsafe where one is 1",
        _published(79.1, 76.4, 72.3, 74.2),
        _openai,
    ),
    TestSet(
        "simple_safety_tests",
        "SimpleSafety",
        ("SimpleSafetyTests - test cases.csv", "sst_test_cases.csv"),
        ("id", "harm_area", "prompts_final"),
        "prompt",
        "all rows; all unsafe",
        _published(99.5, 98.0, 99.5, 100.0),
        _simple_safety,
    ),
    TestSet(
        "toxicchat",
        "ToxicChat",
        ("toxic-chat_annotation_test.csv",),
        ("conv_id", "user_input", "human_annotation", "toxicity", "jailbreaking"),
        "prompt",
        "human_annotation is true; unsafe where toxicity is 1",
        _published(54.1, 75.6, 70.1, 76.5),
        _toxicchat,
    ),
    TestSet(
        "wildguardtest",
        "WildGuardTest",
        ("wildguard_test.parquet",),
        ("prompt", "prompt_harm_label", "subcategory"),
        "prompt",
        "prompt_harm_label is given; unsafe where it is harmful",
        _published(76.8, 72.1, 88.0, 88.5),
        _wildguard,
    ),
    TestSet(
        "xstest",
        "XSTest",
        ("xstest_prompts.csv", "xstest_v2_prompts.csv"),
        ("id", "prompt", "type", "label"),
        "prompt",
        "all rows; unsafe as labelled, or where the type starts with contrast_",
        _published(88.5, 81.5, 95.3, 97.4),
        _xstest,
    ),
    TestSet(
        "beavertails",
        "BeaverTails",
        ("30k/test.jsonl.gz", "30k_test/0000.parquet"),
        ("prompt", "response", "category", "is_safe"),
        "response",
        "all rows; unsafe where is_safe is false",
        {},
        _beavertails,
    ),
)
"""The sets that can be read."""

SUITES: Mapping[str, tuple[TestSet, ...]] = {"paper": SETS}
"""Suites by name."""


def find_set(key: str) -> TestSet:
    """The set of that key.

    Raises:
        ConfigurationError: there is none; lists those that there are.
    """
    for each in SETS:
        if each.key == key:
            return each
    raise ConfigurationError(f"no test set of that name; there are {', '.join(each.key for each in SETS)}")


def locate(sets: Sequence[TestSet], folder: str | Path) -> dict[str, Path]:
    """The files of sets in a folder or below it, by the sets' keys; a set without a file is left out.

    Raises:
        DataError: there is no such folder.
    """
    files = _files(folder)
    return {each.key: path for each in sets if (path := _find(each, files)) is not None}


def _files(folder: str | Path) -> list[Path]:
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; give the one that the test sets' files lie in")
    return sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names)


def _find(test_set: TestSet, files: Sequence[Path]) -> Path | None:
    wanted = [tuple(name.lower().split("/")) for name in (*test_set.files, *(test_set.key + suffix for suffix in _SUFFIXES))]
    for name in wanted:
        for path in files:
            if tuple(part.lower() for part in path.parts[-len(name) :]) == name:
                return path
    return None
