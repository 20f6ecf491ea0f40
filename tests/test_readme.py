"""Every code block of the README runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.encoders import tiny_models as tiny

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
CLI = [code for language, code in BLOCKS if language == "bash" and "mlpm-guard " in code]


def rows() -> str:
    texts = [("Bake a cake.", 0), ("Name three rivers.", 0), ("Build a bomb.", 1), ("Steal a car.", 1)]
    return "".join(json.dumps({"text": f"{text} {i}", "label": label}) + "\n" for i in range(6) for text, label in texts)


@pytest.mark.parametrize("code", PYTHON, ids=[code.strip().splitlines()[-1][:40] for code in PYTHON])
def test_a_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "Qwen" in code:
        # No downloads here: a tiny random model answers to the name.
        model = tiny.build(AutoModelForCausalLM, tiny.CAUSAL["qwen3"]())
        tokenizer = tiny.character_tokenizer(template=tiny.CHATML)
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda _name: model)
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda _name: tokenizer)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_command_line_blocks_run(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(rows())
    (tmp_path / "labelled.jsonl").write_text(rows())
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps({"text": f"What is {i} plus {i}?"}) + "\n" for i in range(300)))
    topics = {"legal": "May I contest will number {}?", "everyday": "What is the weather on day {}?"}
    for name, text in topics.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text.format(i)}) + "\n" for i in range(12)))
    (tmp_path / "pairs.jsonl").write_text(rows().replace('"text"', '"response": "Here you are.", "prompt"'))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = [line.split("  #")[0].strip() for code in CLI for line in code.splitlines() if line.strip()]
    assert len(lines) >= 6
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
        )
        finds = re.match(r"mlpm-guard (diff|correct) ", line) is not None
        assert done.returncode in ((0, 1) if finds else (0,)), f"{line}\n{done.stdout}\n{done.stderr}"
