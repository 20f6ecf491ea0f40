"""The embedded encoder twice: inside a guard, and bare. Both share the weights in memory; only the guard's has hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from mlpm_guard import Guard, TransformerEncoder
from mlpm_guard.encoders.embedded import embedded_folder

BATCH_TOKENS = 1024
BATCH_ROWS = 256


@dataclass
class Pair:
    """A guard, and the same weights the plain Hugging Face way."""

    guard: Guard
    encoder: TransformerEncoder
    model: Any
    tokenizer: Any

    @torch.inference_mode()
    def one(self, text: str) -> torch.Tensor:
        """Mean of the last hidden states of one text."""
        inputs = self.tokenizer(text, return_tensors="pt")
        return _mean(self.model(**inputs).last_hidden_state, inputs["attention_mask"])

    @torch.inference_mode()
    def sorted_batches(self, texts: Sequence[str]) -> torch.Tensor:
        """The same of many: tokenised in one go, sorted by length, padded batches of a bounded number of tokens."""
        ids = self.tokenizer(list(texts))["input_ids"]
        pooled: list[torch.Tensor] = []
        for batch in _batches([len(row) for row in ids]):
            inputs = self.tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
            pooled.append(_mean(self.model(**inputs).last_hidden_state, inputs["attention_mask"]))
        return torch.cat(pooled)


def load() -> Pair:
    """The pair. The guard is `default`, which reads every layer: no forward pass ends early and flatters it."""
    logging.disable_progress_bar()
    folder = str(embedded_folder())
    guard = Guard.from_pretrained(device="cpu").load()
    encoder = guard.encoder
    assert isinstance(encoder, TransformerEncoder)
    bare = AutoModel.from_pretrained(folder).eval()
    # Other modules without hooks, the same tensors, with whatever adapter was merged into them.
    bare.load_state_dict(encoder._ready().core.state_dict(), assign=True)
    return Pair(guard, encoder, bare, AutoTokenizer.from_pretrained(folder))


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if found and lengths[row] * (len(found[-1]) + 1) <= BATCH_TOKENS and len(found[-1]) < BATCH_ROWS:
            found[-1].append(row)
        else:
            found.append([row])
    return found
