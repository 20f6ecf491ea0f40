"""Finding a model's blocks, and reading pooled states from them while it runs.

Hooks are installed once per model and stay inert unless a `Capture` is active in the calling context, so that threads and tasks
sharing a model never see each other's states. Imports torch; knows nothing of text.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mlpm_guard.errors import UnsupportedArchitectureError

Pool = Callable[[Tensor], Tensor]
"""Hidden states of shape (batch, tokens, hidden) to a pooled copy of shape (batch, dim)."""


def last_index(mask: Tensor) -> Tensor:
    """Position of the last real token of every row; right for left padding, right padding and none.

    Args:
        mask: attention mask of shape (batch, tokens).
    """
    return mask.shape[1] - 1 - mask.flip(1).to(torch.int64).argmax(1)


def last_pool(mask: Tensor) -> Pool:
    """Pool the state of the last real token: the probe position of causal models."""
    index = last_index(mask)
    rows = torch.arange(mask.shape[0], device=mask.device)

    def pool(hidden: Tensor) -> Tensor:
        # Advanced indexing copies; `hidden[:, -1]` would be a view that keeps (batch, tokens, hidden) alive.
        return hidden[rows.to(hidden.device), index.to(hidden.device)].float()

    return pool


def mean_pool(mask: Tensor) -> Pool:
    """Pool the mean over real tokens, accumulated in float32."""
    weights = mask.to(torch.float32)
    weights = weights / weights.sum(1, keepdim=True)

    def pool(hidden: Tensor) -> Tensor:
        return torch.bmm(weights.to(hidden.device)[:, None, :], hidden.float())[:, 0]

    return pool


def first_pool(mask: Tensor) -> Pool:
    """Pool the state of the first real token ([CLS])."""
    if bool(mask[:, 0].all()):
        return lambda hidden: hidden[:, 0].to(torch.float32, copy=True)
    index = mask.to(torch.int64).argmax(1)
    rows = torch.arange(mask.shape[0], device=mask.device)

    def pool(hidden: Tensor) -> Tensor:
        return hidden[rows.to(hidden.device), index.to(hidden.device)].float()

    return pool


def mean_first_pool(mask: Tensor) -> Pool:
    """Pool mean and [CLS], concatenated: (batch, 2 * hidden).

    On a CPU one product gives both, since every operation costs time at each layer. Elsewhere products may be less precise.
    """
    if mask.device.type != "cpu":
        mean, cls = mean_pool(mask), first_pool(mask)
        return lambda hidden: torch.cat([mean(hidden), cls(hidden)], dim=1)
    real = mask.to(torch.float32)
    first = torch.zeros_like(real)
    first[torch.arange(mask.shape[0], device=mask.device), mask.to(torch.int64).argmax(1)] = 1.0
    weights = torch.stack([real / real.sum(1, keepdim=True), first], dim=1)

    def pool(hidden: Tensor) -> Tensor:
        return torch.bmm(weights.to(hidden.device), hidden.float()).flatten(1)

    return pool


POOLS: dict[str, Callable[[Tensor], Pool]] = {
    "last": last_pool,
    "mean": mean_pool,
    "cls": first_pool,
    "mean+cls": mean_first_pool,
}


class StopForwardError(Exception):
    """Raised inside a forward pass once the deepest wanted state has been read; caught by `Probe.states`."""


@dataclass
class Capture:
    """Pooled states of one forward pass, by Hugging Face `hidden_states` index.

    Attributes:
        wanted: indices to keep.
        pool: what to keep of each.
        stop_at: index after which the pass is stopped, or None to let it finish.
        states: what was read so far. A later call of the same block replaces an earlier one (chunked prefill).
    """

    wanted: frozenset[int]
    pool: Pool
    stop_at: int | None = None
    states: dict[int, Tensor] = field(default_factory=dict)

    def read(self, index: int, hidden: Tensor) -> None:
        """Keep a state if it is wanted; end the pass if it is the last."""
        if index in self.wanted:
            self.states[index] = self.pool(hidden.detach())
        if index == self.stop_at:
            raise StopForwardError


@dataclass
class GenerationCapture:
    """States of a `generate` call: of the last prompt token, then of every token that is fed back.

    The prompt's state is found by its position, not as the last of a forward pass: a prefill may come in chunks, and prompt
    lookup appends candidates to it. Tensors are float32 copies of shape (rows, dim), by `hidden_states` index.

    Attributes:
        position: the probe position, counted in (left-padded) tokens.
        wanted: indices to keep of the prompt.
        decoded: indices to keep of generated tokens.
        prompt: the prompt's states.
        newest: states of the token that was fed last.
        answering: whether the prompt has been judged; its states are not read any more.
    """

    position: int
    wanted: frozenset[int]
    decoded: frozenset[int] = frozenset()
    prompt: dict[int, Tensor] = field(default_factory=dict)
    newest: dict[int, Tensor] = field(default_factory=dict)
    answering: bool = False
    _seen: dict[int, int] = field(default_factory=dict)

    def read(self, index: int, hidden: Tensor) -> None:
        """Keep a state if it is wanted."""
        if self.answering:
            if index in self.decoded:
                self.newest[index] = hidden[:, -1].detach().to(torch.float32, copy=True)
        elif index in self.wanted:
            start = self._seen.get(index, 0)
            self._seen[index] = end = start + hidden.shape[1]
            if start <= self.position < end:
                self.prompt[index] = hidden[:, self.position - start].detach().to(torch.float32, copy=True)


_active: ContextVar[tuple[str, Capture | GenerationCapture] | None] = ContextVar("mlpm_guard_capture", default=None)


def find_core(model: nn.Module) -> nn.Module:
    """The module that runs the text blocks: the model without its head, and without a vision tower."""
    getter = getattr(model, "get_decoder", None)
    core = getter() if callable(getter) else None
    # What some encoders call their decoder is the projection to the vocabulary (ModernBERT); that runs no blocks.
    if isinstance(core, nn.Module) and any(isinstance(module, nn.ModuleList) for module in core.modules()):
        return core
    base = getattr(model, "base_model", None)
    return base if isinstance(base, nn.Module) else model


def find_blocks(core: nn.Module, count: int, name: str) -> list[nn.Module]:
    """The `count` transformer blocks of a core, in order.

    Raises:
        UnsupportedArchitectureError: there is no list of that many blocks, or more than one.
    """
    lists = {
        path: module for path, module in core.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    }
    # A block may itself hold a list of that length (experts); only lists outside every other candidate count.
    outer = [path for path in lists if not any(path.startswith(other + ".") for other in lists if other != path)]
    if len(outer) != 1:
        found = ", ".join(outer) or "none"
        raise UnsupportedArchitectureError(
            f"cannot tell which modules are the {count} blocks of {name} (lists of that length: {found}). "
            "Use a model that keeps its blocks in one nn.ModuleList of config.num_hidden_layers, or implement the "
            "mlpm_guard.Encoder protocol for it and pass that to Guard(...)."
        )
    blocks = list(lists[outer[0]])
    if len({id(block) for block in blocks}) != count:
        raise UnsupportedArchitectureError(f"{name} shares one block between layers, which hooks cannot tell apart")
    return blocks


def _hidden(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    last = getattr(output, "last_hidden_state", None)
    if isinstance(last, Tensor):
        return last
    first = output[0]
    if not isinstance(first, Tensor):
        raise UnsupportedArchitectureError(f"a block returned {type(first).__name__} where hidden states were expected")
    return first


class _Hook:
    """Reads the state of one block. A class rather than a closure, so that hooked models can still be pickled."""

    def __init__(self, owner: str, index: int) -> None:
        self._owner = owner
        self._index = index

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        # A compiled graph cannot read context variables; a probe is inert there.
        if torch.compiler.is_compiling():
            return
        active = _active.get()
        # Another hooked model may run in the same context, such as the assistant of speculative decoding.
        if active is not None and active[0] == self._owner:
            active[1].read(self._index, _hidden(output))


class Probe:
    """Hooks on one model's blocks.

    State k is the output of block k (1-based), which is Hugging Face's `hidden_states[k]`. The last one is read from the core's
    output, after the final norm where the model has one, exactly as `hidden_states[-1]` is.
    """

    _installed: ClassVar[weakref.WeakKeyDictionary[nn.Module, Probe]] = weakref.WeakKeyDictionary()
    _lock = threading.Lock()

    def __init__(self, core: nn.Module, count: int, name: str) -> None:
        self.depth = count
        self._name = uuid.uuid4().hex
        for index, block in enumerate(find_blocks(core, count, name), start=1):
            if index < count:
                block.register_forward_hook(_Hook(self._name, index))
        core.register_forward_hook(_Hook(self._name, count))

    @classmethod
    def of(cls, core: nn.Module, count: int, name: str) -> Probe:
        """The probe of this core; installed at the first call."""
        with cls._lock:
            probe = cls._installed.get(core)
            if probe is None:
                probe = cls._installed[core] = cls(core, count, name)
            return probe

    @contextlib.contextmanager
    def reading(self, capture: Capture | GenerationCapture) -> Iterator[None]:
        """Have a capture read every forward pass that this context runs on this model."""
        token = _active.set((self._name, capture))
        try:
            yield
        finally:
            _active.reset(token)

    def states(self, run: Callable[[], object], wanted: tuple[int, ...], pool: Pool) -> Tensor:
        """Run a forward pass as deep as needed and return its states, shape (batch, len(wanted), dim), float32."""
        deepest = max(wanted)
        capture = Capture(frozenset(wanted), pool, deepest if deepest < self.depth else None)
        with self.reading(capture), contextlib.suppress(StopForwardError):
            run()
        return stacked(capture.states, wanted)


def stacked(states: Mapping[int, Tensor], wanted: Sequence[int]) -> Tensor:
    """States by index, each of shape (rows, dim), as one tensor of shape (rows, len(wanted), dim).

    Raises:
        UnsupportedArchitectureError: some were not read.
    """
    missing = [index for index in wanted if index not in states]
    if missing:
        raise UnsupportedArchitectureError(
            f"the model ran without calling blocks {missing}: inside a compiled model hooks do not run, and skipped layers "
            "have no state. Use the model as it was before torch.compile (for generate: disable_compile=True)."
        )
    device = states[wanted[-1]].device
    return torch.stack([states[index].to(device) for index in wanted], dim=1)
