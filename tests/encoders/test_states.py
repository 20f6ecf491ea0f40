"""The states of an encoder are the model's own hidden states, however the batch is put together."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM

from mlpm_guard.encoders.blocks import (
    POOLS,
    Capture,
    GenerationCapture,
    Probe,
    find_core,
    first_pool,
    last_index,
    last_pool,
    mean_pool,
)
from mlpm_guard.encoders.transformer import TransformerEncoder
from mlpm_guard.errors import EncoderError, UnsupportedArchitectureError

# Shortest first: an encoder sorts by length, and the reference is to be the same batch.
TEXTS = ["a", "tell me: what is 2+2?", "hi there, how are you today my friend"]
MIXED = ["one more thing", "a", "tell me: what is 2+2? " * 6, "b?", "hi there, how are you today my friend", "x" * 70]


@pytest.fixture(scope="module")
def chat() -> Any:
    return tiny.character_tokenizer(template=tiny.CHATML)


@pytest.fixture(scope="module")
def bare() -> Any:
    return tiny.bert_tokenizer()


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny.causal_model("llama")


@pytest.fixture(scope="module")
def bert() -> Any:
    return tiny.encoder_model("bert")


def last_states(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    hidden, _ = tiny.hidden_states(model, rows, positions=True)
    return [torch.stack([state[i, len(row) - 1] for i, row in enumerate(rows)]) for state in hidden[1:]]


def mean_states(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    hidden, _ = tiny.hidden_states(model, rows, positions=False)
    return [torch.stack([state[i, : len(row)].mean(0) for i, row in enumerate(rows)]) for state in hidden[1:]]


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM], ids=["base", "with-head"])
@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_states_of_a_causal_model_are_exactly_its_hidden_states(name: str, auto: Any, chat: Any) -> None:
    model = tiny.causal_model(name, auto=auto)
    encoder = TransformerEncoder(model, chat)
    expected = last_states(model, tiny.token_rows(encoder, TEXTS))
    states = torch.from_numpy(encoder.encode(TEXTS))
    assert encoder.layers == tuple(range(1, len(expected) + 1))
    for layer, reference in enumerate(expected):
        assert torch.equal(states[:, layer], reference), f"layer {layer + 1}"
    assert not torch.equal(states[:, 0], states[:, 1])


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM], ids=["base", "with-head"])
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_states_of_an_encoder_are_the_mean_and_first_of_its_hidden_states(name: str, auto: Any, bare: Any) -> None:
    model = tiny.encoder_model(name, auto=auto)
    encoder = TransformerEncoder(model, bare)
    rows = tiny.token_rows(encoder, TEXTS)
    hidden, _ = tiny.hidden_states(model, rows, positions=False)
    states = torch.from_numpy(encoder.encode(TEXTS))
    assert states.shape == (len(TEXTS), len(hidden) - 1, 64)
    for layer, reference in enumerate(mean_states(model, rows)):
        assert torch.allclose(states[:, layer, :32], reference, rtol=1e-6, atol=1e-6), f"layer {layer + 1}"
        assert torch.equal(states[:, layer, 32:], hidden[layer + 1][:, 0]), f"layer {layer + 1}"


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText], ids=["base", "with-head"])
def test_a_multimodal_model_is_read_at_its_text_blocks(auto: Any, chat: Any) -> None:
    # The vision tower has as many blocks as the text model, which only the text core tells apart.
    sizes = {name: value for name, value in tiny.SIZES.items() if name != "pad_token_id"}
    model = tiny.build(
        auto,
        transformers.Gemma3Config(
            text_config={**sizes, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
            },
            mm_tokens_per_image=4,
            image_token_index=150,
            boi_token_index=151,
            eoi_token_index=152,
        ),
    )
    encoder = TransformerEncoder(model, chat)
    expected = last_states(model, tiny.token_rows(encoder, TEXTS))
    assert torch.equal(torch.from_numpy(encoder.encode(TEXTS)), torch.stack(expected, dim=1))


def test_states_of_a_recurrent_model_are_its_block_outputs_and_last_its_final_norm(chat: Any) -> None:
    # Mamba's own `hidden_states` are the blocks' inputs; state k is the output of block k all the same.
    model = tiny.build(AutoModelForCausalLM, tiny.config("MambaConfig", state_size=4))
    encoder = TransformerEncoder(model, chat)
    outputs: list[torch.Tensor] = []
    modules = [*model.backbone.layers[:-1], model.backbone]
    handles = [
        module.register_forward_hook(lambda _m, _a, out: outputs.append(out if torch.is_tensor(out) else out[0]))
        for module in modules
    ]
    for text in TEXTS:
        row = tiny.token_rows(encoder, [text])[0]
        outputs.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([row]))
        expected = np.stack([out[0, -1].numpy() for out in outputs])
        assert np.abs(encoder.encode([text])[0] - expected).max() < 1e-6
    for handle in handles:
        handle.remove()


# -- batches ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "gemma3", "gpt2", "opt", "falcon-alibi", "bloom", "bert", "roberta", "modernbert"]
)
def test_a_batch_of_mixed_lengths_equals_one_by_one_in_the_order_given(kind: str, chat: Any, bare: Any) -> None:
    if kind in tiny.CAUSAL:
        encoder = TransformerEncoder(tiny.causal_model(kind), chat)
    else:
        encoder = TransformerEncoder(tiny.encoder_model(kind), bare)
    together = encoder.encode(MIXED)
    alone = np.concatenate([encoder.encode([text]) for text in MIXED])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(alone[:-1] - alone[1:]).max() > 1e-3


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(st.text(tiny.CHARACTERS, max_size=40), min_size=1, max_size=6), budget=st.sampled_from([1, 60, 100_000]))
def test_the_token_budget_of_a_batch_does_not_change_states(texts: list[str], budget: int) -> None:
    wanted = _shared(4096).encode(texts)
    assert np.abs(_shared(budget).encode(texts) - wanted).max() < 1e-5


_MODELS: dict[int, TransformerEncoder] = {}


def _shared(budget: int) -> TransformerEncoder:
    if budget not in _MODELS:
        model = next(iter(_MODELS.values())).model if _MODELS else tiny.causal_model()
        _MODELS[budget] = TransformerEncoder(model, tiny.character_tokenizer(template=tiny.CHATML), batch_tokens=budget)
    return _MODELS[budget]


def test_no_forward_pass_holds_more_padded_tokens_than_the_budget(llama: Any, chat: Any) -> None:
    shapes: list[torch.Size] = []
    handle = llama.model.embed_tokens.register_forward_pre_hook(lambda _module, args: shapes.append(args[0].shape))
    try:
        TransformerEncoder(llama, chat, batch_tokens=200).encode(MIXED * 3)
    finally:
        handle.remove()
    assert sum(rows for rows, _ in shapes) == len(MIXED) * 3
    assert all(rows * tokens <= 200 or rows == 1 for rows, tokens in shapes)
    assert max(rows for rows, _ in shapes) > 1


def test_no_conversations_give_no_states(llama: Any, chat: Any) -> None:
    assert TransformerEncoder(llama, chat).encode([]).shape == (0, 4, 32)


# -- pooling ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), side=st.sampled_from(["left", "right"]))
def test_pooling_reads_real_tokens_only_whatever_the_padding_side(lengths: list[int], side: str) -> None:
    width = max(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    hidden = torch.randn(len(lengths), width, 5, generator=generator)
    _, mask = tiny.padded([[7] * n for n in lengths], side=side)
    real = [row[:n] if side == "right" else row[width - n :] for row, n in zip(hidden, lengths, strict=True)]
    assert last_index(mask).tolist() == [n - 1 if side == "right" else width - 1 for n in lengths]
    assert torch.equal(last_pool(mask)(hidden), torch.stack([row[-1] for row in real]))
    assert torch.equal(first_pool(mask)(hidden), torch.stack([row[0] for row in real]))
    assert torch.allclose(mean_pool(mask)(hidden), torch.stack([row.mean(0) for row in real]), atol=1e-6)
    both = POOLS["mean+cls"](mask)(hidden)
    assert torch.equal(both, torch.cat([mean_pool(mask)(hidden), first_pool(mask)(hidden)], dim=1))


@pytest.mark.parametrize("pooling", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pooled_state_does_not_keep_all_hidden_states_alive(pooling: str, dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 50, 8).to(dtype)
    pooled = POOLS[pooling](torch.ones(3, 50, dtype=torch.long))(hidden)
    assert pooled.dtype == torch.float32
    assert pooled.untyped_storage().nbytes() == pooled.numel() * 4
    assert pooled.untyped_storage().data_ptr() != hidden.untyped_storage().data_ptr()


def test_the_mean_of_half_precision_states_is_accumulated_in_float32() -> None:
    hidden = torch.full((1, 4096, 2), 100.0, dtype=torch.float16)
    assert torch.allclose(mean_pool(torch.ones(1, 4096, dtype=torch.long))(hidden), torch.full((1, 2), 100.0))


@pytest.mark.parametrize("pooling", ["last", "mean", "cls", "mean+cls"])
def test_any_pooling_can_be_asked_of_any_model(pooling: str, bert: Any, bare: Any, llama: Any, chat: Any) -> None:
    for encoder in (TransformerEncoder(bert, bare, pooling=pooling), TransformerEncoder(llama, chat, pooling=pooling)):
        assert encoder.encode(["hello"]).shape == (1, 4, 64 if pooling == "mean+cls" else 32)
        assert encoder.dim == encoder.encode(["hello"]).shape[2]


# -- layers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [(1,), (2,), (1, 3), (4,), (2, 4)])
def test_a_subset_of_layers_equals_the_full_pass_and_stops_behind_the_deepest(
    wanted: tuple[int, ...], llama: Any, chat: Any
) -> None:
    everything = TransformerEncoder(llama, chat).encode(TEXTS)
    encoder = TransformerEncoder(llama, chat, layers=wanted).load()
    with tiny.CallCounter(dict(enumerate(llama.model.layers, start=1))) as counter:
        states = encoder.encode(TEXTS)
    assert encoder.layers == wanted
    assert np.array_equal(states, everything[:, [k - 1 for k in wanted]])
    assert counter.calls == {k: int(k <= wanted[-1]) for k in (1, 2, 3, 4)}


def test_layers_asked_of_one_call_equal_those_of_an_encoder_made_for_them(llama: Any, chat: Any) -> None:
    encoder = TransformerEncoder(llama, chat)
    assert np.array_equal(encoder.encode(TEXTS, layers=[2]), TransformerEncoder(llama, chat, layers=[2]).encode(TEXTS))
    assert np.array_equal(encoder.encode(TEXTS, layers=[-2, -1]), encoder.encode(TEXTS, layers=[3, 4]))
    assert TransformerEncoder(llama, chat, layers=[1, -1]).layers == (1, 4)


def test_the_language_model_head_is_never_run(llama: Any, chat: Any) -> None:
    with tiny.CallCounter({"head": llama.lm_head, "core": llama.model}) as counter:
        TransformerEncoder(llama, chat).encode(TEXTS)
    assert counter.calls["head"] == 0
    assert counter.calls["core"] > 0


# -- hooks --------------------------------------------------------------------------------------------------------------------


def test_a_model_answers_the_same_with_and_without_an_encoder_on_it(chat: Any) -> None:
    model = tiny.causal_model("llama", seed=3)
    ids = torch.tensor([[1, 20, 30, 40]])

    def answers() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return model(ids).logits, model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
            )

    before = answers()
    encoder = TransformerEncoder(model, chat, layers=[1])
    encoder.encode(TEXTS)
    for was, now in zip(before, answers(), strict=True):
        assert torch.equal(was, now)


def test_two_encoders_on_one_model_install_hooks_once(chat: Any) -> None:
    model = tiny.causal_model("llama", seed=4)

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    assert hooks() == 0
    one = TransformerEncoder(model, chat).load()
    assert hooks() == 4
    two = TransformerEncoder(model, chat, layers=[2]).load()
    TransformerEncoder(model.model, chat).load()
    assert hooks() == 4
    assert np.array_equal(one.encode(TEXTS)[:, 1:2], two.encode(TEXTS))


def test_a_model_is_freed_with_its_last_reference_although_it_was_hooked(chat: Any) -> None:
    model = tiny.causal_model("llama", seed=5)
    encoder = TransformerEncoder(model, chat).load()
    core = find_core(model)
    assert core in Probe._installed
    known = len(Probe._installed)
    del model, encoder, core
    gc.collect()
    assert len(Probe._installed) < known


def test_threads_that_share_a_model_get_what_each_gets_alone(llama: Any, chat: Any) -> None:
    encoders = [
        TransformerEncoder(llama, chat),
        TransformerEncoder(llama, chat, layers=[1, 2]),
        TransformerEncoder(llama, chat),
    ]
    texts = [[f"thread {i} says {j} " * (i + 1) for j in range(6)] for i in range(3)]
    alone = [encoder.encode(each) for encoder, each in zip(encoders, texts, strict=True)]
    found: dict[int, list[np.ndarray[Any, Any]]] = {i: [] for i in range(3)}
    barrier = threading.Barrier(3)

    def work(index: int) -> None:
        barrier.wait()
        found[index] = [encoders[index].encode(texts[index]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, states in found.items():
        assert len(states) == 4
        assert all(np.array_equal(each, alone[index]) for each in states)


def test_a_capture_that_is_open_is_not_disturbed_by_an_encoder_inside_it(llama: Any, chat: Any) -> None:
    encoder = TransformerEncoder(llama, chat)
    probe = Probe.of(find_core(llama), 4, "llama")
    ids = torch.tensor([tiny.token_rows(encoder, ["outer"])[0]])
    capture = Capture(frozenset({2}), last_pool(torch.ones_like(ids)))
    with torch.no_grad(), probe.reading(capture):
        llama(ids)
        outer = capture.states[2].clone()
        inner = encoder.encode(["something else"])
        assert torch.equal(capture.states[2], outer)
    assert np.array_equal(inner, encoder.encode(["something else"]))
    assert np.allclose(outer.numpy(), encoder.encode(["outer"], layers=[2])[:, 0], atol=1e-6)


@pytest.mark.parametrize("behind", [0, 3], ids=["alone", "with candidates behind it"])
def test_a_generation_capture_finds_the_prompts_last_token_in_any_pass(llama: Any, chat: Any, behind: int) -> None:
    encoder = TransformerEncoder(llama, chat)
    probe = Probe.of(find_core(llama), 4, "llama")
    row = tiny.token_rows(encoder, ["in two parts"])[0]
    ids = torch.tensor([row + [5] * behind])
    capture = GenerationCapture(position=len(row) - 1, wanted=frozenset({2, 4}), decoded=frozenset({3}))
    with torch.no_grad(), probe.reading(capture):
        first = llama(ids[:, :10], use_cache=True)
        assert not capture.prompt
        second = llama(ids[:, 10:], past_key_values=first.past_key_values)
        states = torch.stack([capture.prompt[2], capture.prompt[4]], dim=1).numpy()
        assert not capture.newest
        capture.answering = True
        llama(ids[:, -1:], past_key_values=second.past_key_values)
        assert set(capture.newest) == {3}
    assert np.allclose(states, encoder.encode(["in two parts"], layers=[2, 4]), atol=1e-5)
    assert np.array_equal(torch.stack([capture.prompt[2], capture.prompt[4]], dim=1).numpy(), states)


def test_a_model_that_fails_leaves_no_capture_behind(llama: Any, chat: Any) -> None:
    encoder = TransformerEncoder(llama, chat)
    expected = encoder.encode(TEXTS)

    def fail(_module: Any, _args: Any) -> None:
        raise RuntimeError("the text was: secret")

    handle = llama.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(EncoderError, match="LlamaModel failed") as caught:
        encoder.encode(["secret"])
    handle.remove()
    assert "secret" not in str(caught.value)
    assert np.array_equal(encoder.encode(TEXTS), expected)


def test_a_model_that_skips_a_block_is_refused_rather_than_read_wrongly(chat: Any) -> None:
    model = tiny.causal_model("llama", seed=6)
    encoder = TransformerEncoder(model, chat).load()
    del model.model.layers[1]
    model.config.num_hidden_layers = model.model.config.num_hidden_layers = 3
    with pytest.raises(UnsupportedArchitectureError, match=r"without calling blocks \[2\]"):
        encoder.encode(TEXTS)
