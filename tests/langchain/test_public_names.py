"""The public namespace of the LangChain package, and what importing it drags in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import langchain_mlpm_guard
import pytest

PACKAGE = Path(langchain_mlpm_guard.__file__).parent


def test_every_public_name_is_listed_sorted_and_can_be_imported() -> None:
    assert list(langchain_mlpm_guard.__all__) == sorted(langchain_mlpm_guard.__all__)
    assert set(langchain_mlpm_guard.__all__) <= set(langchain_mlpm_guard._HOME)
    for name in langchain_mlpm_guard.__all__:
        assert getattr(langchain_mlpm_guard, name) is not None
    assert dir(langchain_mlpm_guard) == langchain_mlpm_guard.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchThing"):
        langchain_mlpm_guard.NoSuchThing  # noqa: B018


def test_only_the_middleware_imports_langchain_itself() -> None:
    for path in PACKAGE.glob("*.py"):
        names = {node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        needs = {name for name in names if name.split(".")[0] in {"langchain", "langgraph"}}
        assert not needs or path.stem in {"middleware", "agent_state"}, path.name


@pytest.mark.parametrize(
    "statement",
    [
        "import langchain_mlpm_guard",
        "from langchain_mlpm_guard import PromptGate, guard_chain, ModeratedChatModel, DocumentGate",
    ],
)
def test_neither_torch_nor_langchain_itself_is_imported_before_it_is_needed(statement: str) -> None:
    code = f"{statement}\nimport sys; print(sorted({{'torch', 'transformers', 'langchain', 'langgraph'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
