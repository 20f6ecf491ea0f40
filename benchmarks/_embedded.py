"""The embedded encoder twice: inside a guard, and bare. Both share the weights in memory; only the guard's has hooks."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _prompts import prompts
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from mlpm_guard import Guard, TransformerEncoder, bundle
from mlpm_guard.encoders.embedded import embedded_folder
from mlpm_guard.prototypes.scorer import LayerScorer

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
    """The pair. The guard's scorer uses every layer, so that no forward pass ends early and flatters the guard."""
    logging.disable_progress_bar()
    folder = str(embedded_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    bare = copy.deepcopy(model, weights)  # other modules without hooks, the same tensors
    encoder = TransformerEncoder(model, tokenizer, batch_tokens=BATCH_TOKENS).load()
    return Pair(_guard(encoder), encoder, bare, copy.deepcopy(tokenizer))


def _guard(encoder: TransformerEncoder) -> Guard:
    """A guard saved and loaded again with another scorer; what it says means nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guard"
        fitted = Guard(encoder).fit(prompts(32, 5, 20), [index % 2 for index in range(32)], progress=False)
        fitted.save_pretrained(path, statistics=False)
        scorer = _every_layer(len(encoder.layers), encoder.dim)
        bundle.save(path, bundle.load(path).manifest, scorer, None)
        return Guard.from_pretrained(path, encoder=encoder)


def _every_layer(layers: int, dim: int) -> LayerScorer:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(layers, dim))
    return LayerScorer(np.arange(layers), weights, np.zeros(layers), np.ones(layers), -layers / 2, (-1.0, 1.0))


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
