"""Training low-rank adapters of an encoder's linear maps: W becomes W + B A, with B (out, rank) and A (rank, in).

Attached for training, taken out as a handful of small tensors, and saved as a file that `mlpm_guard/encoders/adapter.py` reads
and merges. Nothing that runs in a guard imports this. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mlpm_guard.encoders import adapter as adapters
from mlpm_guard.encoders.base import EncoderIdentity
from mlpm_guard.errors import ConfigurationError


class LowRankLinear(nn.Linear):
    """A frozen linear map with a trainable addition `up @ down`; nothing at the start, because `up` is zero.

    The product is never formed, so that no gradient of the size of the weight is.

    Args:
        base: the map; its weight and bias are shared.
        rank: of the addition.
        scale: of the addition; only its size while training, since saved tensors hold it.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float = 2.0) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """What the map gives, with its addition."""
        return super().forward(input) + self.scale * nn.functional.linear(nn.functional.linear(input, self.down), self.up)


def linear_maps(model: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """Linear maps whose qualified name ends with one of `names`, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(names):
            yield name, module


def attach(model: nn.Module, names: tuple[str, ...], rank: int) -> list[nn.Parameter]:
    """Freeze a model and give it trainable low-rank additions.

    Args:
        model: is changed. What is to be saved belongs to the model without its head, such as `AutoModel` gives.
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
    for name, module in chosen:
        addition = LowRankLinear(module, rank)
        model.set_submodule(name, addition)
        added += [addition.down, addition.up]
    return added


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The additions of a model that `attach` was called on, in half precision: `<name>.down` and `<name>.up`."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            found[f"{name}.{adapters.DOWN}"] = module.down.detach().half().contiguous()
            found[f"{name}.{adapters.UP}"] = (module.scale * module.up.detach()).half().contiguous()
    return found


def mean(trained: Sequence[Mapping[str, Tensor]], rank: int) -> dict[str, Tensor]:
    """The mean of what adapters add to a model, each map's addition cut to its largest singular values.

    Weights between those of several runs often do better than those of any (Wortsman et al., "Model soups", arXiv 2203.05482).

    Args:
        trained: tensors of each, from `tensors_of`.
        rank: of the result.

    Returns:
        Its tensors, in half precision.

    Raises:
        ConfigurationError: there are none, they change other maps or maps of other sizes, or a map is smaller than the rank.
        AdapterError: the tensors of one are no adapter.
    """
    pairs = [adapters.paired(tensors) for tensors in trained]
    sizes = [{place: (len(up), down.shape[1]) for place, (up, down) in each.items()} for each in pairs]
    if not pairs or any(each != sizes[0] for each in sizes):
        raise ConfigurationError("trained: the tensors of one or more adapters, all of the same maps")
    found: dict[str, Tensor] = {}
    for place in pairs[0]:
        added = torch.stack([up.float() @ down.float() for up, down in (each[place] for each in pairs)]).mean(0)
        if not 1 <= rank <= min(added.shape):
            raise ConfigurationError(f"rank={rank}: a whole number from 1 to {min(added.shape)}, the size of {place}")
        left, values, right = torch.linalg.svd(added, full_matrices=False)
        share = values[:rank].sqrt()
        found[f"{place}.{adapters.UP}"] = (left[:, :rank] * share).half().contiguous()
        found[f"{place}.{adapters.DOWN}"] = (share[:, None] * right[:rank]).half().contiguous()
    return found


def save(path: str | Path, tensors: Mapping[str, Tensor], base: EncoderIdentity) -> adapters.Adapter:
    """Write an adapter file and read it again.

    Args:
        path: of the file; one that is there is replaced.
        tensors: from `tensors_of`.
        base: identity of the encoder that was adapted, without an adapter.

    Returns:
        The adapter as it was read; its `sha256` is what a bundle is bound to.

    Raises:
        ConfigurationError: the encoder has an adapter already. A file adds to the model itself.
        AdapterError: the tensors cannot be merged into anything; the message says why.
    """
    from safetensors.torch import save_file

    if base.adapter is not None:
        raise ConfigurationError("base: the encoder without an adapter, EmbeddedEncoder(adapter=None).identity for instance")
    pairs = adapters.paired(tensors)
    info = adapters.AdapterInfo(
        base=base.model or base.architecture,
        base_weights=base.weights,
        base_dtype=base.dtype,
        rank=next(iter(pairs.values()))[0].shape[1],
    )
    metadata = {name: str(value) for name, value in info.model_dump().items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    Path(path).chmod(0o644)  # it ships: the file is written for its owner alone
    return adapters.read(Path(path))
