"""Any Hugging Face model as an encoder: one forward pass of its blocks, as deep as needed, keeping one pooled state a layer."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.encoders import adapter as adapters
from mlpm_guard.encoders.base import EncoderIdentity, States
from mlpm_guard.encoders.blocks import POOLS, GenerationCapture, Probe, find_core
from mlpm_guard.encoders.tokens import PromptTokenizer, context_length
from mlpm_guard.errors import (
    ConfigurationError,
    EncoderError,
    EncoderLoadError,
    InputTooLongError,
    InvalidConversationError,
    MlpmGuardError,
    UnsupportedArchitectureError,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mlpm_guard.encoders.bert import BertBlocks

Pooling: TypeAlias = Literal["auto", "last", "mean", "cls", "mean+cls"]
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_FINGERPRINT_VALUES = 65_536
_MAX_ROWS = 256
_BATCH_TOKENS = {"cpu": 1024}


class _Merged(NamedTuple):
    """An adapter that was merged: the hash of the weights before, and that of its file."""

    base_weights: str
    adapter: str


class _Loaded:
    """A model and tokenizer ready to run."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        source: str,
        max_tokens: int | None,
        merged: _Merged | None = None,
    ) -> None:
        config: Any = getattr(model, "config", None)
        if config is None:
            raise UnsupportedArchitectureError(f"{source} has no config; pass a Hugging Face model")
        causal = _is_causal(config, source, pooling)
        self.pooling = pooling if pooling != "auto" else ("last" if causal else "mean+cls")
        text_config = config.get_text_config()
        self.depth = int(text_config.num_hidden_layers)
        self.core = find_core(model)
        self.probe = Probe.of(self.core, self.depth, type(model).__name__)
        self.prompts = PromptTokenizer(tokenizer, causal=causal)
        self.takes_positions = causal and "position_ids" in inspect.signature(self.core.forward).parameters
        self.takes_cache = "use_cache" in inspect.signature(self.core.forward).parameters
        self.dim = int(text_config.hidden_size) * (2 if self.pooling == "mean+cls" else 1)
        limit = context_length(text_config, tokenizer)
        if max_tokens is not None and limit is not None and max_tokens > limit:
            raise ConfigurationError(f"max_tokens={max_tokens} is more than the {limit} tokens that {source} can read")
        self.max_tokens = max_tokens if max_tokens is not None else limit
        self.merged = merged
        self.blocks: BertBlocks | None = None
        """How to run the model without its own forward pass, where nobody else holds it."""
        self.process = os.getpid()
        # Moving a model moves its parameters in place, so this one always tells where it is.
        self.parameter: Tensor = next(self.core.parameters())

    def adopt_after_fork(self) -> None:
        """Make a model that was loaded before a fork usable in the child.

        The thread pools of the parent do not exist there, and parallel code would wait for them for ever.
        """
        if self.parameter.device.type == "cuda":
            raise EncoderError("a model on a GPU cannot be used after a fork; start processes with 'spawn'")
        torch.set_num_threads(1)
        self.process = os.getpid()


class TransformerEncoder:
    """Layer states of any Hugging Face causal LM or encoder.

    State k is the output of block k, Hugging Face's `hidden_states[k]` (k = 1..L; the embeddings, index 0, are not used); the
    deepest, k = L, is `hidden_states[-1]`, after the model's final norm. Causal models are read at the last token of the
    chat-templated conversation with the generation prompt, encoders at the mean over real tokens and at [CLS], concatenated.

    Args:
        model: hub name, local path, or a loaded model (shared, not copied).
        tokenizer: for a loaded model, its tokenizer; otherwise optional, taken from the same place as the model.
        adapter: file of a low-rank adapter to merge into the weights when they load, or None. Not for a loaded model.
        pooling: "last", "mean", "cls", "mean+cls"; "auto" takes "last" for causal models and "mean+cls" for encoders.
        layers: "all", or the `hidden_states` indices to read (1..L; negative ones count from the last).
        max_tokens: longest conversation in tokens. A longer one raises, it is never truncated. None takes the model's own
            limit.
        device: "auto" (where a loaded model is; otherwise CUDA, else CPU), or a torch device.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        batch_tokens: padded tokens per forward pass; None takes 1,024 on a CPU, whose caches more would outgrow, and 4,096
            elsewhere.
        window: tokens of a judging window; None takes 128 for pooled encoders, whose mean dilutes with length, and 512 for
            causal models.
        revision: hub revision to pin.
        trust_remote_code: passed to `from_pretrained`.

    Raises:
        ConfigurationError: an option has a bad value.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        adapter: str | Path | None = None,
        pooling: Pooling = "auto",
        layers: Literal["all"] | Sequence[int] = "all",
        max_tokens: int | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        batch_tokens: int | None = None,
        window: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if pooling != "auto" and pooling not in POOLS:
            raise ConfigurationError(f"pooling={pooling!r}: choose one of auto, {', '.join(POOLS)}")
        if layers != "all" and not (isinstance(layers, Sequence) and layers and all(isinstance(k, int) for k in layers)):
            raise ConfigurationError("layers: 'all' or a non-empty list of hidden_states indices")
        for name, value in (("max_tokens", max_tokens), ("batch_tokens", batch_tokens), ("window", window)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name}={value!r}: a whole number of tokens, at least 1")
        dtype_name = str(dtype).removeprefix("torch.")
        if dtype_name not in _DTYPES:
            raise ConfigurationError(f"dtype={dtype_name!r}: choose one of {', '.join(_DTYPES)}")
        loaded = not isinstance(model, (str, Path))
        if loaded and not isinstance(model, nn.Module):
            raise ConfigurationError(f"model is {type(model).__name__}: pass a hub name, a path or a loaded Hugging Face model")
        if loaded and tokenizer is None:
            raise ConfigurationError("a loaded model needs its tokenizer: TransformerEncoder(model, tokenizer)")
        if not (adapter is None or isinstance(adapter, (str, Path))):
            raise ConfigurationError(f"adapter is {type(adapter).__name__}: the path of a safetensors file, or None")
        if loaded and adapter is not None:
            raise ConfigurationError(
                "adapter: only for a model that is given by name or path, because merging changes the weights; give one of "
                "those, or merge it into the loaded model yourself"
            )
        if loaded and (dtype_name != "auto" or str(device) != "auto"):
            raise ConfigurationError("a loaded model keeps its device and dtype; move it yourself and leave both on 'auto'")
        self.model = model
        self.tokenizer = tokenizer
        self.adapter = adapter
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.device = device
        self.dtype = dtype_name
        self.batch_tokens = batch_tokens
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self._layers = layers if layers == "all" else tuple(layers)
        self._window = window
        self._adapter_sha256: str | None = None
        self._lock = threading.Lock()
        self._state: _Loaded | None = None
        self._identity: EncoderIdentity | None = None

    def __repr__(self) -> str:
        name = self.model if isinstance(self.model, (str, Path)) else type(self.model).__name__
        adapter = "" if self.adapter is None else f", adapter={str(self.adapter)!r}"
        return f"{type(self).__name__}({str(name)!r}{adapter}, pooling={self.pooling!r}, layers={self._layers!r})"

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self.model, (str, Path)):
            raise EncoderError(
                "an encoder over an already loaded model cannot be pickled or copied: create it in the other process, or build "
                "it from a hub name or path, whose weights are loaded again there"
            )
        return {**self.__dict__, "_lock": None, "_state": None, "_identity": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    # -- what a guard asks --------------------------------------------------------------------------------------------------

    def load(self) -> Self:
        """Load weights and tokenizer now, and check every option against them. Returns the encoder itself.

        Raises:
            EncoderLoadError: they cannot be found or read.
            WeightsMismatchError: a file is not the one that is pinned, or not the one that was loaded before.
            AdapterError: the adapter is damaged, or belongs to another model.
            UnsupportedArchitectureError: the model's blocks cannot be hooked.
            ConfigurationError: an option does not fit the model.
        """
        self._ready()
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """Hugging Face `hidden_states` indices that `encode` returns, ascending. Loads the model."""
        return self._resolve(self._ready().depth)

    @property
    def dim(self) -> int:
        """Numbers per layer state. Loads the model."""
        return self._ready().dim

    @property
    def window(self) -> int:
        """Tokens of a judging window. Loads the model."""
        state = self._ready()
        wanted = self._window or (512 if state.prompts.causal else 128)
        return wanted if state.max_tokens is None else min(wanted, max(8, state.max_tokens // 2))

    @property
    def reads_roles(self) -> bool:
        """Whether roles are part of what the model reads. Loads the model."""
        return self._ready().prompts.reads_roles

    @property
    def adapter_file(self) -> Path | None:
        """The file of the adapter; None without one. Loads nothing."""
        return None if self.adapter is None else Path(self.adapter).expanduser()

    @property
    def identity(self) -> EncoderIdentity:
        """What the states depend on. Loads the model."""
        state = self._ready()
        if self._identity is None:
            self._identity = EncoderIdentity(
                model=str(self.model) if isinstance(self.model, (str, Path)) else None,
                revision=self.revision,
                architecture=type(state.core).__name__,
                weights=_fingerprint(state.core) if state.merged is None else state.merged.base_weights,
                tokenizer=state.prompts.vocabulary_hash(),
                chat_template=state.prompts.template_hash(),
                pooling=state.pooling,
                layers=self.layers,
                dim=state.dim,
                dtype=str(state.parameter.dtype).removeprefix("torch."),
                adapter=None if state.merged is None else state.merged.adapter,
            )
        return self._identity

    def spans(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
        """Character spans (start, end) of the tokens of every text, arrays of shape (tokens, 2)."""
        return self._ready().prompts.spans(texts)

    def encode(self, conversations: Sequence[ConversationLike], *, layers: Sequence[int] | None = None) -> States:
        """Layer states of conversations.

        Args:
            conversations: strings, lists of role/content messages, or `Conversation`s.
            layers: `hidden_states` indices to return instead of `self.layers`; the pass stops behind the deepest.

        Returns:
            float32 ndarray of shape (n, layers, dim), in the order given.

        Raises:
            InvalidConversationError: a conversation has a bad shape.
            InputTooLongError: one is longer than `max_tokens`.
            EncoderError: the model failed.
        """
        if isinstance(conversations, (str, bytes)):
            raise InvalidConversationError("encode takes a list of conversations; put the text in a list")
        state = self._ready()
        wanted = self.layers if layers is None else self._check_layers(layers, state.depth)
        parsed = [Conversation.parse(each) for each in conversations]
        states = np.empty((len(parsed), len(wanted), state.dim), dtype=np.float32)
        if not parsed:
            return states
        ids = self._ids(state, parsed)
        lengths = np.array([len(row) for row in ids])
        longest = int(lengths.argmax())
        if state.max_tokens is not None and lengths[longest] > state.max_tokens:
            raise InputTooLongError(
                f"conversation {longest} has {lengths[longest]} tokens; this encoder reads {state.max_tokens} at once"
            )
        if int(lengths.min()) == 0:
            raise EncoderError(f"conversation {int(lengths.argmin())} has no tokens")
        for batch in _batches(lengths, self.batch_tokens or _BATCH_TOKENS.get(state.parameter.device.type, 4096)):
            states[batch] = self._forward(state, [ids[row] for row in batch], wanted)
        return states

    def prompt_ids(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Token ids of conversations exactly as the model reads them; the last one of each is the probe position.

        Raises:
            InvalidConversationError: the chat template refuses a conversation's roles.
        """
        return self._ready().prompts.token_ids(conversations)

    @property
    def takes_tools(self) -> bool:
        """Whether the model's chat template shows tools."""
        return self._ready().prompts.takes_tools

    @property
    def can_begin_calls(self) -> bool:
        """Whether the model's chat template tells how a call of a tool begins."""
        return self._ready().prompts.can_begin_calls()

    def call_starts(self, conversation: Conversation) -> list[list[int]] | None:
        """Token ids with which the answer begins a call of each tool that must be called; None where the template is silent."""
        return self._ready().prompts.call_starts(conversation)

    @property
    def pad_id(self) -> int:
        """Token id to pad with."""
        return self._ready().prompts.pad_id

    @property
    def context(self) -> int | None:
        """Most tokens that the model reads at once; None where there is no limit."""
        return self._ready().max_tokens

    def reading(self, capture: GenerationCapture) -> AbstractContextManager[None]:
        """Have a capture read every forward pass that this context runs on the model."""
        return self._ready().probe.reading(capture)

    # -- how --------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _ids(state: _Loaded, conversations: list[Conversation]) -> list[list[int]]:
        """Token ids of conversations; those that are tokenised already are not tokenised again."""
        found = iter(state.prompts.token_ids([each for each in conversations if each.token_ids is None]))
        return [next(found) if each.token_ids is None else each.token_ids for each in conversations]

    def _forward(self, state: _Loaded, rows: list[list[int]], wanted: tuple[int, ...]) -> States:
        if state.core.training:
            raise EncoderError("the model is in training mode, where dropout makes states random: call model.eval()")
        length = max(map(len, rows))
        # Padding goes to the right whatever the tokenizer prefers: recurrent layers then never see it.
        ids = torch.tensor([row + [state.prompts.pad_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        device = state.parameter.device
        ids, mask = ids.to(device), mask.to(device)
        with torch.inference_mode():
            try:
                pooled = self._pooled(state, ids, mask, wanted)
            except MlpmGuardError:
                raise
            except Exception as error:
                raise EncoderError(
                    f"{type(state.core).__name__} failed on a batch of {len(rows)} x {length} tokens ({type(error).__name__})"
                ) from error
            result: States = pooled.cpu().numpy()
        return result

    @staticmethod
    def _pooled(state: _Loaded, ids: Tensor, mask: Tensor, wanted: tuple[int, ...]) -> Tensor:
        """One forward pass: pooled states of shape (rows, len(wanted), dim), from ids and mask of shape (rows, tokens)."""
        pool = POOLS[state.pooling](mask)
        if state.blocks is not None:
            return state.blocks.states(ids, mask, wanted, pool)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if state.takes_positions:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if state.takes_cache:
            inputs["use_cache"] = False
        return state.probe.states(lambda: state.core(**inputs), wanted, pool)

    def _resolve(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth + 1)) if self._layers == "all" else self._check_layers(self._layers, depth)

    @staticmethod
    def _check_layers(layers: Sequence[int] | str, depth: int) -> tuple[int, ...]:
        resolved = tuple(int(k) + depth + 1 if int(k) < 0 else int(k) for k in layers)
        bad = [k for k in resolved if not 1 <= k <= depth]
        if not resolved or bad or len(set(resolved)) != len(resolved) or list(resolved) != sorted(resolved):
            raise ConfigurationError(f"layers={list(layers)}: ascending hidden_states indices from 1 to {depth}, each once")
        return resolved

    def _ready(self) -> _Loaded:
        state = self._state
        if state is None:
            with self._lock:
                state = self._state
                if state is None:
                    state = self._state = self._load()
        if state.process != os.getpid():
            state.adopt_after_fork()
        return state

    def _load(self) -> _Loaded:
        merged = None
        model: nn.Module
        if isinstance(self.model, (str, Path)):
            loaded, tokenizer = self._from_pretrained(self.model)
            merged = self._merge_adapter(loaded)
            model = self._placed(loaded)
            source = str(self.model)
        else:
            assert self.tokenizer is not None
            model, tokenizer, source = self.model, self.tokenizer, type(self.model).__name__
        state = _Loaded(model, tokenizer, self.pooling, source, self.max_tokens, merged)
        self._resolve(state.depth)
        return state

    def _source(self) -> str:
        """Where `from_pretrained` is to read from."""
        return str(self.model)

    def _from_pretrained(self, name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from transformers import AutoModel, AutoTokenizer

        source = self._source()
        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        with _quiet():
            try:
                tokenizer = self.tokenizer or AutoTokenizer.from_pretrained(source, **options)
                model = AutoModel.from_pretrained(source, dtype=self.dtype, **options)
            except Exception as error:
                first_line = (str(error).strip().splitlines() or ["no reason given"])[0]
                raise EncoderLoadError(
                    f"cannot load {name} ({type(error).__name__}: {first_line}). Check the name or path; without a network, "
                    "download the model beforehand and pass its folder."
                ) from error
        return model.eval(), tokenizer

    def _expected_adapter(self) -> str | None:
        """SHA-256 that the adapter's file must have; None takes any. A copy takes the file that the original loaded."""
        return self._adapter_sha256

    def _merge_adapter(self, model: PreTrainedModel) -> _Merged | None:
        file = self.adapter_file
        if file is None:
            return None
        adapter = adapters.read(file, self._expected_adapter())
        core = find_core(model)
        base_weights = _fingerprint(core)
        adapter.merge_into(core, base_weights, str(next(core.parameters()).dtype).removeprefix("torch."))
        self._adapter_sha256 = adapter.sha256
        return _Merged(base_weights, adapter.sha256)

    def _placed(self, model: nn.Module) -> nn.Module:
        device = self.device
        if str(device) == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            return model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise EncoderLoadError(f"cannot move {self.model} to device {device} ({type(error).__name__})") from error


def _is_causal(config: Any, source: str, pooling: Pooling) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(
            f"{source} is an encoder-decoder: its layers see the prompt in two places. Pass its encoder as a model of its own, "
            "or another model."
        )
    kinds = {config.model_type, config.get_text_config().model_type}
    if kinds & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) and not getattr(config, "is_decoder", False):
        return False
    if kinds & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return True
    if pooling == "auto":
        raise UnsupportedArchitectureError(
            f"cannot tell whether {source} ({config.model_type}) is a causal model or an encoder; pass pooling='last' for the "
            "former, 'mean', 'cls' or 'mean+cls' for the latter"
        )
    return pooling == "last"


def _batches(lengths: npt.NDArray[np.int64], batch_tokens: int) -> Iterator[list[int]]:
    """Rows sorted by length, packed so that rows times longest stays within `batch_tokens`."""
    batch: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if batch and (lengths[row] * (len(batch) + 1) > batch_tokens or len(batch) == _MAX_ROWS):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _fingerprint(core: nn.Module) -> str:
    """SHA-256 over names, shapes, types and values; of a large tensor, evenly spaced values and the last."""
    digest = hashlib.sha256()
    for name, tensor in sorted(core.state_dict().items()):
        if name.startswith("pooler."):
            continue  # behind the last block, and not part of every loading class
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}".encode())
        if tensor.is_meta:
            raise EncoderError(f"weight {name} is not loaded (offloaded or meta); load the model fully")
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _FINGERPRINT_VALUES)
        sample = torch.cat([flat[::step], flat[-1:]]).contiguous().cpu()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Load without transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
