"""Public stand-ins for tests of your own chains: no weights, no torch, no waiting.

`MockGuard` is a real `Guard` whose judgement is a function of yours, so that everything around it (policies, errors, batching,
async) is the shipped code. `MockEncoder` is an encoder whose states depend on the text alone, for tests that fit.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from mlpm_guard.category_policy import require_known
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.encoders.base import Encoder, EncoderIdentity, States
from mlpm_guard.errors import BundleError, ConfigurationError, EncoderError, MlpmGuardError
from mlpm_guard.guard import Guard
from mlpm_guard.judging import Evidence, Examined
from mlpm_guard.model import Model
from mlpm_guard.policy import Policy
from mlpm_guard.prototypes.categories import Categories, CategoryBlock, require_name
from mlpm_guard.prototypes.scorer import LayerScorer
from mlpm_guard.verdict import WindowEvidence

if TYPE_CHECKING:
    from mlpm_guard.prototypes.classifier import PrototypeClassifier

__all__ = ["MockEncoder", "MockGuard"]

_WORD = re.compile(r"\w+|[^\w\s]")
_SEPARATION = 4.0


class MockEncoder:
    """An encoder without a model: states are a hash of the text, shifted where `unsafe` says so.

    Args:
        unsafe: which texts lean unsafe; by default those that contain "unsafe".
        layers: number of layers.
        dim: numbers per layer state.
        window: tokens (words) of a judging window.
        delay: seconds that a batch takes.
    """

    def __init__(
        self,
        unsafe: Callable[[str], bool] | None = None,
        *,
        layers: int = 3,
        dim: int = 16,
        window: int = 128,
        delay: float = 0.0,
    ) -> None:
        if layers < 1 or dim < 1 or window < 8 or delay < 0:
            raise ConfigurationError("MockEncoder: layers and dim at least 1, window at least 8, delay at least 0")
        self._unsafe = unsafe or _says_unsafe
        self._layers = tuple(range(1, layers + 1))
        self._dim = dim
        self._window = window
        self._delay = delay
        self._lock = threading.Lock()
        self.batches: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layer indices, from 1."""
        return self._layers

    @property
    def dim(self) -> int:
        """Numbers per layer state."""
        return self._dim

    @property
    def window(self) -> int:
        """Words of a judging window."""
        return self._window

    @property
    def reads_roles(self) -> bool:
        """Roles make no difference to the states."""
        return False

    @property
    def identity(self) -> EncoderIdentity:
        """Equal for mocks of equal shape."""
        name = f"mock-{len(self._layers)}-{self._dim}"
        return EncoderIdentity(
            model=None,
            architecture="MockEncoder",
            weights=name,
            tokenizer="words",
            chat_template="none",
            pooling="mean",
            layers=self._layers,
            dim=self._dim,
            dtype="float32",
        )

    def load(self) -> MockEncoder:
        """Nothing to load."""
        return self

    def spans(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
        """Character spans of the words and punctuation marks of every text, arrays of shape (words, 2)."""
        return [np.array([found.span() for found in _WORD.finditer(text)], np.int64).reshape(-1, 2) for text in texts]

    def encode(self, conversations: Sequence[ConversationLike], *, layers: Sequence[int] | None = None) -> States:
        """States of shape (n, layers, dim). The sizes of all calls are kept in `batches`."""
        wanted = self._layers if layers is None else tuple(layers)
        if not set(wanted) <= set(self._layers):
            raise ConfigurationError(f"layers={list(wanted)}: from 1 to {len(self._layers)}")
        with self._lock:
            self.batches.append(len(conversations))
        if self._delay:
            time.sleep(self._delay)
        states = np.empty((len(conversations), len(wanted), self._dim), np.float32)
        for row, each in enumerate(conversations):
            conversation = Conversation.parse(each)
            text = "\n".join(message.content for message in conversation.messages)
            for column, layer in enumerate(wanted):
                seed = hashlib.blake2b(f"{layer}|{text}".encode(), digest_size=8).digest()
                states[row, column] = np.random.default_rng(int.from_bytes(seed, "big")).normal(size=self._dim)
            if self._unsafe(text):
                states[row, :, 0] += _SEPARATION
        return states


@dataclass(frozen=True)
class _MockPolicy(Policy):
    """Verdicts on states that are not looked at."""

    evidence: Callable[[Policy, Sequence[Conversation]], list[Evidence | MlpmGuardError]] = field(kw_only=True)

    def read(
        self,
        conversations: Sequence[Conversation],
        states: npt.NDArray[np.floating],  # noqa: ARG002
        view: Literal["prefill", "decode"],  # noqa: ARG002
    ) -> Sequence[Evidence | MlpmGuardError]:
        return self.evidence(self, conversations)


class MockGuard(Guard):
    """A guard whose judgement is your function. A `GuardedGenerator` over any model takes it too.

    Args:
        flag: called with the text of the turn that is judged (the last user turn, or the answer): True, or a probability at or
            above the threshold, flags it. By default nothing is flagged. May raise, to test failures.
        novelty: called with the same text; its percentile of novelty, in [0, 1]. By default novelty is not measured.
        categories: functions by the name of a category, called with the same text: whether it belongs to the category, or the
            probability that it does. A verdict then holds, names and acts on these categories as that of any guard does.
        delay: seconds that a batch takes.
        options: of `Guard`: target, threshold, mode, on_error, timeout, max_chars, rules, review, policy.

    Raises:
        ConfigurationError: what should be a function is none, or an option has a bad value.
        CategoryError: a category's name cannot be used, or `policy` names one that is not among `categories`.

    Attributes:
        calls: how many texts each scorer call judged, in order: `len(guard.calls)` is the number of scorer calls. Texts are not
            kept.
    """

    reads_states: ClassVar[bool] = False

    def __init__(
        self,
        flag: Callable[[str], bool | float] | None = None,
        *,
        novelty: Callable[[str], float] | None = None,
        categories: Mapping[str, Callable[[str], bool | float]] | None = None,
        delay: float = 0.0,
        **options: Any,
    ) -> None:
        if flag is not None and not callable(flag):
            raise ConfigurationError("flag: a function from text to bool or probability")
        if novelty is not None and not callable(novelty):
            raise ConfigurationError("novelty: a function from text to a percentile")
        asked = {} if categories is None else categories
        if not isinstance(asked, Mapping) or not all(callable(each) for each in asked.values()):
            raise ConfigurationError("categories: functions from text to bool or probability, by the name of the category")
        super().__init__(MockEncoder(), **options)
        self._categories = {name: asked[name] for name in sorted(map(require_name, asked))}
        self._flag = flag or _never
        self._novelty = novelty
        self._delay = delay
        self.calls: list[int] = []
        zeros = np.zeros((1, self._encoder.dim))
        self._model = Model(
            LayerScorer(np.array([0]), zeros, np.zeros(1), np.ones(1), 0.0, (-_SEPARATION, _SEPARATION)),
            None,
            None,
            categories=Categories(_block(tuple(self._categories), self._encoder.dim)),
        )
        require_known(self._category_policy, tuple(self._categories))

    def bound_to(self, encoder: Encoder) -> Self:  # noqa: ARG002
        """The guard itself: it judges the same on any encoder."""
        return self

    def policy(self) -> Policy:
        """A snapshot; see `Guard.policy`."""
        return _MockPolicy(**vars(super().policy()), evidence=self._judge_all)

    def _evidence(
        self, policy: Policy, conversations: Sequence[Conversation], cancelled: threading.Event
    ) -> Sequence[Evidence | MlpmGuardError]:
        if self._delay:
            cancelled.wait(self._delay)
        return self._judge_all(policy, conversations)

    def _examined(
        self, policy: Policy, conversations: Sequence[Conversation], cancelled: threading.Event
    ) -> Sequence[Examined | MlpmGuardError]:
        found = self._evidence(policy, conversations, cancelled)
        return [each if isinstance(each, MlpmGuardError) else Examined((each,), 0) for each in found]

    def _measures_novelty(self) -> bool:
        return self._novelty is not None

    def _trainable(self) -> PrototypeClassifier:
        raise BundleError("a MockGuard judges by your functions and has nothing to learn with; fit a Guard(MockEncoder())")

    def _judge_all(self, policy: Policy, conversations: Sequence[Conversation]) -> list[Evidence | MlpmGuardError]:
        self.calls.append(len(conversations))
        return [self._judged(policy, conversation) for conversation in conversations]

    def _judged(self, policy: Policy, conversation: Conversation) -> Evidence | MlpmGuardError:
        try:
            text = conversation.messages[conversation.turn_index(policy.target)].content
            answer = self._flag(text)
            novelty = None if self._novelty is None else float(self._novelty(text))
            told = [_log_odds(self._categories[name](text)) for name in policy.categories]
        except MlpmGuardError as error:
            return error
        except Exception as error:  # noqa: BLE001  (fails closed, as a real guard does)
            return EncoderError(f"a function of the mock raised {type(error).__name__}")
        # The one layer's log-odds that the fixed aggregation turns into the wanted ones.
        scorer = policy.scorer
        log_odds = np.array([(_log_odds(answer) - scorer.intercept) / scorer.layer_weights[0]])
        where = WindowEvidence(view="turn", form="raw", kind="whole", index=0, count=1)
        score, categories = float(scorer.aggregate(log_odds[None])[0]), np.array(told)
        return Evidence(score, log_odds, 0.0, where, 1, None, novelty, categories[:, None], categories)


def _log_odds(answer: bool | float) -> float:
    probability = float(answer) if not isinstance(answer, (bool, np.bool_)) else (0.98 if answer else 0.02)
    probability = min(max(probability, 0.0), 1.0)
    return float(np.log(max(probability, 1e-9)) - np.log(max(1.0 - probability, 1e-9)))


def _block(names: tuple[str, ...], dim: int) -> CategoryBlock | None:
    """Categories that read the mock's one layer, and add nothing of their own to what the functions say."""
    if not names:
        return None
    return CategoryBlock(names, np.array([0]), np.zeros((len(names), 1, dim), np.float32), np.zeros(len(names)))


def _never(_text: str) -> bool:
    return False


def _says_unsafe(text: str) -> bool:
    return "unsafe" in text.lower()
