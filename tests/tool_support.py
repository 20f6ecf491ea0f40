"""Tiny models with tools: templates in the manner of well-known models, and scripts that a random model follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor

from mlpm_guard import GuardedGenerator
from mlpm_guard.testing import MockGuard
from tests.encoders import tiny_models as tiny

HERMES = (
    "{% if tools %}<|im_start|>system\nYou may call functions. Their signatures:\n<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    "For each call return JSON within <tool_call></tool_call>.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ message.content }}\n</tool_response><|im_end|>\n"
    "{% elif message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant"
    "{% if message.content %}{{ '\n' + message.content }}{% endif %}"
    "{% for call in message.tool_calls %}{{ '\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% if tools %}<|start|>system<|end|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|eot_id|>{% endif %}"
    "{% for message in messages %}"
    "{% if message.tool_calls %}"
    "{% if message.tool_calls | length != 1 %}{{ raise_exception('Only single calls!') }}{% endif %}"
    "{% set call = message.tool_calls[0].function %}"
    '<|start|>assistant<|end|>\n{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% else %}<|start|>{{ 'ipython' if message.role == 'tool' else message.role }}<|end|>\n{{ message.content }}<|eot_id|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}"
    "{% if loop.index0 and messages[loop.index0 - 1].role == 'user' %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if tools and message == last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ message.content }}[/INST]"
    "{% elif message.tool_calls %}[TOOL_CALLS] [{% for call in message.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('Tool call IDs should have length 9!') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}"
    "{% elif message.role == 'tool' %}"
    '[TOOL_RESULTS] {"content": {{ message.content | tojson }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = {
    "hermes": ("<|im_start|>", "<|im_end|>"),
    "llama": ("<|start|>", "<|end|>", "<|eot_id|>", "<|python_tag|>"),
    "mistral": (
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
}
TEMPLATES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL}
OPENINGS = {
    "hermes": "<|im_start|>assistant\n",
    "llama": "<|start|>assistant<|end|>\n",
    "mistral": ("[/INST]", "[/TOOL_RESULTS]"),
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the web.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    },
}
OTHER = {"type": "function", "function": {"name": "other", "description": "Else.", "parameters": {"type": "object"}}}
_SIZE = 300


@dataclass
class ToolWorld:
    """A model, its tokenizer, and where its answers begin."""

    model: Any
    tokenizer: Any
    openings: Sequence[list[int]]

    def generator(self, *, guard: Any = None, **options: Any) -> GuardedGenerator:
        return GuardedGenerator(self.model, self.tokenizer, guard or MockGuard(), **options)

    def script(self, say: str | Callable[[str], str]) -> list[LogitsProcessor]:
        """A logits processor that has the model write a text, or what a function makes of the prompt, and end."""
        return [Script(self, say if callable(say) else lambda _: say)]

    def prompt(self, generator: GuardedGenerator, turns: Any, **options: Any) -> str:
        """What the model reads, as text."""
        return str(self.tokenizer.decode(generator.inputs(turns, **options)["input_ids"][0]))


class Script(LogitsProcessor):
    """Rules out all tokens but the next one of the text. Keeps no state: what was written stands behind the opening."""

    def __init__(self, world: ToolWorld, say: Callable[[str], str]) -> None:
        self._world = world
        self._say = say

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            start = max(_behind(ids, opening) for opening in self._world.openings)
            tokenizer = self._world.tokenizer
            wanted = tokenizer(self._say(tokenizer.decode(ids[:start])), add_special_tokens=False)["input_ids"]
            written = len(ids) - start
            chosen[row, wanted[written] if written < len(wanted) else tokenizer.eos_token_id] = 0.0
        return chosen


def world(name: str = "hermes", *, template: str | None = None) -> ToolWorld:
    """A new world in the manner of a model family."""
    torch.manual_seed(0)
    tokenizer = tiny.byte_tokenizer(template=template or TEMPLATES[name], special=SPECIAL[name])
    config = tiny.config("LlamaConfig", num_key_value_heads=2, vocab_size=_SIZE, max_position_embeddings=8192)
    model = tiny.build(AutoModelForCausalLM, config)
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(pad_token_id=end, eos_token_id=end, bos_token_id=end)
    openings = OPENINGS[name]
    texts = [openings] if isinstance(openings, str) else list(openings)
    return ToolWorld(model, tokenizer, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])


def _behind(ids: list[int], part: list[int]) -> int:
    """Position behind the last place where a part stands; 0 where it does not."""
    places = (at + len(part) for at in range(len(ids) - len(part), -1, -1) if ids[at : at + len(part)] == part)
    return next(places, 0)
