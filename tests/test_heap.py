"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import platform

import pytest

from mlpm_guard import heap


@pytest.fixture(autouse=True)
def forget() -> None:
    heap._trim.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_glibc_is_asked_to_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    found = heap._trim()
    assert found is not None
    monkeypatch.setattr(heap, "_trim", lambda: lambda pad: asked.append(pad) or found(pad))
    heap.give_back()
    assert asked == [0]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    heap.give_back()
    assert heap._trim() is None
