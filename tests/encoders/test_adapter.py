"""Adapter files: what is read, what is refused, and that a merged encoder is the adapted model and nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from mlpm_guard.bundles.low_rank import save
from mlpm_guard.encoders import adapter as adapters
from mlpm_guard.encoders.adapter import merge, paired, read
from mlpm_guard.encoders.transformer import TransformerEncoder
from mlpm_guard.errors import AdapterError, ConfigurationError, EncoderLoadError, WeightsMismatchError

TEXTS = ["a", "tell me: what is 2+2?", "hi there, how are you today my friend"]
RANK = 2


def matrices(model: nn.Module, ends: tuple[str, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random matrices for the linear maps of the blocks whose names end so."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(ends) and "layer" in name:
            found[f"{name}.up"] = torch.randn(module.out_features, RANK, generator=generator).half()
            found[f"{name}.down"] = torch.randn(RANK, module.in_features, generator=generator).half() * 0.1
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bert"
    tiny.encoder_model().save_pretrained(path)
    tiny.bert_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> TransformerEncoder:
    return TransformerEncoder(folder, device="cpu").load()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return matrices(tiny.encoder_model(), ("query", "dense"))


@pytest.fixture
def file(tmp_path: Path, tensors: dict[str, Tensor], base: TransformerEncoder) -> Path:
    return save(tmp_path / "mine.safetensors", tensors, base.identity).path


def rewritten(file: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Path:
    """The file with other tensors or other metadata."""
    tensors = load_file(file)
    content = file.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    change(tensors, metadata)
    save_file(tensors, file, metadata or None)
    return file


# -- merging ------------------------------------------------------------------------------------------------------------------


def test_an_encoder_with_an_adapter_gives_the_states_of_the_adapted_model(
    folder: Path, file: Path, tensors: dict[str, Tensor], base: TransformerEncoder
) -> None:
    adapted = AutoModel.from_pretrained(folder).eval()
    maps = dict(adapted.named_modules())
    with torch.no_grad():
        for name in {key.rpartition(".")[0] for key in tensors}:
            maps[name].weight += tensors[f"{name}.up"].float() @ tensors[f"{name}.down"].float()
    expected = TransformerEncoder(adapted, tiny.bert_tokenizer()).encode(TEXTS)
    encoder = TransformerEncoder(folder, adapter=file, device="cpu")
    assert np.array_equal(encoder.encode(TEXTS), expected)
    assert np.abs(base.encode(TEXTS) - expected).max() > 0.1


def test_a_causal_model_takes_an_adapter_too(tmp_path: Path) -> None:
    model = tiny.causal_model()
    model.save_pretrained(tmp_path / "llama")
    tiny.character_tokenizer(template=tiny.CHATML).save_pretrained(tmp_path / "llama")
    frozen = TransformerEncoder(tmp_path / "llama", device="cpu").load()
    found = matrices(AutoModel.from_pretrained(tmp_path / "llama"), ("q_proj", "down_proj"))
    file = save(tmp_path / "mine.safetensors", found, frozen.identity).path
    encoder = TransformerEncoder(tmp_path / "llama", adapter=file, device="cpu")
    with torch.no_grad():
        merge(model.model, paired(found))
    assert np.array_equal(
        encoder.encode(TEXTS), TransformerEncoder(model, tiny.character_tokenizer(template=tiny.CHATML)).encode(TEXTS)
    )
    assert not np.array_equal(encoder.encode(TEXTS), frozen.encode(TEXTS))


def test_a_merged_model_has_no_more_modules_than_before(folder: Path, file: Path, base: TransformerEncoder) -> None:
    encoder = TransformerEncoder(folder, adapter=file, device="cpu").load()
    assert encoder._state is not None
    assert base._state is not None
    names = [[name for name, _ in each._state.core.named_modules()] for each in (encoder, base) if each._state is not None]
    assert names[0] == names[1]


def test_merging_leaves_the_files_of_the_model_alone(folder: Path, file: Path, base: TransformerEncoder) -> None:
    def digest() -> str:
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    before = digest()
    TransformerEncoder(folder, adapter=file, device="cpu").load()
    assert digest() == before
    assert np.array_equal(TransformerEncoder(folder, device="cpu").encode(TEXTS), base.encode(TEXTS))


def test_the_sum_is_rounded_once_in_a_model_of_half_precision() -> None:
    layer = nn.Linear(4, 4, bias=False).bfloat16()
    up, down = torch.full((4, 1), 0.3), torch.full((1, 4), 0.3)
    expected = (layer.weight.float() + up @ down).bfloat16()
    merge(nn.ModuleDict({"map": layer}), {"map": (up, down)})
    assert torch.equal(layer.weight, expected)


def test_threads_that_ask_at_once_get_the_states_of_one_merged_model(folder: Path, file: Path) -> None:
    expected = TransformerEncoder(folder, adapter=file, device="cpu").encode(TEXTS)
    encoder = TransformerEncoder(folder, adapter=file, device="cpu")
    barrier, found = threading.Barrier(4), []

    def ask() -> None:
        barrier.wait()
        found.append(encoder.encode(TEXTS))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(states, expected) for states in found)


# -- identity and copies ------------------------------------------------------------------------------------------------------


def test_the_identity_is_that_of_the_model_and_the_hash_of_the_file(folder: Path, file: Path, base: TransformerEncoder) -> None:
    encoder = TransformerEncoder(folder, adapter=file, device="cpu")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert encoder.identity == base.identity.model_copy(update={"adapter": digest})
    assert encoder.identity.differences(base.identity) == [f"adapter: {digest} here, None there"]


def test_without_an_adapter_nothing_is_said_of_one(base: TransformerEncoder, folder: Path, file: Path) -> None:
    assert base.identity.adapter is None
    assert base.adapter_file is None
    assert "adapter" not in repr(base)
    assert f"adapter={str(file)!r}" in repr(TransformerEncoder(folder, adapter=file))


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_copy_reads_model_and_adapter_again(folder: Path, file: Path, used: bool) -> None:
    encoder = TransformerEncoder(folder, adapter=file, device="cpu")
    if used:
        encoder.load()
    blob = pickle.dumps(encoder)
    assert len(blob) < 5_000
    for other in (pickle.loads(blob), copy.deepcopy(encoder)):
        assert other._state is None
        assert np.array_equal(other.encode(TEXTS), encoder.encode(TEXTS))
        assert other.identity == encoder.identity


def test_a_copy_refuses_another_adapter_than_the_one_that_was_loaded(
    folder: Path, file: Path, base: TransformerEncoder
) -> None:
    encoder = TransformerEncoder(folder, adapter=file, device="cpu").load()
    blob = pickle.dumps(encoder)
    save(file, matrices(tiny.encoder_model(), ("query",), seed=1), base.identity)
    with pytest.raises(WeightsMismatchError, match="altered or replaced"):
        pickle.loads(blob).load()
    assert TransformerEncoder(folder, adapter=file, device="cpu").identity.adapter != encoder.identity.adapter


# -- what is refused ----------------------------------------------------------------------------------------------------------


def test_an_adapter_is_not_merged_into_a_model_of_the_callers(file: Path) -> None:
    model = tiny.encoder_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigurationError, match="merge it into the loaded model yourself"):
        TransformerEncoder(model, tiny.bert_tokenizer(), adapter=file)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_adapter_is_a_path(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="adapter is int"):
        TransformerEncoder(folder, adapter=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nowhere.safetensors", "."])
def test_a_file_that_cannot_be_read_is_a_load_error(folder: Path, tmp_path: Path, name: str) -> None:
    encoder = TransformerEncoder(folder, adapter=tmp_path / name, device="cpu")
    with pytest.raises(EncoderLoadError, match="cannot read the adapter"):
        encoder.load()
    assert encoder._state is None


def test_another_file_than_the_expected_one_is_refused(file: Path) -> None:
    assert read(file, hashlib.sha256(file.read_bytes()).hexdigest()).info.rank == RANK
    with pytest.raises(WeightsMismatchError, match="not used"):
        read(file, "0" * 64)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-100],
        lambda content: b"PK\x03\x04" + content,
        lambda content: content + b"x",
    ],
    ids=["empty", "truncated", "another kind", "something behind"],
)
def test_a_damaged_file_is_refused(file: Path, damage: Callable[[bytes], bytes]) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(AdapterError, match="not a safetensors file"):
        read(file)


def test_a_file_too_large_for_an_adapter_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_BYTES", 1000)
    with pytest.raises(AdapterError, match="far smaller"):
        read(file)


QUERY = "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, metadata: metadata.clear(), "bad or missing metadata: .*base_weights.*format"),
        (lambda tensors, metadata: metadata.update(format="pt"), "metadata: format"),
        (lambda tensors, metadata: metadata.update(schema_version="2"), "metadata: schema_version"),
        (lambda tensors, metadata: metadata.update(base_weights="abc"), "metadata: base_weights"),
        (lambda tensors, metadata: metadata.update(rank="none"), "metadata: rank"),
        (lambda tensors, metadata: metadata.update(rank="3"), "has rank 2 in .* and says 3"),
        (lambda tensors, metadata: tensors.clear(), "holds no tensors"),
        (lambda tensors, metadata: tensors.pop(f"{QUERY}.up"), f"only one of the two tensors of {QUERY}"),
        (lambda tensors, metadata: tensors.update({"lora_A.weight": torch.zeros(2, 2)}), r"holds a tensor lora_A\.weight"),
        (lambda tensors, metadata: tensors.update({"up": torch.zeros(2, 2)}), "holds a tensor up"),
        (lambda tensors, metadata: tensors.update({f"{QUERY}.up": torch.zeros(32)}), r"shape \(32,\)"),
        (lambda tensors, metadata: tensors.update({f"{QUERY}.up": torch.zeros(32, 0)}), r"shape \(32, 0\)"),
        (lambda tensors, metadata: tensors.update({f"{QUERY}.up": torch.zeros(32, 2).int()}), "of int32"),
        (lambda tensors, metadata: tensors.update({f"{QUERY}.up": torch.zeros(32, 5)}), "cannot be multiplied"),
        (lambda tensors, metadata: tensors[f"{QUERY}.up"].fill_(torch.nan), f"NaN or infinity in {QUERY}.up"),
        (lambda tensors, metadata: tensors[f"{QUERY}.down"][0].fill_(-torch.inf), f"NaN or infinity in {QUERY}.down"),
    ],
)
def test_a_file_that_is_no_adapter_is_refused_and_named(file: Path, change: Any, said: str) -> None:
    with pytest.raises(AdapterError, match=said) as caught:
        read(rewritten(file, change))
    assert str(file) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors, metadata: tensors.update(
                {"encoder.layer.9.x.up": torch.zeros(8, 2), "encoder.layer.9.x.down": torch.zeros(2, 8)}
            ),
            r"changes encoder\.layer\.9\.x, which is no linear map of this model \(BertModel\)",
        ),
        (
            lambda tensors, metadata: tensors.update(
                {"embeddings.LayerNorm.up": torch.zeros(8, 2), "embeddings.LayerNorm.down": torch.zeros(2, 8)}
            ),
            r"changes embeddings\.LayerNorm, which is no linear map",
        ),
        (lambda tensors, metadata: tensors.update({f"{QUERY}.up": torch.zeros(31, 2)}), f"do not fit {QUERY}"),
        (
            lambda tensors, metadata: metadata.update(base_weights="0" * 64, base="another"),
            "was trained on another, with other",
        ),
    ],
    ids=["unknown map", "no linear map", "other size", "other weights"],
)
def test_an_adapter_of_another_model_is_refused(folder: Path, file: Path, change: Any, said: str) -> None:
    encoder = TransformerEncoder(folder, adapter=rewritten(file, change), device="cpu")
    with pytest.raises(AdapterError, match=said) as caught:
        encoder.load()
    assert str(file) in str(caught.value)
    assert encoder._state is None


def test_weights_are_not_compared_in_another_type_than_they_were_trained_in(folder: Path, file: Path) -> None:
    encoder = TransformerEncoder(folder, adapter=file, dtype="bfloat16", device="cpu")
    assert encoder.identity.dtype == "bfloat16"
    assert encoder.identity.adapter == read(file).sha256


def test_what_does_not_fit_changes_nothing() -> None:
    core = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    before = copy.deepcopy(core.state_dict())
    pair = (torch.ones(4, 1), torch.ones(1, 4))
    too_high = (torch.ones(4, 5), torch.ones(5, 4))
    for wrong in ({"a": pair, "c": pair}, {"a": pair, "b": too_high}):
        with pytest.raises(AdapterError, match=r"no linear map|do not fit b"):
            merge(core, wrong)
    assert all(torch.equal(value, before[name]) for name, value in core.state_dict().items())


def test_sums_that_a_model_of_half_precision_cannot_hold_are_refused() -> None:
    core = nn.ModuleDict({"a": nn.Linear(4, 4).half()})
    with pytest.raises(AdapterError, match="infinite in float16"):
        merge(core, {"a": (torch.full((4, 1), 300.0), torch.full((1, 4), 300.0))})


def test_quantised_weights_are_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(AdapterError, match="quantised"):
        merge(nn.ModuleDict({"a": layer}), {"a": (torch.ones(4, 1), torch.ones(1, 4))})
