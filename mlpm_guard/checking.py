"""Checker: everything about a guard that judges. Conversations in, verdicts out, sync and async.

`mlpm_guard.guard.Guard` adds learning, saving and loading.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mlpm_guard.category_policy import CategoryPolicy, PolicyLike, read_policy, require_known
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.encoders.base import Encoder, is_encoder
from mlpm_guard.errors import (
    BundleMismatchError,
    ConfigurationError,
    InputError,
    InputTooLongError,
    MlpmGuardError,
    NotFittedError,
    PromptBlocked,
    ResponseBlocked,
)
from mlpm_guard.explaining import explained
from mlpm_guard.explanation import Explanation
from mlpm_guard.judging import Evidence, Examined, Judge, Reading
from mlpm_guard.model import Model
from mlpm_guard.options import is_number, require_choice
from mlpm_guard.policy import OnError, Policy
from mlpm_guard.prototypes.scorer import LayerScorer
from mlpm_guard.review import Review
from mlpm_guard.rules import Rules
from mlpm_guard.running import Runner, as_batch
from mlpm_guard.verdict import Action, Mode, OnReview, Target, Verdict

if TYPE_CHECKING:
    from mlpm_guard.bundle import Bundle

_SLICE = 8192
_CHOICES = {"target": ("prompt", "response"), "mode": ("enforce", "monitor"), "on_error": ("block", "allow", "raise")}
_OBJECTS: dict[str, type] = {"rules": Rules, "review": Review}


class Checker:
    """Judges conversations by the layer states of an encoder; see `Guard` for the options and their errors."""

    reads_states: ClassVar[bool] = True
    """Whether verdicts follow from layer states alone, so that they can be read from a forward pass of someone else's."""

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        target: Target = "prompt",
        threshold: float = 0.5,
        mode: Mode = "enforce",
        on_error: OnError = "block",
        timeout: float | None = None,
        window: int | None = None,
        fragment_margin: float = 0.6,
        max_chars: int = 1_000_000,
        normalise: bool = True,
        rules: Rules | None = None,
        review: Review | None = None,
        policy: PolicyLike | None = None,
    ) -> None:
        if window is not None and not (isinstance(window, int) and window >= 8):
            raise ConfigurationError(f"window={window!r}: a whole number of tokens, at least 8, or None")
        if not (is_number(fragment_margin) and fragment_margin >= 0):
            raise ConfigurationError(
                f"fragment_margin={fragment_margin!r}: a share of the distance between the classes, at least 0"
            )
        # Attributes check themselves; here before an encoder is loaded for nothing.
        self.target: Target = target
        self.threshold = threshold
        self.mode: Mode = mode
        self.on_error: OnError = on_error
        self.timeout = timeout
        self.max_chars = max_chars
        self.rules = rules
        self.review = review
        self.category_policy = policy or {}
        if encoder is None:
            from mlpm_guard.encoders.embedded import EmbeddedEncoder

            encoder = EmbeddedEncoder()
        if not is_encoder(encoder):
            raise ConfigurationError(
                f"encoder is {type(encoder).__name__}: pass a TransformerEncoder, or anything with the members of "
                "mlpm_guard.Encoder. A saved guard is loaded with Guard.from_pretrained(path)."
            )
        self._encoder = encoder
        self._window = window
        self._normalise = bool(normalise)
        self._fragment_margin = float(fragment_margin)
        self._model: Model | None = None
        self._checked = True
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._verdicts: Runner[Verdict] = Runner(self._judge_inputs, self._failed)
        self._explanations: Runner[Explanation] = Runner(self._explain_inputs, self._not_explained)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CHOICES:
            require_choice(name, value, _CHOICES[name])
            if name == "target" and "target" in self.__dict__:
                raise ConfigurationError("a guard's target is set when it is made: what it learned belongs to it")
        elif name == "timeout" and value is not None and not (is_number(value) and value > 0):
            raise ConfigurationError(f"timeout={value!r}: seconds above 0, or None")
        elif name == "max_chars" and not (isinstance(value, int) and value >= 1):
            raise ConfigurationError(f"max_chars={value!r}: a whole number of characters, at least 1")
        elif name in _OBJECTS and not (value is None or isinstance(value, _OBJECTS[name])):
            kind = _OBJECTS[name].__name__
            raise ConfigurationError(f"{name} is {type(value).__name__}: give mlpm_guard.{kind}(...), or None")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_lock", "_verdicts", "_explanations"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._encoder!r}, target={self.target!r}, threshold={self.threshold}, mode={self.mode!r}, "
            f"bundle_id={self.bundle_id!r})"
        )

    # -- judging ------------------------------------------------------------------------------------------------------------

    def check(self, conversation: ConversationLike) -> Verdict:
        """Judge one conversation.

        Args:
            conversation: a string, or a list of role/content messages; the last user turn is judged alone and in its context
                (with `target="response"` the assistant's answer).

        Raises:
            NotFittedError: the guard was neither fitted nor loaded.
            EncoderLoadError: the encoder's weights cannot be loaded.
            BundleMismatchError: the encoder is not the one the guard was fitted on.
            MlpmGuardError: the conversation could not be judged, with `on_error="raise"` only.
        """
        self._prepare()
        return self._verdicts.run([conversation], self.timeout)[0]

    def check_batch(self, conversations: Iterable[ConversationLike]) -> list[Verdict]:
        """Judge many conversations in shared forward passes; one that cannot be judged does not disturb the others.

        Args:
            conversations: a list of strings or of lists of messages; see `check`.

        Returns:
            One verdict each, in order.

        Raises:
            InvalidConversationError: the argument is itself one conversation.
            MlpmGuardError: as in `check`.
        """
        batch = as_batch(conversations)
        self._prepare()
        return self._verdicts.run(batch, self.timeout)

    async def acheck(self, conversation: ConversationLike) -> Verdict:
        """`check` without blocking the event loop. Concurrent calls share forward passes."""
        await self._ready()
        return (await self._verdicts.arun([conversation], self.timeout))[0]

    async def acheck_batch(self, conversations: Iterable[ConversationLike]) -> list[Verdict]:
        """`check_batch` without blocking the event loop."""
        batch = as_batch(conversations)
        await self._ready()
        return await self._verdicts.arun(batch, self.timeout)

    def enforce(self, conversation: ConversationLike, *, on_review: OnReview = "pass") -> Verdict:
        """The verdict, unless its action is "block".

        Args:
            conversation: see `check`.
            on_review: what an action of "review" does: "pass", or "block".

        Raises:
            ConfigurationError: `on_review` is neither.
            PromptBlocked: a prompt was blocked; carries the verdict.
            ResponseBlocked: an answer was blocked; carries the verdict.
        """
        require_choice("on_review", on_review, ("pass", "block"))
        return self._enforced(self.check(conversation).resolved(on_review))

    async def aenforce(self, conversation: ConversationLike, *, on_review: OnReview = "pass") -> Verdict:
        """`enforce` without blocking the event loop."""
        require_choice("on_review", on_review, ("pass", "block"))
        return self._enforced((await self.acheck(conversation)).resolved(on_review))

    def explain(self, conversation: ConversationLike) -> Explanation:
        """Everything behind the verdict on a conversation: every judged piece, and distances to the classes. Holds no text.

        Args:
            conversation: see `check`.

        Raises:
            MlpmGuardError: as in `check`.
        """
        self._prepare()
        return self._explanations.run([conversation], self.timeout)[0]

    async def aexplain(self, conversation: ConversationLike) -> Explanation:
        """`explain` without blocking the event loop."""
        await self._ready()
        return (await self._explanations.arun([conversation], self.timeout))[0]

    # -- state --------------------------------------------------------------------------------------------------------------

    @property
    def _bundle(self) -> Bundle | None:
        return None if self._model is None else self._model.bundle

    @property
    def encoder(self) -> Encoder:
        """What gives the layer states."""
        return self._encoder

    @property
    def threshold(self) -> float:
        """Probability from which a verdict is flagged, in [0, 1]."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not (is_number(value) and 0.0 <= value <= 1.0):
            raise ConfigurationError(f"threshold={value!r}: a probability from 0 to 1")
        if value != self.__dict__.get("_threshold"):
            self._set_by_hand = True
        self._threshold = float(value)

    @property
    def category_policy(self) -> Mapping[str, CategoryPolicy]:
        """What is done about categories, by name. Set it as a whole, with actions or `CategoryPolicy` values.

        Raises:
            CategoryError: when set to a policy on categories that a fitted guard does not have.
        """
        return MappingProxyType(self._category_policy)

    @category_policy.setter
    def category_policy(self, value: PolicyLike) -> None:
        policy = read_policy(value)
        model = self.__dict__.get("_model")
        if model is not None:
            require_known(policy, model.categories.names)
        self._category_policy = policy

    def list_categories(self) -> list[str]:
        """Names of the categories that the guard knows: the fitted ones, then the added ones, each in alphabetical order."""
        return [] if self._model is None else list(self._model.categories)

    @property
    def window(self) -> int:
        """Tokens of a judging window. May load the encoder."""
        return self._window if self._window is not None else self._encoder.window

    @property
    def bundle_id(self) -> str | None:
        """Name and hash of the bundle this guard was loaded from or saved to; None after a change that was not saved."""
        return None if self._bundle is None or not self._known().saved else self._bundle.bundle_id

    def load(self) -> Self:
        """Load the encoder's weights now, and check that they are those the guard was fitted on. Returns the guard itself.

        Raises:
            EncoderLoadError: the weights cannot be loaded.
            BundleMismatchError: the encoder is another one; the message names what differs.
        """
        with self._lock:
            self._encoder.load()
            if not self._checked:
                assert self._bundle is not None
                differences = self._bundle.manifest.encoder.differences(self._encoder.identity)
                if differences:
                    raise BundleMismatchError(
                        f"the guard {self._bundle.bundle_id} was fitted on another encoder; " + "; ".join(differences),
                        self._bundle.path,
                    )
                self._checked = True
        return self

    def bound_to(self, encoder: Encoder) -> Self:
        """The same guard on an encoder that is loaded already, such as one over the model that answers.

        Raises:
            NotFittedError: the guard was neither fitted nor loaded.
            BundleMismatchError: the encoder is not the one that the guard was fitted on; the message names what differs.
        """
        bundle = self._known().bundle
        fitted_on = self._encoder.identity if bundle is None else bundle.manifest.encoder
        differences = fitted_on.differences(encoder.identity)
        if differences:
            raise BundleMismatchError(
                "the guard was fitted on another encoder than this one (fitted on: here, this one: there); "
                + "; ".join(differences)
                + ". Fit a guard on this model: Guard(TransformerEncoder(model, tokenizer)).fit(...)",
                None if bundle is None else bundle.path,
            )
        bound = copy.copy(self)
        bound._encoder = encoder
        bound._checked = True
        return bound

    def policy(self) -> Policy:
        """A snapshot of everything that a verdict depends on, so that a refit on another thread cannot mix two guards.

        Raises:
            NotFittedError: the guard was neither fitted nor loaded.
            ConfigurationError: verdicts are to be reviewed by their novelty, which this guard does not measure.
            CategoryError: `category_policy` names a category that the guard does not have.
        """
        model = self._known()
        if self.review is not None and self.review.novelty is not None and not self._measures_novelty():
            raise ConfigurationError(
                "review: this guard does not measure novelty. Call measure_novelty(), which needs its statistics, or fit it on "
                "more prompts, or leave novelty out"
            )
        policy = self._category_policy
        require_known(policy, model.categories.names)
        scorer, bundle = model.scorer, model.bundle
        known = bundle.manifest.encoder.layers if bundle is not None else self._encoder.layers
        return Policy(
            scorer=scorer,
            layers=tuple(known[position] for position in scorer.positions),
            threshold=self.threshold,
            target=self.target,
            mode=self.mode,
            on_error=self.on_error,
            bundle_id=None if bundle is None or not model.saved else bundle.bundle_id,
            rules=self.rules,
            review=self.review,
            novelty=model.novelty,
            categories=model.categories,
            category_policy=policy,
        )

    # -- how ----------------------------------------------------------------------------------------------------------------

    async def _ready(self) -> None:
        if not self._is_ready():
            await asyncio.to_thread(self._prepare)

    def _judge_inputs(self, inputs: Sequence[ConversationLike], cancelled: threading.Event) -> list[Verdict | MlpmGuardError]:
        """Verdicts, or with `on_error="raise"` errors, in order."""
        results: list[Verdict | MlpmGuardError] = []
        for start in range(0, len(inputs), _SLICE):
            results += self._judge_slice(inputs[start : start + _SLICE], cancelled)
        return results

    def _judge_slice(self, inputs: Sequence[ConversationLike], cancelled: threading.Event) -> list[Verdict | MlpmGuardError]:
        policy = self.policy()
        results, asked = self._asked(policy, inputs)
        judged = iter(zip(asked, self._evidence(policy, asked, cancelled), strict=True))
        return [result if result is not None else policy.settle(*next(judged)) for result in results]

    def _explain_inputs(
        self, inputs: Sequence[ConversationLike], cancelled: threading.Event
    ) -> list[Explanation | MlpmGuardError]:
        """Explanations, or with `on_error="raise"` errors, in order."""
        policy = self.policy()
        results, asked = self._asked(policy, inputs)
        examined = iter(zip(asked, self._examined(policy, asked, cancelled), strict=True))
        return [
            explained(policy, *next(examined))
            if result is None
            else result
            if isinstance(result, MlpmGuardError)
            else Explanation(verdict=result)
            for result in results
        ]

    def _asked(
        self, policy: Policy, inputs: Sequence[ConversationLike]
    ) -> tuple[list[Verdict | MlpmGuardError | None], list[Conversation]]:
        """What is known of the inputs before a model is asked, None where nothing is, and the conversations to ask it about."""
        results: list[Verdict | MlpmGuardError | None] = []
        asked: list[Conversation] = []
        for value in inputs:
            try:
                conversation = Conversation.parse(value, target=self.target)
                if conversation.characters > self.max_chars:
                    raise InputTooLongError(f"{conversation.characters} characters; this guard judges up to {self.max_chars}")
            except InputError as error:
                results.append(policy.failed(error))
            else:
                results.append(ruled := policy.ruled(conversation))
                if ruled is None:
                    asked.append(conversation)
        return results, asked

    def _evidence(
        self, policy: Policy, conversations: Sequence[Conversation], cancelled: threading.Event
    ) -> Sequence[Evidence | MlpmGuardError]:
        return self._judge(policy, cancelled).judge(conversations)

    def _examined(
        self, policy: Policy, conversations: Sequence[Conversation], cancelled: threading.Event
    ) -> Sequence[Examined | MlpmGuardError]:
        return self._judge(policy, cancelled).examine(conversations)

    def _judge(self, policy: Policy, cancelled: threading.Event) -> Judge:
        return Judge(self._encoder, policy.scorer, policy.novelty, policy.categories, policy.layers, self._reading(), cancelled)

    def _measures_novelty(self) -> bool:
        return self._known().novelty is not None

    def _failed(self, error: MlpmGuardError) -> Verdict | MlpmGuardError:
        return self.policy().failed(error)

    def _not_explained(self, error: MlpmGuardError) -> Explanation | MlpmGuardError:
        failed = self._failed(error)
        return failed if isinstance(failed, MlpmGuardError) else Explanation(verdict=failed)

    def _enforced(self, verdict: Verdict) -> Verdict:
        if verdict.action is Action.BLOCK:
            raise PromptBlocked(verdict) if self.target == "prompt" else ResponseBlocked(verdict)
        return verdict

    def _is_ready(self) -> bool:
        return self._checked and self._model is not None

    def _prepare(self) -> None:
        """What is wrong with the guard itself, not with a conversation, is raised whatever `on_error` says."""
        self._fitted()
        if not self._is_ready():
            self.load()

    def _fitted(self) -> LayerScorer:
        return self._known().scorer

    def _known(self) -> Model:
        if self._model is None:
            raise NotFittedError("this guard knows no prototypes yet: call fit(prompts, labels), or Guard.from_pretrained()")
        return self._model

    def _reading(self) -> Reading:
        return Reading(self.target, self.window, self._normalise, self._fragment_margin)
