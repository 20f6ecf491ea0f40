"""Guards whose encoder has an adapter: it is saved with them, bound by its hash, and merged again when they are loaded."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpm_guard import (
    BundleCorruptError,
    BundleMismatchError,
    BundleSaveError,
    Guard,
    TransformerEncoder,
    WeightsMismatchError,
)
from mlpm_guard import bundle as bundles
from mlpm_guard.bundles.low_rank import save
from mlpm_guard.encoders import embedded
from mlpm_guard.encoders.embedded import EmbeddedEncoder
from tests.encoders import tiny_models as tiny

SAFE = [f"please tell me about topic number {i}" for i in range(8)]
UNSAFE = [f"this is an unsafe request number {i}" for i in range(8)]
ASKED = ["tell me about an unsafe topic", "a topic", "an unsafe request"]
MAP = "encoder.layer.1.output.dense"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bert"
    tiny.encoder_model().save_pretrained(path)
    tiny.bert_tokenizer().save_pretrained(path)
    return path


def an_adapter(path: Path, base: TransformerEncoder, *, out: int = 32, inner: int = 64, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(out, 2, generator=generator), torch.randn(2, inner, generator=generator) / 10
    return save(path, {f"{MAP}.up": up.half(), f"{MAP}.down": down.half()}, base.identity).path


@pytest.fixture
def file(tmp_path: Path, folder: Path) -> Path:
    return an_adapter(tmp_path / "mine.safetensors", TransformerEncoder(folder, device="cpu"))


@pytest.fixture
def guard(folder: Path, file: Path) -> Guard:
    encoder = TransformerEncoder(folder, adapter=file, device="cpu")
    return Guard(encoder).fit(SAFE + UNSAFE, [0] * 8 + [1] * 8, progress=False)


@pytest.fixture
def saved(guard: Guard, tmp_path: Path) -> Path:
    return guard.save_pretrained(tmp_path / "guard")


def rewrite(path: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    manifest = json.loads((path / "bundle.json").read_text())
    change(manifest)
    (path / "bundle.json").write_text(json.dumps(manifest))


def scores(guard: Guard) -> list[float | None]:
    return [verdict.score for verdict in guard.check_batch(ASKED)]


def test_a_saved_guard_brings_its_adapter_along(guard: Guard, saved: Path, file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    assert (saved / "adapter.safetensors").read_bytes() == content
    loaded = Guard.from_pretrained(saved, device="cpu")
    assert scores(loaded) == scores(guard)
    assert loaded.encoder.identity == guard.encoder.identity
    assert loaded.encoder.identity.adapter == hashlib.sha256(content).hexdigest()


def test_a_loaded_guard_is_saved_again_with_its_adapter_elsewhere_and_in_place(saved: Path, tmp_path: Path) -> None:
    content = (saved / "adapter.safetensors").read_bytes()
    loaded = Guard.from_pretrained(saved, device="cpu")
    for place in (tmp_path / "other", saved):
        loaded.save_pretrained(place)
        assert (place / "adapter.safetensors").read_bytes() == content
        assert scores(Guard.from_pretrained(place, device="cpu")) == scores(loaded)


def test_a_guard_without_an_adapter_leaves_none_behind(saved: Path, folder: Path) -> None:
    frozen = Guard(TransformerEncoder(folder, device="cpu")).fit(SAFE + UNSAFE, [0] * 8 + [1] * 8, progress=False)
    frozen.save_pretrained(saved)
    assert not (saved / "adapter.safetensors").exists()
    assert bundles.load(saved).manifest.encoder.adapter is None
    assert scores(Guard.from_pretrained(saved, device="cpu")) == scores(frozen)


def test_a_loaded_guard_reads_its_adapter_from_its_folder_wherever_the_process_goes(
    guard: Guard, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    loaded = Guard.from_pretrained(f"./{saved.name}", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert scores(loaded) == scores(guard)


def test_a_guard_with_an_adapter_can_be_pickled(guard: Guard) -> None:
    blob = pickle.dumps(guard)
    assert scores(pickle.loads(blob)) == scores(guard)


# -- what is refused ----------------------------------------------------------------------------------------------------------


def test_a_guard_is_bound_to_its_adapter(saved: Path, folder: Path, file: Path) -> None:
    frozen = TransformerEncoder(folder, device="cpu")
    with pytest.raises(BundleMismatchError, match=r"another encoder; adapter: [0-9a-f]{64} here, None there$"):
        Guard.from_pretrained(saved, encoder=frozen)
    other = an_adapter(file.with_name("other.safetensors"), frozen, seed=1)
    with pytest.raises(BundleMismatchError, match=r"another encoder; adapter: [0-9a-f]{64} here, [0-9a-f]{64} there$"):
        Guard.from_pretrained(saved, encoder=TransformerEncoder(folder, adapter=other, device="cpu"))
    Guard.from_pretrained(saved, encoder=TransformerEncoder(folder, adapter=file, device="cpu"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated or altered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"), "does not match its SHA-256"),
    ],
    ids=["missing", "truncated", "altered"],
)
def test_a_damaged_adapter_is_refused_when_the_guard_is_read(saved: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(saved / "adapter.safetensors")
    with pytest.raises(BundleCorruptError, match=f"adapter.safetensors.*{said}|{said}.*adapter.safetensors"):
        Guard.from_pretrained(saved)


def test_the_adapter_in_the_folder_must_be_that_of_the_encoder(saved: Path, folder: Path) -> None:
    other = an_adapter(saved / "adapter.safetensors", TransformerEncoder(folder, device="cpu"), seed=1)
    content = other.read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(saved, lambda manifest: manifest["files"].update({"adapter.safetensors": entry}))
    with pytest.raises(BundleCorruptError, match="not the adapter of the encoder"):
        Guard.from_pretrained(saved)
    rewrite(saved, lambda manifest: manifest["encoder"].update(adapter=None))
    with pytest.raises(BundleCorruptError, match="not the adapter of the encoder"):
        Guard.from_pretrained(saved)


def test_an_adapter_that_changes_after_the_guard_was_read_is_not_used(saved: Path, folder: Path) -> None:
    loaded = Guard.from_pretrained(saved, device="cpu")
    an_adapter(saved / "adapter.safetensors", TransformerEncoder(folder, device="cpu"), seed=1)
    with pytest.raises(BundleMismatchError, match="adapter: "):
        loaded.check("anything")


def test_a_guard_whose_adapter_is_nowhere_says_how_to_pass_it(saved: Path, folder: Path, file: Path) -> None:
    rewrite(saved, lambda manifest: manifest["files"].pop("adapter.safetensors"))
    with pytest.raises(BundleMismatchError, match=r"neither in its folder nor ships with this version.*Pass the encoder"):
        Guard.from_pretrained(saved)
    Guard.from_pretrained(saved, encoder=TransformerEncoder(folder, adapter=file, device="cpu"))


@pytest.mark.parametrize("lost", ["missing", "another"])
def test_a_guard_is_not_saved_without_the_adapter_it_was_fitted_with(
    guard: Guard, file: Path, folder: Path, tmp_path: Path, lost: str
) -> None:
    guard.load()
    if lost == "missing":
        file.unlink()
    else:
        an_adapter(file, TransformerEncoder(folder, device="cpu"), seed=1)
    with pytest.raises(BundleSaveError, match=r"cannot save to .*adapter"):
        guard.save_pretrained(tmp_path / "guard")
    assert not (tmp_path / "guard").exists()


# -- the embedded encoder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library as if it shipped an adapter."""
    file = an_adapter(tmp_path / "shipped.safetensors", EmbeddedEncoder(adapter=None, device="cpu"), out=384, inner=1536)
    monkeypatch.setattr(embedded, "ADAPTER", file)
    monkeypatch.setattr(embedded, "ADAPTER_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_the_adapter_that_ships_is_the_default_and_is_not_copied_into_guards(shipping: Path, tmp_path: Path) -> None:
    guard = Guard(EmbeddedEncoder(device="cpu")).fit(SAFE + UNSAFE, [0] * 8 + [1] * 8, progress=False)
    assert guard.encoder.identity.adapter == embedded.ADAPTER_SHA256
    saved = guard.save_pretrained(tmp_path / "guard")
    assert not (saved / "adapter.safetensors").exists()
    loaded = Guard.from_pretrained(saved, device="cpu")
    assert isinstance(loaded.encoder, EmbeddedEncoder)
    assert loaded.encoder.adapter == "default"
    assert scores(loaded) == scores(guard)
    assert loaded.encoder.identity == guard.encoder.identity


def test_the_published_weights_stay_selectable_and_so_does_an_own_adapter(shipping: Path, tmp_path: Path) -> None:
    frozen = EmbeddedEncoder(adapter=None, device="cpu")
    assert frozen.identity.adapter is None
    own = an_adapter(tmp_path / "own.safetensors", frozen, out=384, inner=1536, seed=1)
    states = [EmbeddedEncoder(adapter=each, device="cpu").encode(ASKED) for each in (None, "default", own)]
    assert np.abs(states[0] - states[1]).max() > 0.1
    assert np.abs(states[1] - states[2]).max() > 0.1
    guard = Guard(EmbeddedEncoder(adapter=own, device="cpu")).fit(SAFE + UNSAFE, [0] * 8 + [1] * 8, progress=False)
    saved = guard.save_pretrained(tmp_path / "guard")
    own.unlink()
    assert scores(Guard.from_pretrained(saved, device="cpu")) == scores(guard)


def test_a_guard_fitted_on_the_published_weights_keeps_them_when_an_adapter_ships(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    guard = Guard(EmbeddedEncoder(adapter=None, device="cpu")).fit(SAFE + UNSAFE, [0] * 8 + [1] * 8, progress=False)
    saved = guard.save_pretrained(tmp_path / "guard")
    request.getfixturevalue("shipping")
    assert scores(Guard.from_pretrained(saved, device="cpu")) == scores(guard)


def test_a_shipped_adapter_that_was_altered_is_not_used(shipping: Path) -> None:
    content = shipping.read_bytes()
    shipping.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsMismatchError, match="reinstall"):
        EmbeddedEncoder(device="cpu").load()
