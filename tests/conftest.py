"""Fixtures that every test may use."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mlpm_guard import Guard
from mlpm_guard.testing import MockEncoder, MockGuard

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many threads in each of several processes as there are cores wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SLOWEST = ("tests/quality/test_default_response.py", "tests/test_readme.py", "tests/quality/", "tests/test_examples.py")
"""Files to begin with, so that no process is left with one of them while the others have nothing to do any more."""

SAFE = [f"please tell me about topic number {i}" for i in range(30)]
UNSAFE = [f"this is an unsafe request number {i}" for i in range(30)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, beginning in enumerate(SLOWEST) if item.nodeid.startswith(beginning)), len(SLOWEST))

    items.sort(key=place)


@pytest.fixture
def mock_guard() -> Guard:
    """A real guard, really fitted, on an encoder without weights."""
    return Guard(MockEncoder()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)


@pytest.fixture
def open_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of `benchmarks/`, which is no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def keyword_guard(monkeypatch: pytest.MonkeyPatch) -> MockGuard:
    """What every command of the CLI then loads: flags what says "unsafe"."""
    from mlpm_guard.cli import opening

    mock = MockGuard(lambda text: 0.9 if "unsafe" in text else 0.1)

    def load(_bundle: str, threshold: float | None = None) -> MockGuard:
        mock.threshold = 0.5 if threshold is None else threshold
        return mock

    monkeypatch.setattr(opening, "load_guard", load)
    return mock


@pytest.fixture(scope="session")
def default_guard() -> Guard:
    """The guard that ships, on its real weights."""
    return Guard.from_pretrained().load()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of labelled prompts; tests that need it skip without it."""
    folder = os.environ.get("MLPM_GUARD_DATA")
    if not folder:
        pytest.skip("needs labelled prompts: set MLPM_GUARD_DATA to the data folder")
    if not (Path(folder) / "eval").is_dir():
        pytest.skip("MLPM_GUARD_DATA has no folder named eval")
    return Path(folder)
