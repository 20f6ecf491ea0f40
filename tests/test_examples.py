"""Every example runs as it stands and ends by saying what it showed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs_and_ends_with_what_it_showed(path: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].endswith(".")


def test_the_quickstart_shows_what_the_guard_catches_and_its_false_alarm(tmp_path: Path) -> None:
    path = next(path for path in EXAMPLES if path.stem == "quickstart")
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Judged 12 prompts: 7 flagged, 5 allowed." in done.stdout


def test_the_stream_example_stops_one_answer_before_its_model_has_finished(tmp_path: Path) -> None:
    path = next(path for path in EXAMPLES if path.stem == "moderate_a_stream")
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "1 stopped, 1 released unchanged" in done.stdout
    calm, angry = re.findall(r"written (\d+) of (\d+) characters", done.stdout)
    assert calm[0] == calm[1]
    assert int(angry[0]) < int(angry[1])
    assert "hurt" not in done.stdout


def test_the_example_in_the_users_own_model_answers_and_refuses(tmp_path: Path) -> None:
    path = next(path for path in EXAMPLES if path.stem == "guard_my_llm")
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "an answer of 12 tokens, after 12 forward passes" in done.stdout
    assert 'With threshold 0: "I can\'t help with that.", after 1 forward pass' in done.stdout
    assert "Tokens identical to plain generate: True" in done.stdout
    assert "shows the mechanics" in done.stdout


def test_the_policy_example_corrects_adds_a_category_and_keeps_it_when_saved(tmp_path: Path) -> None:
    path = next(path for path in EXAMPLES if path.stem == "my_policy")
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    before, after = re.findall(r"score (\d\.\d+) -> (\d\.\d+)", done.stdout)[0]
    assert float(after) < float(before)
    assert "loaded again: the same judgements" in done.stdout
    assert "2 of 4 new prompts go to a person" in done.stdout
