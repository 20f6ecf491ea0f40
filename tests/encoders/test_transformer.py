"""Loading, options, types, limits, identity and copying of a transformer encoder."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny
import torch
from transformers import AutoModel, AutoModelForCausalLM

from mlpm_guard.conversation import Conversation
from mlpm_guard.encoders.base import EncoderIdentity, is_encoder
from mlpm_guard.encoders.transformer import TransformerEncoder
from mlpm_guard.errors import (
    ConfigurationError,
    EncoderError,
    EncoderLoadError,
    InputTooLongError,
    InvalidConversationError,
    UnsupportedArchitectureError,
)

TEXTS = ["a", "tell me: what is 2+2?", "hi there, how are you today my friend"]


@pytest.fixture(scope="module")
def chat() -> Any:
    return tiny.character_tokenizer(template=tiny.CHATML)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny.causal_model()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, llama: Any, chat: Any) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    llama.save_pretrained(folder)
    chat.save_pretrained(folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# -- types --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_half_precision_models_give_float32_states_near_those_of_full_precision(
    kind: str, dtype: torch.dtype, chat: Any
) -> None:
    if kind == "llama":
        full, half, tokenizer = tiny.causal_model(), tiny.causal_model().to(dtype), chat
    else:
        full, half, tokenizer = tiny.encoder_model(), tiny.encoder_model().to(dtype), tiny.bert_tokenizer()
    exact = TransformerEncoder(full, tokenizer).encode(TEXTS)
    encoder = TransformerEncoder(half, tokenizer)
    states = encoder.encode(TEXTS)
    assert states.dtype == np.float32
    assert encoder.identity.dtype == str(dtype).removeprefix("torch.")
    assert 0 < np.abs(states - exact).max() < 0.1


def test_an_encoder_satisfies_the_protocol_and_gives_float32(llama: Any, chat: Any) -> None:
    encoder = TransformerEncoder(llama, chat)
    assert is_encoder(encoder)
    assert encoder._state is None
    assert not is_encoder(llama)
    states = encoder.encode(["a", [{"role": "user", "content": "a"}]])
    assert states.dtype == np.float32
    assert np.allclose(states[0], states[1], atol=1e-6)
    assert (encoder.dim, encoder.layers, encoder.reads_roles) == (32, (1, 2, 3, 4), True)
    assert "llama" in repr(encoder).lower()


def test_a_conversation_with_its_token_ids_is_not_tokenised_again(llama: Any, chat: Any) -> None:
    encoder = TransformerEncoder(llama, chat)
    parsed = [Conversation.parse(text) for text in TEXTS]
    known = [replace(each, token_ids=ids) for each, ids in zip(parsed, encoder.prompt_ids(parsed), strict=True)]
    mixed = [known[0], parsed[1], known[2]]
    np.testing.assert_array_equal(encoder.encode(mixed), encoder.encode(TEXTS))
    other = replace(parsed[0], token_ids=known[1].token_ids)
    np.testing.assert_array_equal(encoder.encode([other]), encoder.encode([TEXTS[1]]))
    assert other == parsed[0]
    assert str(known[0].token_ids) not in repr(known[0])


def test_parts_that_are_not_conversations_are_refused(llama: Any, chat: Any) -> None:
    encoder = TransformerEncoder(llama, chat)
    for bad in ([42], [{"role": "user", "content": "a"}], [[]]):
        with pytest.raises(InvalidConversationError):
            encoder.encode(bad)  # type: ignore[arg-type]


# -- what is refused ----------------------------------------------------------------------------------------------------------


def test_a_model_in_training_mode_is_refused_and_read_again_after_eval(chat: Any) -> None:
    model = tiny.causal_model()
    encoder = TransformerEncoder(model, chat)
    expected = encoder.encode(TEXTS)
    model.train()
    with pytest.raises(EncoderError, match=r"model\.eval\(\)"):
        encoder.encode(TEXTS)
    model.eval()
    assert np.array_equal(encoder.encode(TEXTS), expected)


def test_a_text_that_fits_is_read_whole_and_one_token_more_is_refused(llama: Any, chat: Any) -> None:
    length = len(tiny.token_rows(TransformerEncoder(llama, chat), ["x" * 30])[0])
    encoder = TransformerEncoder(llama, chat, max_tokens=length)
    assert np.allclose(encoder.encode(["x" * 30]), TransformerEncoder(llama, chat).encode(["x" * 30]), atol=1e-6)
    with pytest.raises(InputTooLongError, match=f"conversation 1 has {length + 1} tokens; this encoder reads {length}"):
        encoder.encode(["short", "x" * 31])


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert", "gpt2", "opt"])
def test_the_longest_text_that_a_model_has_positions_for_can_be_read(kind: str) -> None:
    if kind in tiny.CAUSAL:
        encoder = TransformerEncoder(tiny.causal_model(kind), tiny.character_tokenizer(template=tiny.CHATML))
    else:
        encoder = TransformerEncoder(tiny.encoder_model(kind), tiny.bert_tokenizer())
    framing = len(tiny.token_rows(encoder, ["x"])[0]) - 1
    assert encoder._state is not None
    limit = encoder._state.max_tokens
    assert limit is not None
    assert 500 < limit <= 512
    assert np.isfinite(encoder.encode(["x" * (limit - framing)])).all()
    with pytest.raises(InputTooLongError):
        encoder.encode(["x" * (limit - framing + 1)])


def test_the_tokenizers_own_limit_counts_where_it_is_lower(llama: Any) -> None:
    encoder = TransformerEncoder(llama, tiny.character_tokenizer(template=tiny.CHATML, model_max_length=64))
    with pytest.raises(InputTooLongError, match="reads 64"):
        encoder.encode(["x" * 100])
    assert encoder.window == 32


def test_an_encoder_decoder_is_refused(chat: Any) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = tiny.build(AutoModel, tiny.config("T5Config", **sizes))
    with pytest.raises(UnsupportedArchitectureError, match="encoder-decoder"):
        TransformerEncoder(model, chat).load()


def test_a_model_whose_layers_share_one_block_is_refused_with_what_to_do_instead() -> None:
    model = tiny.build(AutoModel, tiny.config("AlbertConfig", embedding_size=16))
    with pytest.raises(UnsupportedArchitectureError, match=r"implement the mlpm_guard\.Encoder protocol"):
        TransformerEncoder(model, tiny.bert_tokenizer()).load()


def test_one_block_repeated_in_a_list_is_refused(chat: Any) -> None:
    model = tiny.causal_model()
    model.model.layers = torch.nn.ModuleList([model.model.layers[0]] * 4)
    with pytest.raises(UnsupportedArchitectureError, match="shares one block"):
        TransformerEncoder(model, chat).load()


def test_a_module_that_is_no_hugging_face_model_is_refused(chat: Any) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="no config"):
        TransformerEncoder(torch.nn.Linear(2, 2), chat).load()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "max"},
        {"layers": []},
        {"layers": ["one"]},
        {"layers": "some"},
        {"layers": 5},
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"batch_tokens": 0},
        {"batch_tokens": "many"},
        {"window": 0},
        {"dtype": "int8"},
        {"dtype": "float32"},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options: dict[str, Any], llama: Any, chat: Any) -> None:
    with pytest.raises(ConfigurationError):
        TransformerEncoder(llama, chat, **options)


@pytest.mark.parametrize(
    "options",
    [{"layers": [0]}, {"layers": [5]}, {"layers": [2, 1]}, {"layers": [1, 1]}, {"layers": [-1, 4]}, {"max_tokens": 513}],
    ids=str,
)
def test_an_option_that_does_not_fit_the_model_is_refused_at_load(options: dict[str, Any], llama: Any, chat: Any) -> None:
    with pytest.raises(ConfigurationError):
        TransformerEncoder(llama, chat, **options).load()


@pytest.mark.parametrize("layers", [[], [0], [5], [2, 1], [1, 1]], ids=str)
def test_layers_asked_of_a_call_are_checked(layers: list[int], llama: Any, chat: Any) -> None:
    with pytest.raises(ConfigurationError, match="ascending hidden_states indices from 1 to 4"):
        TransformerEncoder(llama, chat).encode(TEXTS, layers=layers)


def test_a_model_needs_to_be_a_model_and_to_come_with_its_tokenizer(llama: Any, chat: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs its tokenizer"):
        TransformerEncoder(llama)
    with pytest.raises(ConfigurationError, match="model is int"):
        TransformerEncoder(7, chat)  # type: ignore[arg-type]


def test_the_window_suits_the_pooling_and_never_exceeds_half_of_what_can_be_read(llama: Any, chat: Any) -> None:
    pooled = TransformerEncoder(tiny.encoder_model(), tiny.bert_tokenizer())
    assert pooled.window < TransformerEncoder(llama, chat).window
    assert TransformerEncoder(llama, chat, window=50).window == 50
    assert TransformerEncoder(llama, chat, window=50, max_tokens=60).window == 30


# -- paths --------------------------------------------------------------------------------------------------------------------


def test_a_model_from_a_path_gives_the_states_and_hashes_of_the_loaded_one(saved: Path, llama: Any, chat: Any) -> None:
    loaded = TransformerEncoder(llama, chat)
    for source in (saved, str(saved)):
        from_path = TransformerEncoder(source, device="cpu")
        assert np.array_equal(from_path.encode(TEXTS), loaded.encode(TEXTS))
        assert from_path.identity.differences(loaded.identity) == []
        assert from_path.identity.model == str(saved)
    assert loaded.identity.model is None


def test_a_path_is_read_at_first_use_only(tmp_path: Path) -> None:
    encoder = TransformerEncoder(tmp_path / "later")
    assert encoder._state is None
    with pytest.raises(EncoderLoadError):
        encoder.load()


@pytest.mark.parametrize("name", ["nowhere/no-such-model", "./missing-folder", "no-such-model"])
@pytest.mark.usefixtures("offline")
def test_a_model_that_cannot_be_found_says_what_to_check(name: str) -> None:
    with pytest.raises(EncoderLoadError, match="Check the name or path"):
        TransformerEncoder(name).load()


def test_a_folder_without_weights_says_what_to_check(tmp_path: Path, chat: Any, llama: Any) -> None:
    chat.save_pretrained(tmp_path)
    llama.config.save_pretrained(tmp_path)
    with pytest.raises(EncoderLoadError, match="Check the name or path"):
        TransformerEncoder(tmp_path).load()


def test_a_device_that_does_not_exist_is_a_load_error(saved: Path) -> None:
    with pytest.raises(EncoderLoadError, match="device"):
        TransformerEncoder(saved, device="cuda:99").load()


# -- identity -----------------------------------------------------------------------------------------------------------------


def identity(model: Any = None, tokenizer: Any = None, **options: Any) -> EncoderIdentity:
    model = tiny.causal_model() if model is None else model
    tokenizer = tiny.character_tokenizer(template=tiny.CHATML) if tokenizer is None else tokenizer
    return TransformerEncoder(model, tokenizer, **options).identity


def differing(one: EncoderIdentity, two: EncoderIdentity) -> list[str]:
    return [line.split(":")[0] for line in one.differences(two)]


def test_the_identity_is_the_same_whenever_a_model_is_made_again() -> None:
    assert identity() == identity()
    assert identity().differences(identity(tiny.build(AutoModel, tiny.CAUSAL["llama"]()))) != []
    model = tiny.causal_model()
    assert identity(model) == identity(model.model)


def test_the_identity_changes_with_a_single_weight() -> None:
    model = tiny.causal_model()
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[7, 11] += 1e-3
    assert differing(identity(), identity(model)) == ["weights"]


def test_the_identity_changes_with_template_tokenizer_pooling_type_and_layers() -> None:
    base = identity()
    assert differing(base, identity(tokenizer=tiny.character_tokenizer(template=tiny.CHATML + " "))) == ["chat_template"]
    assert differing(base, identity(tokenizer=tiny.character_tokenizer())) == ["chat_template"]
    assert differing(base, identity(tokenizer=tiny.character_tokenizer(template=tiny.CHATML, bos=False))) == ["tokenizer"]
    assert differing(base, identity(pooling="mean"))[-1:] == ["pooling"]
    assert "dtype" in differing(base, identity(tiny.causal_model().to(torch.bfloat16)))
    assert differing(base, identity(layers=[1, 2])) == ["layers"]
    assert differing(identity(layers=[1, 2]), base) == []


def test_options_that_do_not_change_states_do_not_change_the_identity() -> None:
    assert identity() == identity(batch_tokens=7, window=20, max_tokens=100)


def test_the_identity_survives_json() -> None:
    base = identity()
    assert EncoderIdentity.model_validate_json(base.model_dump_json()) == base


# -- copies -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_an_encoder_from_a_path_can_be_pickled_and_reads_its_weights_again(saved: Path, used: bool) -> None:
    encoder = TransformerEncoder(saved, layers=[1, 3], device="cpu")
    if used:
        encoder.encode(TEXTS)
    blob = pickle.dumps(encoder)
    assert len(blob) < 5_000
    for other in (pickle.loads(blob), copy.deepcopy(encoder)):
        assert other._state is None
        assert np.array_equal(other.encode(TEXTS), encoder.encode(TEXTS))
        assert other.identity == encoder.identity


def test_the_identity_of_a_copy_is_that_of_the_weights_it_read(tmp_path: Path, chat: Any) -> None:
    chat.save_pretrained(tmp_path)
    tiny.causal_model(seed=1).save_pretrained(tmp_path)
    encoder = TransformerEncoder(tmp_path, device="cpu")
    before = encoder.identity
    blob = pickle.dumps(encoder)
    tiny.causal_model(seed=2).save_pretrained(tmp_path)
    assert differing(before, pickle.loads(blob).identity) == ["weights"]


def test_an_encoder_over_a_loaded_model_refuses_to_be_pickled_or_copied(llama: Any, chat: Any) -> None:
    encoder = TransformerEncoder(llama, chat)
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(EncoderError, match="cannot be pickled"):
            copied(encoder)


def test_loading_with_a_head_or_without_gives_the_same_states(saved: Path, chat: Any) -> None:
    states = [
        TransformerEncoder(auto.from_pretrained(saved).eval(), chat).encode(TEXTS) for auto in (AutoModel, AutoModelForCausalLM)
    ]
    assert np.array_equal(*states)
