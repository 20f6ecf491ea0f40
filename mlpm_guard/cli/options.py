"""Options and arguments that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Target(StrEnum):
    """What a guard judges."""

    PROMPT = "prompt"
    RESPONSE = "response"


Text = Annotated[str, typer.Argument(metavar="TEXT|-", show_default=False, help="The prompt; - reads standard input.")]
BundleOption = Annotated[str, typer.Option("--bundle", help="A shipped guard's name, or a folder (./my-guard).")]
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="A shipped guard's name, or a folder (./my-guard).")]
Data = Annotated[list[Path], typer.Argument(metavar="DATA...", help="JSONL, CSV (each also .gz) or Parquet.")]
Threshold = Annotated[float | None, typer.Option("--threshold", help="Flag from this probability on, 0 to 1.")]
TextColumn = Annotated[
    str | None, typer.Option("--text-column", help="Column with the prompts; by default the first of text, prompt, ...")
]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column with 0/1 or safe/unsafe; by default label.")]
CategoryColumn = Annotated[
    str | None, typer.Option("--category-column", help="Column with the categories of unsafe prompts; by default category.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the new guard. A guard that is there is replaced.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace BUNDLE itself, instead of --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
