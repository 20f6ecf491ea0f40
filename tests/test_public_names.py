"""The public namespace, and what importing it costs and drags in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlpm_guard

PACKAGE = Path(mlpm_guard.__file__).parent

# A module may import only from what stands to its left.
WALLS = {
    "errors": set(),
    "verdict": set(),
    "tools": {"errors"},
    "lookalikes": set(),
    "conversation": {"errors", "verdict", "tools", "lookalikes"},
    "words": set(),
    "encodings": {"words"},
    "spellings": {"lookalikes", "words"},
    "disguises": {"verdict", "conversation", "lookalikes", "words", "encodings", "spellings"},
    "windows": set(),
    "drift": {"errors", "verdict"},
    "prototypes": {"errors"},
    "encoders": {"errors", "verdict", "conversation", "tools"},
    "lineage": set(),
    "bundle": {"errors", "verdict", "conversation", "encoders", "prototypes", "lineage", "review", "rules", "category_policy"},
    "category_policy": {"errors", "verdict", "options", "prototypes"},
    "category_learning": {"errors", "conversation", "encoders", "judging", "training", "variants"},
    "fitting": {"prototypes", "lineage", "model"},
    "variants": {"conversation"},
    "review": {"errors", "options"},
    "rules": {"errors", "verdict", "conversation"},
    "explanation": {"verdict"},
    "explaining": {"errors", "conversation", "judging", "policy", "explanation"},
    "judging": {"errors", "verdict", "conversation", "disguises", "windows", "encoders", "prototypes"},
    "policy": {"errors", "verdict", "conversation", "judging", "prototypes", "review", "rules", "category_policy"},
    "options": {"errors"},
    "running": {"errors", "conversation", "batching", "cancelling"},
    "model": {"prototypes", "lineage"},
    "checking": {
        "errors",
        "verdict",
        "conversation",
        "encoders",
        "prototypes",
        "judging",
        "policy",
        "options",
        "running",
        "model",
        "review",
        "rules",
        "category_policy",
        "explaining",
        "explanation",
    },
    "saving": {"errors", "bundle", "encoders", "lineage", "rules"},
    "training": {
        "errors",
        "verdict",
        "conversation",
        "windows",
        "encoders",
        "prototypes",
        "judging",
        "contradictions",
        "heap",
    },
    "contradictions": set(),
    "heap": set(),
    "cancelling": set(),
    "batching": {"cancelling"},
    "segments": {"windows"},
    "sources": {"errors"},
    "moderation": {"errors", "verdict", "conversation", "segments", "sources"},
    "background": set(),
    "tokenstream": {"errors", "verdict"},
    "prefill": {"errors", "verdict", "conversation", "encoders", "policy"},
    "decoding": {"errors", "verdict", "conversation", "encoders", "prototypes", "judging", "policy"},
    "answers": {"errors", "verdict", "conversation", "background", "cancelling"},
}


def imported(path: Path) -> set[str]:
    """Parts of the package that a module imports, anywhere in it, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    found = set()
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("mlpm_guard.")}
    return found


@pytest.mark.parametrize("part", sorted(WALLS))
def test_no_module_imports_from_above_its_wall(part: str) -> None:
    files = sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]
    assert files
    for path in files:
        assert imported(path) - {part} <= WALLS[part], path.name


def test_prototypes_never_see_text_and_encoders_never_see_labels() -> None:
    for path in (PACKAGE / "prototypes").rglob("*.py"):
        assert "conversation" not in imported(path), path.name
    for path in (PACKAGE / "encoders").rglob("*.py"):
        assert not imported(path) & {"prototypes", "training", "guard"}, path.name


def test_the_core_knows_no_framework() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not any(name in path.read_text() for name in ("langchain", "llama_index")), path.name


def test_every_public_name_is_listed_sorted_and_can_be_imported() -> None:
    assert list(mlpm_guard.__all__) == sorted(mlpm_guard.__all__)
    for name in mlpm_guard.__all__:
        assert getattr(mlpm_guard, name) is not None
    assert set(mlpm_guard._HOME) | {"__version__"} == set(mlpm_guard.__all__)


def test_every_error_of_the_tree_is_public_and_drawn() -> None:
    from mlpm_guard import errors

    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.MlpmGuardError)
    }
    assert classes <= set(mlpm_guard.__all__)
    assert all(name in (errors.__doc__ or "") for name in classes)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchThing"):
        mlpm_guard.NoSuchThing  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import mlpm_guard",
        "import mlpm_guard; mlpm_guard.Verdict",
        "from mlpm_guard.testing import MockGuard; MockGuard().check('x')",
    ],
)
def test_no_torch_is_imported_before_an_encoder_is_used(statement: str) -> None:
    code = f"{statement}\nimport sys; print(sorted({{'torch', 'transformers', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
