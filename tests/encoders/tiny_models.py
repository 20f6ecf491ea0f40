"""Tiny models and tokenizers, randomly initialised: no downloads, milliseconds each."""

from __future__ import annotations

import inspect
import string
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from mlpm_guard.encoders.transformer import TransformerEncoder

VOCAB = 192
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CHARACTERS = string.ascii_letters + string.digits + " .,:;!?'\"-_()[]{}<>|/#@*=+&%$~\n"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate, not ' + message['content']) }}{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
WITH_SYSTEM = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def character_tokenizer(
    *, template: str | None = None, special: Sequence[str] = ("<|im_start|>", "<|im_end|>"), bos: bool = True, **options: Any
) -> PreTrainedTokenizerFast:
    """A causal model's tokenizer: a token a character, `<s>` put in front, control tokens added."""
    names = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*names, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*names, *special)])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    defaults: dict[str, Any] = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, **{**defaults, **options})
    wrapped.chat_template = template
    return wrapped


def bert_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """An encoder's tokenizer: lower-cased characters between [CLS] and [SEP]."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*names, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    defaults = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**defaults, **options})


def byte_tokenizer(*, template: str | None = None, special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """GPT-2's manner: bytes, no token for the unknown, one `<|endoftext|>` that is start, end and unknown at once."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<|endoftext|>", *special)])
    name = "<|endoftext|>"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=name, eos_token=name, unk_token=name)
    wrapped.chat_template = template
    return wrapped


def config(name: str, **options: Any) -> Any:
    return getattr(transformers, name)(**{**SIZES, **options})


def build(auto: Any, configuration: Any, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A model with weights large enough that layers differ."""
    torch.manual_seed(seed)
    model = auto.from_config(configuration, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.08)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}
CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: config("LlamaConfig", num_key_value_heads=2),
    "mistral": lambda: config("MistralConfig", num_key_value_heads=2, sliding_window=8),
    "qwen3": lambda: config("Qwen3Config", num_key_value_heads=2, head_dim=8),
    "gemma3": lambda: config("Gemma3TextConfig", num_key_value_heads=2, head_dim=8, sliding_window=8),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCAB, **GPT, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "gpt-neox": lambda: config("GPTNeoXConfig"),
    "phi3": lambda: config("Phi3Config", num_key_value_heads=2),
    "olmo2": lambda: config("Olmo2Config", num_key_value_heads=2),
    "olmoe": lambda: config("OlmoeConfig", **MOE),
    "mixtral": lambda: config("MixtralConfig", num_key_value_heads=2, **MOE),
    "qwen3-moe": lambda: config("Qwen3MoeConfig", num_key_value_heads=2, head_dim=8, moe_intermediate_size=16, **MOE),
    "falcon-rotary": lambda: config("FalconConfig", alibi=False, new_decoder_architecture=False),
    "falcon-alibi": lambda: config("FalconConfig", alibi=True, new_decoder_architecture=False),
    "opt": lambda: config("OPTConfig", ffn_dim=64, word_embed_proj_dim=32),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=4, n_head=4, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
}
STATEFUL: dict[str, Callable[[], Any]] = {
    "lfm2": lambda: config(
        "Lfm2Config",
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        block_ff_dim=64,
    ),
    "jamba": lambda: config(
        "JambaConfig",
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, state_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
}
"""Models with recurrent or convolutional blocks."""
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: config("BertConfig"),
    "roberta": lambda: config("RobertaConfig"),
    "xlm-roberta": lambda: config("XLMRobertaConfig"),
    "deberta-v2": lambda: config("DebertaV2Config", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16),
    "modernbert": lambda: config(
        "ModernBertConfig", local_attention=8, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=VOCAB, dim=32, hidden_dim=64, n_layers=4, n_heads=4, pad_token_id=0
    ),
    "mpnet": lambda: config("MPNetConfig"),
    "electra": lambda: config("ElectraConfig", embedding_size=16),
}


def causal_model(name: str = "llama", *, auto: Any = AutoModelForCausalLM, **options: Any) -> Any:
    return build(auto, CAUSAL[name](), **options)


def encoder_model(name: str = "bert", *, auto: Any = AutoModel, **options: Any) -> Any:
    return build(auto, ENCODERS[name](), **options)


def token_rows(encoder: TransformerEncoder, conversations: Sequence[Any]) -> list[list[int]]:
    from mlpm_guard.conversation import Conversation

    encoder.load()
    assert encoder._state is not None
    return encoder._state.prompts.token_ids([Conversation.parse(each) for each in conversations])


def padded(rows: Sequence[list[int]], *, pad: int = 0, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of rows, padded here and not by the library."""
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    zeros = [[0] * (width - len(row)) for row in rows]
    if side == "right":
        return (
            torch.tensor([row + gap for row, gap in zip(rows, fill, strict=True)]),
            torch.tensor([one + gap for one, gap in zip(ones, zeros, strict=True)]),
        )
    return (
        torch.tensor([gap + row for row, gap in zip(rows, fill, strict=True)]),
        torch.tensor([gap + one for one, gap in zip(ones, zeros, strict=True)]),
    )


def hidden_states(model: nn.Module, rows: Sequence[list[int]], *, positions: bool, pad: int = 0) -> tuple[Any, torch.Tensor]:
    """`output_hidden_states` of a model on rows padded right, and the mask."""
    ids, mask = padded(rows, pad=pad)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if positions and "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.stack([torch.arange(ids.shape[1]).clamp(max=int(n) - 1) for n in mask.sum(1)])
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states, mask


class CallCounter:
    """Counts how often each module is called, in the thread that asks."""

    def __init__(self, modules: dict[Any, nn.Module]) -> None:
        self.calls: dict[Any, int] = dict.fromkeys(modules, 0)
        self._lock = threading.Lock()
        self._handles = [module.register_forward_pre_hook(self._counted(name)) for name, module in modules.items()]

    def _counted(self, name: Any) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            with self._lock:
                self.calls[name] += 1

        return hook

    def __enter__(self) -> CallCounter:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


__all__ = [name for name in dir() if not name.startswith("_")] + ["AutoModelForMaskedLM"]
