"""Causal models with random weights in the shapes of real ones, and a tokenizer: enough to measure what a guard costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from mlpm_guard import Guard, TransformerEncoder
from mlpm_guard.generation import GuardedGenerator

VOCABULARY = 32_000
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_FRAME = 3  # tokens that the template puts around one user turn


@dataclass(frozen=True)
class Preset:
    """A model's shape, and what is measured on it."""

    shape: dict[str, int]
    dtype: str
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    new_tokens: tuple[int, ...]
    targets: dict[str, float]


PRESETS = {
    "llama-100m": Preset(
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
        "float32",
        (1,),
        (128, 512),
        (1, 32),
        {"time": 1.02, "memory": 1.02, "flagged": 1.02},
    ),
    "llama-8b": Preset(
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        "bfloat16",
        (1, 8, 32),
        (128, 512, 2048),
        (1, 32),
        {"first token": 1.005},
    ),
}


@dataclass
class Subject:
    """A model, plain and guarded."""

    model: Any
    tokenizer: Any
    guard: Guard
    generator: GuardedGenerator

    def prompt(self, tokens: int) -> str:
        """A user turn that becomes so many tokens with its template."""
        return " ".join(f"w{10 + index % 997}" for index in range(tokens - _FRAME))

    def plain(self, prompts: list[str], **arguments: Any) -> list[str]:
        """Tokenise, generate and decode the plain Hugging Face way."""
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = self.tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        inputs = inputs.to(self.model.device)
        sequences = self.model.generate(**inputs, do_sample=False, **arguments)
        texts: list[str] = self.tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    def guarded(self, prompts: list[str], **arguments: Any) -> list[str]:
        """The same behind the guard."""
        results = self.generator.generate(prompts, do_sample=False, **arguments)
        return [result.text for result in results]


def load(preset: Preset, device: str) -> Subject:
    """A random model of that shape, with a guard fitted on it that reads every layer, and blocks all or, as now, nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=True, **preset.shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, preset.dtype)).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=2, bos_token_id=1, max_new_tokens=1)
    tokenizer = _tokenizer()
    guard = Guard(TransformerEncoder(model, tokenizer), threshold=0.0, mode="monitor")
    texts = [" ".join(f"w{(7 * row + 13 * index) % 900 + 10}" for index in range(8)) for row in range(32)]
    guard.fit(texts, [row % 2 for row in range(32)], C=1e6, progress=False)
    return Subject(model, tokenizer, guard, GuardedGenerator(model, tokenizer, guard))


def _tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {token: index for index, token in enumerate(special)}
    vocabulary |= {f"w{index}": index for index in range(len(special), VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="</s>",
        padding_side="left",
        additional_special_tokens=special[3:],
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
