"""Trains the low-rank adapter of the embedded encoder that ships: from labelled public texts to `adapter/adapter.safetensors`.

    python mlpm_guard/bundles/train_adapter.py DATA_FOLDER

DATA_FOLDER (or MLPM_GUARD_DATA) is that of `fit_default.py`. The published weights stay as they are; every linear map of the
six blocks gets an addition of rank `RANK`. What is learned is to tell unsafe from safe texts from the states of every layer, as
the prototypes read them (mean and [CLS]), and one unsafe category from another. The outputs that it is learned with are thrown
away: the prototypes are fitted afterwards, on the states. Of what was learned, a share of `KEPT` is added to the published
weights, since weights between the two do better on prompts of other kinds than those they were trained on (Wortsman et al.,
"Robust fine-tuning of zero-shot models", arXiv 2109.01903). For the same reason it is the mean of two runs: one on public
sources and twins, and one that also learns from traffic, minimal pairs and messages, as the prototypes do. Seeded; the last
digits depend on the machine.

Takes 25 minutes on 2 cores that multiply numbers of 16 bits, more than twice as long on others. Afterwards, put the printed
SHA-256 into `mlpm_guard/encoders/embedded.py`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from mlpm_guard.bundles.lessons import Lesson, Variation, answers, fewer_prompts, prompts
from mlpm_guard.bundles.low_rank import attach, mean, save, tensors_of
from mlpm_guard.encoders.adapter import UP
from mlpm_guard.encoders.embedded import ADAPTER, EmbeddedEncoder, embedded_folder

SEED = 1
RANK = 16
MAPS = ("query", "key", "value", "dense")
EPOCHS = (1.75, 1.5)
"""Of the run on fewer lessons, and of that on all."""
BATCH_TOKENS = 2048
LENGTHS = (12, 16, 20, 24, 32, 40, 48, 64, 88, 112)
"""Tokens of a row, padding included. Few lengths, because every new shape of a batch costs time to prepare for."""
LONGEST = {"prompt": 64, "answer": 112}
LONGEST_TOKENISED = 400

KEPT = 0.75
RATE, HEAD_RATE = 1e-3, 2e-3
WARM_UP, LAST_RATE = 0.05, 0.02
SMOOTHING = 0.05
DROPPED_TOKENS = 0.05
LAYER_BELOW = 0.5
"""Weight of a layer in the loss, beside that of the layer above it; the last one has 1."""
ANSWERS_WEIGHT, CATEGORIES_WEIGHT = 0.5, 0.3
CATEGORY_LAYERS = 2
KINDS = ("prompt", "answer")
UNKNOWN = -1


class Batch(NamedTuple):
    """Token ids and attention mask, each of shape (rows, length), and which lessons the rows are."""

    ids: Tensor
    mask: Tensor
    rows: list[int]


class Outputs(nn.Module):
    """What the encoder is trained with.

    Args:
        layers: of the encoder.
        dim: of a layer's state.
        categories: how many there are.
    """

    def __init__(self, layers: int, dim: int, categories: int) -> None:
        super().__init__()
        self.labels = nn.ModuleList(nn.Linear(dim, len(KINDS)) for _ in range(layers))
        self.categories = nn.Linear(CATEGORY_LAYERS * dim, max(categories, 1))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Targets(NamedTuple):
    """Labels, weights, whether a lesson is an answer, and categories (or `UNKNOWN`), each of shape (lessons,)."""

    labels: Tensor
    weights: Tensor
    answers: Tensor
    categories: Tensor

    def of(self, rows: list[int]) -> Targets:
        """Those of some lessons."""
        return Targets(*(each[rows] for each in self))


def targets(lessons: Sequence[Lesson], categories: Sequence[str]) -> Targets:
    """What is to be learned from the lessons."""
    return Targets(
        torch.tensor([float(lesson.label) for lesson in lessons]),
        torch.tensor([lesson.weight for lesson in lessons]),
        torch.tensor([lesson.kind == "answer" for lesson in lessons]),
        torch.tensor([categories.index(each.category) if each.label and each.category else UNKNOWN for each in lessons]),
    )


def cut(tokens: list[int], lesson: Lesson, tokenizer: PreTrainedTokenizerBase, chance: random.Random) -> list[int]:
    """As many tokens as are read, some of them missing or masked, between the special ones.

    An unsafe prompt is read from its beginning; anything else from anywhere, half of the time.
    """
    room = LONGEST[lesson.kind] - 2
    if len(tokens) > room:
        whole = lesson.kind == "prompt" and lesson.label == 1
        start = 0 if whole or chance.random() < 0.5 else chance.randrange(len(tokens) - room + 1)
        tokens = tokens[start : start + room]
    if len(tokens) > 6:
        kept: list[int] = []
        for token in tokens:
            if chance.random() >= DROPPED_TOKENS:
                kept.append(token)
            elif chance.random() < 0.5:
                kept.append(tokenizer.mask_token_id)
        tokens = kept
    return [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id]


def batches(
    lessons: Sequence[Lesson],
    chosen: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    chance: random.Random,
    *,
    messages: bool = True,
) -> Iterator[Batch]:
    """Batches of `BATCH_TOKENS` over the chosen lessons, each of rows of like length, in a random order."""
    harmless = [lesson.text for lesson in lessons if lesson.kind == "prompt" and lesson.label == 0]
    variation = Variation(harmless, chance, messages=messages)
    texts = [variation(lessons[index]) for index in chosen]
    tokenised = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=LONGEST_TOKENISED)["input_ids"]
    rows = [cut(tokens, lessons[index], tokenizer, chance) for index, tokens in zip(chosen, tokenised, strict=True)]
    full: list[tuple[int, list[int]]] = []
    waiting: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        length = next(each for each in LENGTHS if len(row) <= each)
        batch = waiting.setdefault(length, [])
        batch.append(at)
        if len(batch) == BATCH_TOKENS // length:
            full.append((length, waiting.pop(length)))
    # The last rows of a length are read again until they fill a batch.
    full += [(length, (batch * (BATCH_TOKENS // length))[: BATCH_TOKENS // length]) for length, batch in waiting.items()]
    chance.shuffle(full)
    for length, batch in full:
        ids = torch.tensor([rows[at] + [tokenizer.pad_token_id] * (length - len(rows[at])) for at in batch])
        mask = torch.tensor([[1] * len(rows[at]) + [0] * (length - len(rows[at])) for at in batch])
        yield Batch(ids, mask, [chosen[at] for at in batch])


@cache
def computes_in_half() -> bool:
    """Whether the processor multiplies numbers of 16 bits itself; where it does not, imitating that takes 25 times as long."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16") or able.get("bf16"))


def states(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Mean and [CLS] of every layer, each of shape (rows, dim), as the encoder pools them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=computes_in_half()):
        hidden = model(batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states[1:]
    mask = batch.mask.unsqueeze(-1).float()
    return [torch.cat([(each.float() * mask).sum(1) / mask.sum(1), each[:, 0].float()], 1) for each in hidden]


def loss(outputs: Outputs, layers: list[Tensor], target: Targets) -> Tensor:
    """Weighted log-loss: of labels from every layer alone, as the prototypes judge, and of categories from the last ones."""
    smooth = target.labels * (1 - 2 * SMOOTHING) + SMOOTHING
    weights = torch.where(target.answers, ANSWERS_WEIGHT * target.weights, target.weights)
    total = torch.zeros(())
    for index, (output, layer) in enumerate(zip(outputs.labels, layers, strict=True)):
        logits = output(layer).gather(1, target.answers.long()[:, None])[:, 0]
        of_rows = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        total = total + LAYER_BELOW ** (len(layers) - 1 - index) * (of_rows * weights).mean()
    known = target.categories != UNKNOWN
    if bool(known.any()):
        of_category = outputs.categories(torch.cat(layers[-CATEGORY_LAYERS:], 1)[known])
        share = known.float().mean()
        total = total + CATEGORIES_WEIGHT * share * functional.cross_entropy(of_category, target.categories[known])
    return total


def rate(done: float) -> float:
    """Share of the full learning rate once a share of the work is done: a short rise, then half a cosine."""
    if done < WARM_UP:
        return done / WARM_UP
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def train(
    lessons: Sequence[Lesson], *, epochs: float, messages: bool = True, rank: int = RANK, seed: int = SEED
) -> dict[str, Tensor]:
    """One run.

    Args:
        lessons: prompts and answers.
        epochs: how often each is read; the last one may be a part.
        messages: short prompts are also read as messages to somebody.
        rank: of the additions.
        seed: of everything that is random.

    Returns:
        Its tensors, for `low_rank.save`.
    """
    torch.manual_seed(seed)
    chance = random.Random(seed)  # noqa: S311
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    model = AutoModel.from_pretrained(embedded_folder(), add_pooling_layer=False).eval()
    added = attach(model, MAPS, rank)
    categories = sorted({lesson.category for lesson in lessons if lesson.category and lesson.label})
    outputs = Outputs(model.config.num_hidden_layers, 2 * model.config.hidden_size, len(categories))
    optimizer = torch.optim.AdamW(
        [
            {"params": added, "lr": RATE, "weight_decay": 0.01},
            {"params": list(outputs.parameters()), "lr": HEAD_RATE, "weight_decay": 0.05},
        ],
        betas=(0.9, 0.98),
    )
    full_rates = [group["lr"] for group in optimizer.param_groups]
    target = targets(lessons, categories)
    left = round(epochs * len(lessons))
    with tqdm(total=left, desc="training", unit="texts") as progress:
        while progress.n < progress.total:
            chosen = chance.sample(range(len(lessons)), min(len(lessons), progress.total - progress.n))
            end = progress.n + len(chosen)
            for batch in batches(lessons, chosen, tokenizer, chance, messages=messages):
                for group, full in zip(optimizer.param_groups, full_rates, strict=True):
                    group["lr"] = full * rate(progress.n / progress.total)
                value = loss(outputs, states(model, batch), target.of(batch.rows))
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(added, 1.0)
                optimizer.step()
                progress.update(min(len(batch.rows), end - progress.n))
                progress.set_postfix(loss=f"{value.item():.3f}", refresh=False)
    return {name: KEPT * tensor if name.endswith(UP) else tensor for name, tensor in tensors_of(model).items()}


def train_both(
    fewer: Sequence[Lesson], every: Sequence[Lesson], *, epochs: tuple[float, float] = EPOCHS, rank: int = RANK
) -> dict[str, Tensor]:
    """The adapter that ships: the mean of a run on fewer lessons, none read as a message, and one on all; see `train`."""
    first = train(fewer, epochs=epochs[0], messages=False, rank=rank)
    return mean([first, train(every, epochs=epochs[1], rank=rank)], rank)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("MLPM_GUARD_DATA"))
    parser.add_argument("--out", type=Path, default=ADAPTER)
    parser.add_argument("--epochs", type=float, nargs=2, default=EPOCHS, help="of the run on fewer lessons, and of that on all")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("no data folder: give it as an argument, or set MLPM_GUARD_DATA")
    data = Path(options.data)
    for name in ("response", "train"):
        if not (data / name).is_dir():
            sys.exit(f"{data} has no folder named {name}")
    to_answers = answers(data)
    tensors = train_both(
        [*fewer_prompts(data), *to_answers], [*prompts(data), *to_answers], epochs=(options.epochs[0], options.epochs[1])
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    saved = save(options.out, tensors, EmbeddedEncoder(adapter=None).identity)
    print(f"saved {options.out}, rank {saved.info.rank}, SHA-256 {saved.sha256}")


if __name__ == "__main__":
    main()
