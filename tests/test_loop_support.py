"""The handshake that the tests of async doors rest on can fail."""

from __future__ import annotations

import asyncio

import pytest

from tests import loop_support
from tests.loop_support import Meeting


async def test_a_free_loop_comes_to_the_meeting() -> None:
    meeting = Meeting()
    await asyncio.to_thread(meeting)
    assert meeting.held


async def test_a_blocked_loop_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_support, "_PATIENCE", 0.01)
    meeting = Meeting()
    meeting()
    assert not meeting.held


async def test_no_meeting_is_no_sign_of_life() -> None:
    assert not Meeting().held
