"""The reference recipe, for comparison: plain MLPM after its authors, on the states of the encoder without an adapter.

At most so many rows of every training source, no source left out, nothing added; a fit without out-of-fold scores; threshold
0.5. Texts are read as for every guard here (windows, disguises) and layers are put together as everywhere here, by their
log-odds (the authors: by their probabilities), so that recipe and states are all that differs.
Source: Chrabaszcz et al., arXiv 2502.16174.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from mlpm_guard import Guard
from mlpm_guard.bundle import MANIFEST
from mlpm_guard.bundles.card_sets import Prompt, kept_out, prompts
from mlpm_guard.encoders.base import Encoder
from mlpm_guard.encoders.embedded import EmbeddedEncoder
from mlpm_guard.errors import ConfigurationError

SEED = 0
ROWS_PER_SOURCE = 1300
SAMPLE_SIZE = 2000
THRESHOLD = 0.5
_RECIPE = "reference"


def reference_rows(data: Path) -> list[Prompt]:
    """Rows that the reference recipe learns from, in a fixed order.

    Raises:
        DataError: a file cannot be used.
    """
    rows: list[Prompt] = []
    for path in sorted((data / "train").glob("*.jsonl.gz")):
        usable = [each for each in prompts(data / "train", path.name.removesuffix(".jsonl.gz")) if not kept_out(each)]
        usable.sort(key=lambda each: hashlib.sha256(f"{SEED}|{each.id}".encode()).digest())
        rows += usable[:ROWS_PER_SOURCE]
    # A few prompts stand in two sources with different labels: nothing can be learned from those.
    labels = Counter(text for text, _ in {(each.text, each.label) for each in rows})
    rows = [each for each in rows if labels[each.text] == 1]
    rows.sort(key=lambda each: hashlib.sha256(f"{SEED}|{each.source}|{each.text}".encode()).digest())
    return rows


def reference(data: Path, folder: Path | None = None) -> tuple[Guard, tuple[int, int]]:
    """The reference recipe's guard, and how many safe and unsafe prompts it learned from.

    Args:
        data: folder with `train`.
        folder: where it is kept: taken from there if it was fitted on these rows, fitted and saved there if the folder holds no
            guard. None keeps nothing.

    Raises:
        ConfigurationError: the folder holds another guard.
        DataError: a file cannot be used.
    """
    rows = reference_rows(data)
    counts = sum(each.label == 0 for each in rows), sum(each.label == 1 for each in rows)
    digest = hashlib.sha256()
    for each in rows:
        digest.update(f"{each.label}|{each.id}|{each.text}\n".encode("utf-8", "surrogatepass"))
    notes = {"recipe": _RECIPE, "rows": digest.hexdigest(), "rows_per_source": ROWS_PER_SOURCE, "sample_size": SAMPLE_SIZE}
    if folder is not None and (folder / MANIFEST).is_file():
        from mlpm_guard import bundle

        kept = bundle.load(folder)
        if kept.manifest.notes != notes or kept.manifest.encoder.adapter is not None:
            raise ConfigurationError(
                f"{folder} holds a guard that is not the reference recipe on these rows; name another folder"
            )
        return Guard.from_pretrained(folder.absolute(), encoder=_encoder()), counts
    guard = Guard(_encoder(), threshold=THRESHOLD)
    guard.fit([each.text for each in rows], [each.label for each in rows], sample_size=SAMPLE_SIZE, folds=0)
    if folder is not None:
        guard.save_pretrained(folder, statistics=False, notes=notes)
    return guard, counts


def _encoder() -> Encoder:
    return EmbeddedEncoder(adapter=None)
