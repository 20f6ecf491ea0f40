"""Low-rank adapters as files: read, checked, and merged into a model's linear maps, where W becomes W + B A.

Merged, an adapter costs nothing at run time. A file holds two small matrices for each map that it changes, B (out, rank) as
`<map>.up` and A (rank, in) as `<map>.down`, and says which model it was trained on. `mlpm_guard/bundles/low_rank.py` trains
adapters and writes them; nothing here needs it. Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
arXiv 2106.09685.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from mlpm_guard.errors import AdapterError, EncoderLoadError, WeightsMismatchError

UP, DOWN = "up", "down"
MAX_BYTES = 2**30
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

Pairs = dict[str, tuple[Tensor, Tensor]]
"""B and A of every map that an adapter changes, by the map's name in the model without its head."""


class AdapterInfo(BaseModel):
    """Metadata of an adapter file. More of it is allowed and not read.

    Attributes:
        base: hub name or path of the model that the adapter was trained on.
        base_weights: `EncoderIdentity.weights` of that model.
        base_dtype: type that the model had then; in another type its weights cannot be compared.
        rank: of every addition.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["mlpm-guard-adapter"] = "mlpm-guard-adapter"
    schema_version: Literal["1"] = "1"
    base: str
    base_weights: str = Field(pattern=r"^[0-9a-f]{64}$")
    base_dtype: str
    rank: int = Field(ge=1)


@dataclass(frozen=True)
class Adapter:
    """An adapter file that was read and checked.

    Attributes:
        path: where it was read from.
        sha256: of the file.
        info: what it says of itself.
        pairs: its matrices.
    """

    path: Path
    sha256: str
    info: AdapterInfo
    pairs: Pairs

    def merge_into(self, core: nn.Module, weights: str, dtype: str) -> None:
        """Add it to the weights of a model.

        Args:
            core: the model without its head; is changed.
            weights: `EncoderIdentity.weights` of that model.
            dtype: `EncoderIdentity.dtype` of that model.

        Raises:
            AdapterError: it was trained on another model.
        """
        if dtype == self.info.base_dtype and weights != self.info.base_weights:
            raise AdapterError(
                f"the adapter {self.path} was trained on {self.info.base}, with other weights than this model has. Merge it "
                "into that model, or train one on this model"
            )
        try:
            merge(core, self.pairs)
        except AdapterError as error:
            raise AdapterError(f"the adapter {self.path} {error}") from None


def content_of(path: Path, expected: str | None = None) -> tuple[bytes, str]:
    """An adapter file's bytes and their SHA-256, which must be the expected one where there is one.

    Raises:
        EncoderLoadError: it is missing or cannot be read.
        AdapterError: it is too large for an adapter.
        WeightsMismatchError: it is another file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AdapterError(
                f"{path} has {size} bytes, and an adapter is far smaller: give the file with the low-rank matrices alone"
            )
        content = path.read_bytes()
    except OSError as error:
        raise EncoderLoadError(
            f"cannot read the adapter {path} ({error.strerror or type(error).__name__}); give the path of its safetensors "
            "file, or adapter=None for the encoder without one"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if expected is not None and found != expected:
        raise WeightsMismatchError(
            f"the adapter {path} has SHA-256 {found}, not {expected}: it was altered or replaced, and is not used. Put the "
            "right file back; where it came with the library, reinstall that"
        )
    return content, found


def read(path: Path, expected: str | None = None) -> Adapter:
    """Read and check an adapter file. Whether it fits a model shows when it is merged.

    Args:
        path: a safetensors file.
        expected: SHA-256 that it must have; None takes any.

    Raises:
        EncoderLoadError: it is missing or cannot be read.
        WeightsMismatchError: it is another file than the expected one.
        AdapterError: it is no adapter, or holds what cannot be merged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    content, sha256 = content_of(path, expected)
    try:
        tensors: dict[str, Tensor] = from_bytes(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path} is not a safetensors file ({type(error).__name__}): it is truncated or of another kind; train or copy "
            "it again"
        ) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        info = AdapterInfo.model_validate({"format": None, "schema_version": None, **header.get("__metadata__", {})})
    except ValidationError as error:
        wrong = ", ".join(sorted({str(each["loc"][0]) for each in error.errors()}))
        raise AdapterError(
            f"{path} does not say that it is an mlpm-guard adapter (bad or missing metadata: {wrong}). Adapters of other "
            "libraries are not read; write it with mlpm_guard.bundles.low_rank.save"
        ) from None
    try:
        pairs = paired(tensors)
        for name, (up, _) in pairs.items():
            if up.shape[1] != info.rank:
                raise AdapterError(f"has rank {up.shape[1]} in {name} and says {info.rank}")
    except AdapterError as error:
        raise AdapterError(f"the adapter {path} {error}; train or copy it again") from None
    return Adapter(path, sha256, info, pairs)


def paired(tensors: Mapping[str, Tensor]) -> Pairs:
    """B and A by the names of the maps that they change.

    Args:
        tensors: `<map>.up` (out, rank) and `<map>.down` (rank, in).

    Raises:
        AdapterError: there are none, one has no partner, or they hold what cannot be multiplied or is not finite. The message
            continues a sentence that starts with the adapter.
    """
    if not tensors:
        raise AdapterError("holds no tensors")
    pairs: Pairs = {}
    for name, tensor in tensors.items():
        place, _, part = name.rpartition(".")
        if not place or part not in (UP, DOWN):
            raise AdapterError(f"holds a tensor {name}; those of an adapter are named <map>.{UP} and <map>.{DOWN}")
        if tensor.dtype not in _DTYPES or tensor.ndim != 2 or 0 in tensor.shape:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise AdapterError(
                f"holds a tensor {name} of {kind} and shape {tuple(tensor.shape)}; matrices of floats are merged"
            )
        if not bool(tensor.isfinite().all()):
            raise AdapterError(f"holds NaN or infinity in {name}")
        up, down = tensors.get(f"{place}.{UP}"), tensors.get(f"{place}.{DOWN}")
        if up is None or down is None:
            raise AdapterError(f"has only one of the two tensors of {place}")
        if part == UP:
            pairs[place] = (up, down)
    for place, (up, down) in pairs.items():
        if up.shape[1] != down.shape[0]:
            raise AdapterError(f"has matrices {tuple(up.shape)} and {tuple(down.shape)} of {place}, which cannot be multiplied")
    return pairs


def merge(core: nn.Module, pairs: Pairs) -> None:
    """Add matrices of low rank to a model's weights. The sum is taken in single precision and on the weights' device.

    Raises:
        AdapterError: a matrix belongs to no linear map of the model or does not fit it, and nothing is changed; or a sum is not
            finite in the model's type, and the model is not to be used. The message continues a sentence that starts with the
            adapter.
    """
    modules = dict(core.named_modules())
    for place, (up, down) in pairs.items():
        module = modules.get(place)
        if not isinstance(module, nn.Linear):
            raise AdapterError(
                f"changes {place}, which is no linear map of this model ({type(core).__name__}); was it trained on another one?"
            )
        weight = module.weight
        if not weight.is_floating_point():
            raise AdapterError(f"changes {place}, whose weights are quantised here; load the model in a floating-point type")
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] > min(weight.shape):
            raise AdapterError(
                f"has matrices {tuple(up.shape)} and {tuple(down.shape)} that do not fit {place}, of shape "
                f"{tuple(weight.shape)}; was it trained on another model?"
            )
    with torch.no_grad():
        for place, (up, down) in pairs.items():
            module = modules[place]
            assert isinstance(module, nn.Linear)
            device, dtype = module.weight.device, module.weight.dtype
            merged = (module.weight.float() + up.to(device).float() @ down.to(device).float()).to(dtype)
            if not bool(merged.isfinite().all()):
                raise AdapterError(f"makes the weights of {place} infinite in {str(dtype).removeprefix('torch.')}")
            # Not in place: weights that were just loaded may be pages of their file.
            module.weight.data = merged
