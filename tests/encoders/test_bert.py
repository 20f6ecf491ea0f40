"""BERT's blocks, called directly, against the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers

from mlpm_guard.encoders.bert import BertBlocks
from mlpm_guard.encoders.blocks import POOLS
from mlpm_guard.errors import UnsupportedArchitectureError

ROWS = {"one": [[2, 7, 8, 9, 3]], "of one length": [[2, 5, 3], [2, 9, 3]], "padded": [[2, *range(5, 40), 3], [2, 6, 3], [2]]}


def model(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, **options
    )
    return transformers.BertModel(config).eval().to(dtype)


@pytest.mark.parametrize("pooling", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_states_are_those_of_the_model_to_the_last_bit(rows: list[list[int]], dtype: torch.dtype, pooling: str) -> None:
    core = model(dtype)
    hidden, mask = tiny.hidden_states(core, rows, positions=False)
    pool = POOLS[pooling](mask)
    with torch.inference_mode():
        states = BertBlocks(core).states(tiny.padded(rows)[0], mask, (1, 3, 4), pool)
    assert torch.equal(states, torch.stack([pool(hidden[index]) for index in (1, 3, 4)], dim=1))


def test_no_block_behind_the_deepest_wanted_one_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BertBlocks(model())
    ran: list[object] = []
    through = blocks._through
    monkeypatch.setattr(blocks, "_through", lambda block, *rest: ran.append(block) or through(block, *rest))
    ids, mask = tiny.padded([[2, 7, 3]])
    assert blocks.states(ids, mask, (2,), POOLS["cls"](mask)).shape == (1, 1, 32)
    assert len(ran) == 2


def test_weights_are_shared_with_the_model() -> None:
    core = model()
    blocks = BertBlocks(core)
    ids, mask = tiny.padded([[2, 7, 3]])
    core.to(torch.float64).to(torch.float32)
    with torch.no_grad():
        core.encoder.layer[0].output.dense.bias += 1.0
        states = blocks.states(ids, mask, (1,), POOLS["cls"](mask))
    assert torch.equal(states[0, 0], tiny.hidden_states(core, [[2, 7, 3]], positions=False)[0][1][0, 0])


@pytest.mark.parametrize("options", [{"is_decoder": True}, {"hidden_act": "relu"}], ids=str)
def test_a_model_that_works_otherwise_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="plain BERT encoder"):
        BertBlocks(model(**options))
