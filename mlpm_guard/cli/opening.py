"""What commands work on: guards, encoders, files of prompts, standard input, and the folder that a guard is saved in."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlpm_guard.errors import BundleSaveError, ConfigurationError, DataError, InputTooLongError

if TYPE_CHECKING:
    from mlpm_guard.datafiles import DataFile
    from mlpm_guard.encoders.base import Encoder
    from mlpm_guard.guard import Guard

MAX_STDIN = 16 * 2**20
"""Bytes of standard input that are taken as one text."""


def load_guard(bundle: str, threshold: float | None = None) -> Guard:
    """A saved guard; its encoder's weights load at first use."""
    from mlpm_guard.guard import Guard

    return Guard.from_pretrained(bundle, threshold=threshold)


def load_encoder(name: str, adapter: str | None = None) -> Encoder:
    """The embedded encoder, or a Hugging Face model by its name or folder.

    Args:
        name: "embedded", or the model.
        adapter: "none", "default" (the embedded encoder's), or a file; None takes what suits the encoder.

    Raises:
        ConfigurationError: there is no such adapter.
    """
    if adapter == "default" and name != "embedded":
        raise ConfigurationError(
            "--adapter default: the adapter of the embedded encoder; for another model give a file, or none (./default for a "
            "file of that name)"
        )
    if adapter not in (None, "none", "default") and not Path(adapter).expanduser().is_file():
        raise ConfigurationError(f"--adapter {adapter}: no such file; give an adapter's safetensors file, default, or none")
    if name == "embedded":
        from mlpm_guard.encoders.embedded import DEFAULT, EmbeddedEncoder

        return EmbeddedEncoder(adapter=None if adapter == "none" else adapter or DEFAULT)
    from mlpm_guard.encoders.transformer import TransformerEncoder

    return TransformerEncoder(name, adapter=None if adapter == "none" else adapter)


def labelled_files(
    files: Sequence[Path], text_column: str | None, label_column: str | None, category_column: str | None = None
) -> list[DataFile]:
    """Files whose every row needs a label. They may be of different formats."""
    from mlpm_guard.datafiles import DataFile

    return [
        DataFile(
            path,
            text_column=text_column,
            label_column=label_column,
            require_label=True,
            category_column=category_column,
        )
        for path in files
    ]


def data_files(files: Sequence[Path], text_column: str | None, label_column: str | None) -> list[DataFile]:
    """Files whose rows may have labels. They may be of different formats."""
    from mlpm_guard.datafiles import DataFile

    return [DataFile(path, text_column=text_column, label_column=label_column) for path in files]


def unlabelled_files(files: Sequence[Path], text_column: str | None) -> list[DataFile]:
    """Files whose rows are taken whatever their labels. They may be of different formats."""
    from mlpm_guard.datafiles import DataFile

    return [DataFile(path, text_column=text_column, ignore_label=True) for path in files]


def has_statistics(bundle: str) -> bool:
    """Whether a guard was saved with what it needs to learn more, which its new version then keeps."""
    from mlpm_guard.bundle import STATISTICS, load

    return STATISTICS in load(bundle).manifest.files


def destination(bundle: str, out: Path | None, in_place: bool) -> Path:
    """The folder for a new version of a guard, checked before the work.

    Raises:
        ConfigurationError: none is named, two are, it is the guard itself, or the guard itself is one that ships.
        BundleSaveError: a guard cannot be saved there.
    """
    from mlpm_guard.bundle import SHIPPED, resolve

    _, path = resolve(bundle)
    if (out is None) != in_place:
        raise ConfigurationError("say where the new guard goes: either --out FOLDER, or --in-place to replace this one")
    if out is None:
        if path.resolve().is_relative_to(SHIPPED.resolve()):
            raise ConfigurationError("a guard that ships with the library is not replaced; save the new one with --out FOLDER")
        return check_writable(path)
    if out.exists() and out.samefile(path):
        raise ConfigurationError(f"{out} is the guard itself; choose another folder, or say --in-place")
    return check_writable(out)


def standard_input() -> str:
    """Standard input as one text, without its last line break, which `echo` adds and which is not part of the prompt.

    Raises:
        InputTooLongError: there is more than `MAX_STDIN`.
        DataError: it is not UTF-8.
    """
    content = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(content) > MAX_STDIN:
        raise InputTooLongError(f"standard input is longer than {MAX_STDIN // 2**20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 (byte {error.start + 1}); convert it first") from None
    return text.removesuffix("\n").removesuffix("\r")


def check_writable(out: Path) -> Path:
    """Find out before the work, not after it, whether a guard can be saved there. Returns the folder.

    Raises:
        BundleSaveError: it cannot.
    """
    from mlpm_guard.bundle import MANIFEST

    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleSaveError(f"{out} exists and is not a guard; choose another path", out)
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BundleSaveError(f"cannot write to {parent}; choose another path", out)
    return out
