import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn

from mlpm_guard.bundles.low_rank import attach, linear_maps, mean, save, tensors_of
from mlpm_guard.encoders.adapter import merge, paired, read
from mlpm_guard.encoders.base import EncoderIdentity
from mlpm_guard.errors import AdapterError, ConfigurationError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.dense = nn.Linear(8, 12)

    def forward(self, x):
        return self.dense(torch.tanh(self.query(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Linear(12, 8), Block())


@pytest.fixture
def inputs():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def identity(**changes):
    known = {"model": "mine", "architecture": "Block", "weights": "0" * 64, "tokenizer": "", "chat_template": ""}
    return EncoderIdentity(**{**known, "pooling": "mean", "layers": (1,), "dim": 8, "dtype": "float32", **changes})


def trained(model, inputs, rank=2):
    adapted = copy.deepcopy(model)
    added = attach(adapted, ("query", "dense"), rank)
    optimizer = torch.optim.SGD(added, lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        adapted(inputs).square().mean().backward()
        optimizer.step()
    return adapted


def test_an_attached_adapter_changes_nothing_before_training(model, inputs):
    adapted = copy.deepcopy(model)
    attach(adapted, ("query",), 2)
    torch.testing.assert_close(adapted(inputs), model(inputs))


def test_only_the_additions_learn_and_only_the_named_maps_have_them(model):
    added = attach(model, ("query",), 3)
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == {id(each) for each in added}
    assert [tuple(each.shape) for each in added] == [(3, 8), (8, 3)] * 2
    assert [name for name, _ in linear_maps(model, ("query",))] == ["0.query", "2.query"]


def test_a_saved_adapter_is_what_was_trained(model, inputs, tmp_path):
    adapted = trained(model, inputs)
    assert (adapted(inputs) - model(inputs)).abs().max() > 0.01
    tensors = tensors_of(adapted)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    saved = save(tmp_path / "a.safetensors", tensors, identity())
    again = read(tmp_path / "a.safetensors", saved.sha256)
    assert (again.info.base, again.info.base_weights, again.info.rank) == ("mine", "0" * 64, 2)
    merge(model, again.pairs)
    torch.testing.assert_close(model(inputs), adapted(inputs), atol=2e-3, rtol=2e-3)


def test_a_saved_adapter_says_what_it_is_in_its_metadata(model, inputs, tmp_path):
    save(tmp_path / "a.safetensors", tensors_of(trained(model, inputs)), identity(model=None))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "mlpm-guard-adapter",
        "schema_version": "1",
        "base": "Block",
        "base_weights": "0" * 64,
        "base_dtype": "float32",
        "rank": "2",
    }


def test_an_adapter_of_an_adapted_encoder_is_not_saved(model, inputs, tmp_path):
    tensors = tensors_of(trained(model, inputs))
    with pytest.raises(ConfigurationError, match="without an adapter"):
        save(tmp_path / "a.safetensors", tensors, identity(adapter="1" * 64))
    with pytest.raises(AdapterError, match="holds no tensors"):
        save(tmp_path / "a.safetensors", tensors_of(model), identity())
    tensors["0.query.up"] = tensors["0.query.up"] * torch.inf
    with pytest.raises(AdapterError, match=r"NaN or infinity in 0\.query\.up"):
        save(tmp_path / "a.safetensors", tensors, identity())
    assert list(tmp_path.iterdir()) == []


def test_merging_adds_no_module_and_no_parameter(model, inputs):
    before = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    merge(model, paired(tensors_of(trained(model, inputs))))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == before


def test_bad_options_are_refused(model):
    with pytest.raises(ConfigurationError, match="no linear maps named value"):
        attach(model, ("value",), 2)
    with pytest.raises(ConfigurationError, match="rank=0"):
        attach(model, ("query",), 0)


def product(tensors, place):
    return tensors[f"{place}.up"].float() @ tensors[f"{place}.down"].float()


def test_the_mean_of_adapters_is_the_mean_of_what_they_add_up_to_its_rank(model, inputs):
    first, second = (tensors_of(trained(model, inputs * scale)) for scale in (1, -2))
    whole, cut = (mean([first, second], rank) for rank in (4, 1))
    assert whole.keys() == first.keys()
    for place in ("0.query", "2.dense"):
        expected = (product(first, place) + product(second, place)) / 2
        assert float(expected.norm()) > 0
        torch.testing.assert_close(product(whole, place), expected, rtol=2e-2, atol=2e-3)
        assert cut[f"{place}.up"].shape[1] == cut[f"{place}.down"].shape[0] == 1
        largest = torch.linalg.matrix_norm(expected, 2)
        torch.testing.assert_close(torch.linalg.matrix_norm(product(cut, place), 2), largest, rtol=2e-2, atol=2e-3)


def test_what_has_no_mean_is_refused(model, inputs):
    tensors = tensors_of(trained(model, inputs))
    other = {name: tensor for name, tensor in tensors.items() if "query" in name}
    larger = {name: torch.cat([tensor, tensor], int(name.endswith("down"))) for name, tensor in tensors.items()}
    for wrong, rank, said in (
        ([], 2, "one or more"),
        ([tensors, other], 2, "the same maps"),
        ([tensors, larger], 2, "the same maps"),
        ([tensors], 9, "rank=9"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            mean(wrong, rank)
    with pytest.raises(AdapterError, match="only one of the two"):
        mean([{name: tensor for name, tensor in tensors.items() if name != "0.query.up"}], 2)
