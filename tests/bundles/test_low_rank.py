import copy

import pytest
import torch
from torch import nn

from mlpm_guard.bundles.low_rank import attach, linear_maps, merge, tensors_of
from mlpm_guard.errors import ConfigurationError, DataError


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


def test_merged_tensors_give_the_trained_models_answers(model, inputs):
    adapted = trained(model, inputs)
    assert (adapted(inputs) - model(inputs)).abs().max() > 0.01
    tensors = tensors_of(adapted)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    merge(model, tensors)
    torch.testing.assert_close(model(inputs), adapted(inputs), atol=2e-3, rtol=2e-3)


def test_merging_adds_no_module_and_no_parameter(model, inputs):
    before = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    merge(model, tensors_of(trained(model, inputs)))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("2.dense.up"), "only one of the two tensors of 2.dense"),
        (
            lambda tensors: tensors.update({"9.dense.up": tensors["2.dense.up"], "9.dense.down": tensors["2.dense.down"]}),
            "9.dense",
        ),
        (lambda tensors: tensors.update({"2.dense.up": torch.zeros(3, 2)}), "do not fit 2.dense"),
        (lambda tensors: tensors.update({"2.dense.up": torch.zeros(12, 5)}), "do not fit 2.dense"),
    ],
    ids=["no partner", "unknown map", "other size", "other rank"],
)
def test_tensors_that_do_not_belong_to_the_model_are_refused_and_nothing_changes(model, inputs, change, message):
    tensors = tensors_of(trained(model, inputs))
    change(tensors)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=message):
        merge(model, tensors)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bad_options_are_refused(model):
    with pytest.raises(ConfigurationError, match="no linear maps named value"):
        attach(model, ("value",), 2)
    with pytest.raises(ConfigurationError, match="rank=0"):
        attach(model, ("query",), 0)
