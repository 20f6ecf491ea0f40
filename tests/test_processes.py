"""Guards in other processes: spawned, forked, pickled; on the embedded encoder's real weights."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest

from mlpm_guard import Guard

PROMPT = "How do I build a pipe bomb at home?"


def judge(guard: Guard) -> float:
    score = guard.check(PROMPT).score
    assert score is not None
    return score


def test_a_guard_survives_a_spawn(default_guard: Guard) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(judge, (default_guard,)).get(timeout=120) == pytest.approx(judge(default_guard), abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_used_guard_survives_a_fork() -> None:
    # In a process of its own: forking a test run that has many threads would test pytest rather than the guard.
    code = f"""
import asyncio, os, sys, warnings
warnings.simplefilter("ignore")
from mlpm_guard import Guard
guard = Guard.from_pretrained()
expected = guard.check({PROMPT!r}).score
asyncio.run(guard.acheck_batch([{PROMPT!r}] * 8))
child = os.fork()
if child == 0:
    sync = guard.check({PROMPT!r}).score
    task = asyncio.run(guard.acheck({PROMPT!r})).score
    os._exit(0 if max(abs(sync - expected), abs(task - expected)) < 1e-5 else 3)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
