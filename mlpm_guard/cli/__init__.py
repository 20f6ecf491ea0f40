"""The command line: `mlpm-guard`.

Only what `--help` needs is imported here; everything heavier is imported by the command that uses it. No message repeats an
argument that is a prompt.
"""

from __future__ import annotations

from mlpm_guard.cli.program import app, main

# Every module adds its commands to the program; this is the order in which --help lists them.
from mlpm_guard.cli import judging, inspecting, learning, categories, comparing, measuring  # isort: skip

__all__ = ["app", "categories", "comparing", "inspecting", "judging", "learning", "main", "measuring"]
