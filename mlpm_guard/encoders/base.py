"""The lowest seam: what a guard needs of an encoder. Anything with these members can stand in for a transformer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mlpm_guard.conversation import Conversation

States = npt.NDArray[np.float32]
"""Layer states, ndarray of shape (n, layers, dim)."""


_BINDING = ("architecture", "weights", "tokenizer", "chat_template", "pooling", "dim", "dtype", "adapter")


class EncoderIdentity(BaseModel):
    """What a bundle is bound to: two encoders with equal identities give the same states.

    Attributes:
        model: hub name or path that the weights came from; None for a model that was passed in already loaded.
        revision: hub revision, or None.
        architecture: class name of the base model.
        weights: SHA-256 over names, shapes, types and values of the weights, without an adapter (large tensors are sampled
            evenly).
        tokenizer: SHA-256 over vocabulary, special tokens and the tokens of fixed probe sentences.
        chat_template: SHA-256 of the chat template, or the name of the plain format that stands in for it.
        pooling: "last", "mean", "cls" or "mean+cls".
        layers: Hugging Face `hidden_states` indices that can be asked for.
        dim: numbers per layer state.
        dtype: type the model computes in.
        adapter: SHA-256 of the file of a low-rank adapter that is merged into the weights, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None
    revision: str | None = None
    architecture: str
    weights: str
    tokenizer: str
    chat_template: str
    pooling: str
    layers: tuple[int, ...]
    dim: int
    dtype: str
    adapter: str | None = None

    def differences(self, other: EncoderIdentity) -> list[str]:
        """Names of what changes the states and is not equal, with both values, one line each.

        Where the weights came from (`model`, `revision`) does not count: the weights' own hash does. The layers of `self` must
        be among those of `other`.
        """
        found = [
            f"{name}: {getattr(self, name)} here, {getattr(other, name)} there"
            for name in _BINDING
            if getattr(self, name) != getattr(other, name)
        ]
        if not set(self.layers) <= set(other.layers):
            found.append(f"layers: {list(self.layers)} here, {list(other.layers)} there")
        return found


class Encoder(Protocol):
    """Turns conversations into layer states. Safe to share between threads."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Hugging Face `hidden_states` indices of the states that `encode` returns by default, ascending."""

    @property
    def dim(self) -> int:
        """Numbers per layer state."""

    @property
    def window(self) -> int:
        """Tokens of a judging window that suits this encoder's pooling."""

    @property
    def reads_roles(self) -> bool:
        """Whether roles (and system messages) are part of what is encoded, as in a chat template."""

    @property
    def identity(self) -> EncoderIdentity:
        """What its states depend on. May load the weights."""

    def load(self) -> object:
        """Load weights now instead of at first use."""

    def spans(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
        """Character spans (start, end) of the tokens of every text, arrays of shape (tokens, 2)."""

    def encode(self, conversations: Sequence[Conversation], *, layers: Sequence[int] | None = None) -> States:
        """Layer states of shape (n, layers, dim), in the order of the conversations and of `layers`."""


@runtime_checkable
class Tokenising(Protocol):
    """An encoder that also tells how it tokenises, and takes conversations with their token ids."""

    def prompt_ids(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Token ids of conversations exactly as the model reads them."""


def is_encoder(value: object) -> TypeGuard[Encoder]:
    """Whether a value has the members of an `Encoder`, found out without touching them: a property may load weights."""
    members = ("layers", "dim", "window", "reads_roles", "identity", "load", "spans", "encode")
    return all(inspect.getattr_static(value, name, None) is not None for name in members)
