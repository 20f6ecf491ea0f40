"""Large blocks are given back while a fit runs, and only then."""

from __future__ import annotations

import pytest

from mlpm_guard import Guard, memory
from mlpm_guard.memory import large_blocks_returned
from mlpm_guard.testing import MockEncoder
from tests.conftest import SAFE, UNSAFE

OURS, USUAL = 4 * 2**20, 32 * 2**20


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the allocator is told."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(memory, "_mallopt", lambda: lambda option, value: calls.append((option, value)) or 1)
    return calls


def test_nested_use_counts_once(told: list[tuple[int, int]]) -> None:
    with large_blocks_returned():
        with large_blocks_returned():
            pass
        assert told == [(-3, OURS)]
    assert told == [(-3, OURS), (-3, USUAL)]


def test_a_failed_fit_leaves_the_allocator_as_it_was(told: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="label"):
        Guard(MockEncoder()).fit(SAFE, ["safe"] * 29 + ["neither"], progress=False)
    assert [value for _, value in told] == [OURS, USUAL]


def test_a_fit_tells_the_allocator(told: list[tuple[int, int]]) -> None:
    Guard(MockEncoder()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    assert [value for _, value in told] == [OURS, USUAL]


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_MMAP_THRESHOLD_", "65536"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=65536")]
)
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert memory._mallopt() is None
    with large_blocks_returned():
        pass


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _name: object())
    assert memory._mallopt() is None
