"""BERT's blocks, called directly.

A forward pass of a small encoder over one prompt spends a quarter of its time between operations: module calls, mask building,
inspected signatures, a pooler that nobody reads. Here the same operations run in the same order on the same weights, so that
states are those of transformers' `BertModel` in evaluation mode, to the last bit. For a model that nobody else holds: hooks
and replaced modules are passed by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlpm_guard.encoders.blocks import Pool, stacked
from mlpm_guard.errors import UnsupportedArchitectureError


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: nn.Linear) -> _Linear:
        return cls(module.weight, module.bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight, self.bias)


class _Norm(NamedTuple):
    shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> _Norm:
        return cls(tuple(module.normalized_shape), module.weight, module.bias, module.eps)

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.layer_norm(hidden, self.shape, self.weight, self.bias, self.epsilon)


class _Block(NamedTuple):
    """Weights of one block, in the order in which they are used."""

    query: _Linear
    key: _Linear
    value: _Linear
    attended: _Linear
    attended_norm: _Norm
    wide: _Linear
    narrow: _Linear
    norm: _Norm

    @classmethod
    def of(cls, layer: Any) -> _Block:
        attention = layer.attention.self
        return cls(
            _Linear.of(attention.query),
            _Linear.of(attention.key),
            _Linear.of(attention.value),
            _Linear.of(layer.attention.output.dense),
            _Norm.of(layer.attention.output.LayerNorm),
            _Linear.of(layer.intermediate.dense),
            _Linear.of(layer.output.dense),
            _Norm.of(layer.output.LayerNorm),
        )


class BertBlocks:
    """The blocks of a BERT encoder.

    Args:
        core: transformers' `BertModel` in evaluation mode. Its weights are shared; it may be moved to another device.

    Raises:
        UnsupportedArchitectureError: it is not an encoder with the GELU of the original.
    """

    def __init__(self, core: Any) -> None:
        config = core.config
        positions = getattr(config, "position_embedding_type", "absolute")
        if config.model_type != "bert" or config.is_decoder or config.hidden_act != "gelu" or positions != "absolute":
            raise UnsupportedArchitectureError(f"{type(core).__name__} is not a plain BERT encoder; use TransformerEncoder")
        self._embeddings = core.embeddings
        self._norm = _Norm.of(core.embeddings.LayerNorm)
        self._blocks = [_Block.of(layer) for layer in core.encoder.layer]
        self._heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)

    def states(self, ids: Tensor, mask: Tensor, wanted: Sequence[int], pool: Pool) -> Tensor:
        """Pooled states, float32, shape (rows, len(wanted), dim); runs the blocks up to the deepest that is wanted.

        Args:
            ids: token ids, shape (rows, tokens).
            mask: 1 for a token and 0 for padding, shape (rows, tokens).
            wanted: `hidden_states` indices, from 1.
            pool: what is kept of each.
        """
        # Without padding there is nothing to mask.
        visible = None if bool(mask.all()) else mask.to(torch.bool)[:, None, None, :]
        hidden = self._embedded(ids)
        found: dict[int, Tensor] = {}
        for index, block in enumerate(self._blocks[: max(wanted)], start=1):
            hidden = self._through(block, hidden, visible)
            if index in wanted:
                found[index] = pool(hidden)
        return stacked(found, wanted)

    def _embedded(self, ids: Tensor) -> Tensor:
        words, kinds, positions = (
            getattr(self._embeddings, name).weight
            for name in ("word_embeddings", "token_type_embeddings", "position_embeddings")
        )
        return self._norm(functional.embedding(ids, words) + kinds[0] + positions[: ids.shape[1]])

    def _through(self, block: _Block, hidden: Tensor, visible: Tensor | None) -> Tensor:
        shape = (*hidden.shape[:2], *self._heads)
        query, key, value = (each(hidden).view(shape).transpose(1, 2) for each in (block.query, block.key, block.value))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        attended = attended.transpose(1, 2).reshape(hidden.shape)
        hidden = block.attended_norm(block.attended(attended) + hidden)
        return block.norm(block.narrow(functional.gelu(block.wide(hidden))) + hidden)
