"""Low-rank adapters of an encoder's linear maps: W becomes W + B A, with B (out, rank) and A (rank, in).

Attached for training, taken out as a handful of small tensors, and merged into the weights of another copy of the model,
which is then as fast as before. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mlpm_guard.errors import ConfigurationError, DataError

DOWN, UP = "down", "up"


class LowRank(nn.Module):
    """Adds `up @ down` to a weight; nothing at the start, because `up` is zero.

    Args:
        weight: the weight, shape (out, in).
        rank: of the addition.
        scale: of the addition; only its size while training, since saved tensors hold it.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is used."""
        return weight + self.scale * (self.up @ self.down)


def linear_maps(model: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """Linear maps whose qualified name ends with one of `names`, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(names):
            yield name, module


def attach(model: nn.Module, names: tuple[str, ...], rank: int) -> list[nn.Parameter]:
    """Freeze a model and give it trainable low-rank additions.

    Args:
        model: is changed.
        names: ends of the names of linear maps.
        rank: of every addition.

    Returns:
        The new parameters, which are the only ones that want a gradient.

    Raises:
        ConfigurationError: no linear map has such a name, or the rank is not at least 1.
    """
    if rank < 1:
        raise ConfigurationError(f"rank={rank}: a whole number, at least 1")
    model.requires_grad_(False)
    chosen = list(linear_maps(model, names))
    if not chosen:
        raise ConfigurationError(f"the model has no linear maps named {', '.join(names)}")
    added: list[nn.Parameter] = []
    for _, module in chosen:
        addition = LowRank(module.weight, rank)
        parametrize.register_parametrization(module, "weight", addition)
        added += [addition.down, addition.up]
    return added


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The additions of a model that `attach` was called on, in half precision: `<name>.down` and `<name>.up`."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LowRank):
            continue
        place = name.removesuffix(".parametrizations.weight.0")
        found[f"{place}.{DOWN}"] = module.down.detach().half().contiguous()
        found[f"{place}.{UP}"] = (module.scale * module.up.detach()).half().contiguous()
    return found


def merge(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Add saved additions to the weights of a model, in single precision.

    Raises:
        DataError: a tensor belongs to no linear map of the model, has no partner or does not fit. Nothing is changed then.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    places = {name.rsplit(".", 1)[0] for name in tensors}
    changes: list[tuple[nn.Linear, Tensor]] = []
    for place in sorted(places):
        down, up = tensors.get(f"{place}.{DOWN}"), tensors.get(f"{place}.{UP}")
        if down is None or up is None:
            raise DataError(f"the adapter has only one of the two tensors of {place}")
        if place not in modules:
            raise DataError(f"the adapter changes {place}, which the model does not have")
        weight = modules[place].weight
        if (up.shape[0], down.shape[-1]) != tuple(weight.shape) or up.shape[-1] != down.shape[0]:
            raise DataError(f"the adapter's tensors {tuple(up.shape)} and {tuple(down.shape)} do not fit {place}")
        changes.append((modules[place], up.float() @ down.float()))
    with torch.no_grad():
        for module, change in changes:
            module.weight += change.to(module.weight.device, module.weight.dtype)
