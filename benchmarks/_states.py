"""Layer states of the training folder's prompts, their twins and copies, encoded once and kept in a folder."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from _recipes import PLAIN, TWIN, Prompts

_WINDOWS = 4
_CHUNK = 512
_BATCH = 64


class _Text(NamedTuple):
    """What is encoded, and what is known of it."""

    text: str
    source: str
    label: int
    kind: str
    held: bool
    category: str


def load(data: Path, folder: Path, rows: int, adapter: Path | None = None) -> Prompts:
    """States of the published encoder, or with an adapter those of the adapted one; from the folder, or made and kept there.

    A file's name has a digest of what was encoded, so that other data or another recipe is encoded anew.

    Args:
        data: folder with `train`.
        folder: to keep them in.
        rows: of a source at most.
        adapter: file.
    """
    path = folder / f"states-{'published' if adapter is None else adapter.stem}-{_digest(data, rows)}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _encode(data, path, rows, adapter)
    with np.load(path) as kept:
        return Prompts(**{name: kept[name] if name != "states" else kept[name].astype(np.float32) for name in kept})


def with_maxima(prompts: Prompts, data: Path, folder: Path, rows: int) -> Prompts:
    """The same, with the largest number over the tokens after each layer's mean and [CLS]. Of the published encoder only."""
    path = folder / f"maxima-published-{_digest(data, rows)}.npy"
    if not path.is_file():
        np.save(path, _maxima(_windows(data, rows)[0]))
    return replace(prompts, states=np.concatenate([prompts.states, np.load(path).astype(np.float32)], axis=2))


def _digest(data: Path, limit: int) -> str:
    return hashlib.sha256(repr(_texts(data, limit)).encode("utf-8", "surrogatepass")).hexdigest()[:12]


@cache
def _texts(data: Path, limit: int) -> list[_Text]:
    from mlpm_guard.bundles.augment import augmented
    from mlpm_guard.bundles.fit_default import Row, category, held_out, read, written_rows

    plain: list[tuple[Row, bool]] = []
    for file in sorted((data / "train").glob("*.jsonl.gz")):
        source = file.name.removesuffix(".jsonl.gz")
        drawn = sorted(read(file), key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
        for held in (False, True):
            of = [row for row in drawn if held_out(source, str(row["id"])) == held and str(row["text"]).strip()][:limit]
            plain += [(Row(source, str(row["text"]), int(str(row["label"])), category(row)), held) for row in of]
    twins = written_rows()
    copies = list(augmented([row for row, held in plain if not held] + twins, seed=0))
    table = [_Text(row.text, row.source, row.label, PLAIN, held, row.category or "") for row, held in plain]
    table += [_Text(row.text, row.source, row.label, TWIN, False, row.category or "") for row in twins]
    return table + [_Text(copy.text, copy.source, copy.label, copy.transformation, False, "") for copy in copies]


@cache
def _windows(data: Path, limit: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Windows of all texts, and the text that each belongs to. They do not depend on an adapter."""
    from mlpm_guard import Guard
    from mlpm_guard.encoders.embedded import EmbeddedEncoder
    from mlpm_guard.windows import training_pieces

    guard = Guard(EmbeddedEncoder(adapter=None))
    texts = [row.text for row in _texts(data, limit)]
    windows: list[str] = []
    owner: list[int] = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        for index, (text, spans) in enumerate(zip(chunk, guard.encoder.spans(chunk), strict=True), start):
            pieces = training_pieces(text, spans, guard.window, _WINDOWS)
            windows += [text[piece.start : piece.end] for piece in pieces]
            owner += [index] * len(pieces)
    return windows, np.array(owner)


def _encode(data: Path, path: Path, limit: int, adapter: Path | None) -> None:
    from mlpm_guard.encoders.embedded import EmbeddedEncoder

    encoder = EmbeddedEncoder(adapter=adapter)
    windows, owner = _windows(data, limit)
    states: list[npt.NDArray[np.float16]] = []
    for start in range(0, len(windows), _CHUNK):
        states.append(np.asarray(encoder.encode(windows[start : start + _CHUNK]), np.float16))
        print(f"encoded {start + len(states[-1]):,} of {len(windows):,}", file=sys.stderr)
    texts = _texts(data, limit)
    columns: dict[str, Any] = {
        name: np.array([getattr(row, name) for row in texts]) for name in ("source", "label", "kind", "held", "category")
    }
    np.savez(path, states=np.concatenate(states), owner=owner, **columns)


def _maxima(windows: list[str]) -> npt.NDArray[np.float16]:
    """Largest number over the tokens of every window, shape (windows, layers, width), which the library does not pool by."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from mlpm_guard.encoders.embedded import embedded_folder

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    model = AutoModel.from_pretrained(embedded_folder(), add_pooling_layer=False).eval()
    shape = (len(windows), model.config.num_hidden_layers, model.config.hidden_size)
    found: npt.NDArray[np.float16] = np.zeros(shape, np.float16)
    order = sorted(range(len(windows)), key=lambda index: len(windows[index]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        batch = tokenizer([windows[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            layers = model(**batch, output_hidden_states=True).hidden_states[1:]
        ignored = (batch["attention_mask"] == 0)[:, :, None]
        largest = torch.stack([layer.masked_fill(ignored, -torch.inf).amax(dim=1) for layer in layers], 1)
        found[rows] = largest.numpy().astype(np.float16)
    return found
