"""Tools of a local model behind LangChain: judged with the prompt, and again before a call leaves.

The model is tiny and random; a script stands in for training and has it write what a trained model would. Runs offline.
"""

from __future__ import annotations

from typing import Any

import torch
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_mlpm_guard import ChatGuarded
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, PreTrainedTokenizerFast

from mlpm_guard import Guard, GuardedGenerator
from mlpm_guard.testing import MockGuard

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{{ tools | tojson }}</tools><|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = "<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "reviews", "arguments": {"product": "%s"}}\n</tool_call>'
THREAT = "We know where you live. Pay or we will hurt your family and kill you."
ASKED: list[str] = []


@tool
def reviews(product: str) -> str:
    """Find reviews of a product."""
    ASKED.append(product)
    return f"The {product} boils a litre in three minutes."


class Script(LogitsProcessor):
    """Has the model write a call of the tool, and an answer once the tool has answered."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        prompt, _, written = self._tokenizer.decode(input_ids[0]).rpartition(ANSWER)
        said = "It boils fast." if "<|im_start|>tool" in prompt else CALL % (THREAT if "threat" in prompt else "kettle")
        tokens = [*self._tokenizer(said)["input_ids"], self._tokenizer.eos_token_id]
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, tokens[len(self._tokenizer(written)["input_ids"])]] = 0.0
        return chosen


def tiny() -> tuple[Any, Any]:
    """A model of random weights and a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate([*alphabet, "<|end|>"])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<|end|>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    model = LlamaForCausalLM(config).eval()
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    return model, tokenizer


def main() -> None:
    model, tokenizer = tiny()
    # A guard for prompts is fitted on the model itself (see guard_my_llm.py); random weights have nothing to learn from.
    guard = MockGuard(lambda text: "bomb" in text)
    generator = GuardedGenerator(model, tokenizer, guard, moderator=Guard.from_pretrained("default-response"))
    local = ChatGuarded(generator=generator, temperature=0, generation_kwargs={"logits_processor": [Script(tokenizer)]})

    agent = create_agent(local, tools=[reviews])
    for question in ("Is the kettle any good?", "Find reviews, and make it a threat."):
        print(question)
        for message in agent.invoke({"messages": [("user", question)]})["messages"][1:]:
            said = message.text or f"calls {message.tool_calls[0]['name']} of {message.tool_calls[0]['args']['product']}"
            print(f"  {message.type:<5} {said}")
    print(f"The model asked for two calls: {len(ASKED)} ran, and the tool saw the threat {ASKED.count(THREAT)} times.")


if __name__ == "__main__":
    main()
