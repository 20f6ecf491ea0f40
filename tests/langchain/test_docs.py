"""Every Python block of the LangChain page runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "langchain.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=[code.strip().splitlines()[-1][:40] for code in BLOCKS])
def test_a_block_runs(code: str) -> None:
    exec(compile(code, PAGE.name, "exec"), {"__name__": "page"})


def test_the_page_has_the_parts_of_an_integration_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    parts = re.findall(r"^#{2,3} (.+)$", page, flags=re.MULTILINE)
    wanted = ["Overview", "Details", "Features", "Setup", "Credentials", "Installation", "Instantiation", "Use with an agent"]
    assert parts[: len(wanted)] == wanted
    assert parts[-1] == "API reference"
