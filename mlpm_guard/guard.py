"""Guard: an encoder, a classifier and a policy. Conversations in, verdicts out, sync and async."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from mlpm_guard.batching import MicroBatcher
from mlpm_guard.cancelling import Cancellation
from mlpm_guard.conversation import Conversation, ConversationLike
from mlpm_guard.encoders.base import Encoder, is_encoder
from mlpm_guard.errors import (
    BundleMismatchError,
    ConfigurationError,
    GuardTimeoutError,
    InputError,
    InputTooLongError,
    MlpmGuardError,
    NotFittedError,
    PromptBlocked,
    ResponseBlocked,
)
from mlpm_guard.judging import Evidence, Judge, Reading
from mlpm_guard.policy import OnError, Policy
from mlpm_guard.prototypes.scorer import LayerScorer
from mlpm_guard.verdict import Action, Mode, Target, Verdict

if TYPE_CHECKING:
    from mlpm_guard.bundle import Bundle, Calibration
    from mlpm_guard.prototypes.classifier import PrototypeClassifier
    from mlpm_guard.training import Label

_log = logging.getLogger("mlpm_guard")
_SLICE, _TIMED_SLICE = 8192, 512
_CHOICES = {"target": ("prompt", "response"), "mode": ("enforce", "monitor"), "on_error": ("block", "allow", "raise")}


class _Model(NamedTuple):
    """What a guard judges with, replaced as a whole: threads see either the old or the new, and never wait for a fit."""

    scorer: LayerScorer
    bundle: Bundle | None
    calibration: Calibration | None = None
    saved: bool = True


class Guard:
    """Judges conversations by the layer states of an encoder.

    Fails closed: whatever goes wrong between a text and its score gives a verdict that blocks, with `Verdict.error` set, unless
    `on_error` says otherwise. Safe to share between threads and tasks; picklable where its encoder is.

    Args:
        encoder: gives layer states; by default the embedded all-MiniLM-L6-v2.
        target: "prompt" judges the last user turn, "response" the assistant's answer.
        threshold: probability from which a verdict is flagged, in [0, 1].
        mode: "enforce", or "monitor", which judges and never blocks.
        on_error: what a gate does with a conversation that could not be judged: "block" it, "allow" it, or "raise" the error.
        timeout: seconds that one call may take, or None for no limit. What is not judged by then counts as an error.
        window: tokens of a judging window; None takes what suits the encoder.
        fragment_margin: most that is deducted from the score of a sentence of a longer text, as a share of the distance between
            typical safe and unsafe prompts. Nothing is deducted in a text that is calm otherwise, all of it where the other
            sentences are raised themselves; 0 judges every sentence like a whole text.
        max_chars: longest conversation in characters; a longer one counts as an error.
        normalise: also judge disguised text in its normalised form.

    Raises:
        ConfigurationError: an option has a bad value.
    """

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
    ) -> None:
        if window is not None and not (isinstance(window, int) and window >= 8):
            raise ConfigurationError(f"window={window!r}: a whole number of tokens, at least 8, or None")
        if not (_is_number(fragment_margin) and fragment_margin >= 0):
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
        self._model: _Model | None = None
        self._classifier: PrototypeClassifier | None = None
        self._checked = True
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._batcher: MicroBatcher[ConversationLike, Verdict] = MicroBatcher(self._judge_inputs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CHOICES:
            _choice(name, value, _CHOICES[name])
            if name == "target" and "target" in self.__dict__:
                raise ConfigurationError("a guard's target is set when it is made: what it learned belongs to it")
        elif name == "timeout" and value is not None and not (_is_number(value) and value > 0):
            raise ConfigurationError(f"timeout={value!r}: seconds above 0, or None")
        elif name == "max_chars" and not (isinstance(value, int) and value >= 1):
            raise ConfigurationError(f"max_chars={value!r}: a whole number of characters, at least 1")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_lock", "_batcher"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._encoder!r}, target={self.target!r}, threshold={self.threshold}, mode={self.mode!r}, "
            f"bundle_id={self.bundle_id!r})"
        )

    # -- loading and saving -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "default",
        *,
        encoder: Encoder | None = None,
        device: str = "auto",
        threshold: float | None = None,
        mode: Mode = "enforce",
        on_error: OnError = "block",
        timeout: float | None = None,
        max_chars: int = 1_000_000,
        normalise: bool = True,
    ) -> Self:
        """Load a saved guard. Its encoder's weights load at first use, or by `load()`.

        Args:
            name_or_path: a shipped bundle's name ("default"), or a folder. A name wins over a folder of that name; give a
                folder with a separator ("./default").
            encoder: the encoder that the guard was fitted on, where it is already loaded; by default it is loaded by the name
                in the bundle.
            device: where to load that encoder.
            threshold: instead of the one in the bundle.
            mode: see `Guard`.
            on_error: see `Guard`.
            timeout: see `Guard`.
            max_chars: see `Guard`.
            normalise: see `Guard`.

        Raises:
            BundleNotFoundError: there is no such bundle.
            BundleCorruptError: a file is missing, truncated or altered.
            BundleSchemaError: the format is not one that this version reads.
            BundleMismatchError: `encoder` is not the one that the guard was fitted on.
        """
        from mlpm_guard import bundle as bundles

        bundle = bundles.load(name_or_path)
        manifest = bundle.manifest
        guard = cls(
            encoder if encoder is not None else bundle.encoder(device),
            target=manifest.target,
            threshold=manifest.threshold if threshold is None else threshold,
            mode=mode,
            on_error=on_error,
            timeout=timeout,
            window=manifest.window,
            fragment_margin=manifest.fragment_margin,
            max_chars=max_chars,
            normalise=normalise,
        )
        guard._model = _Model(bundle.scorer, bundle, manifest.calibration)
        guard._checked = False
        if encoder is not None:
            guard.load()
        return guard

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

    def save_pretrained(self, path: str | Path, *, statistics: bool = True, notes: Mapping[str, Any] | None = None) -> Path:
        """Write the guard to a folder, whole or not at all.

        Args:
            path: the folder. A bundle that is there is replaced.
            statistics: include what `partial_fit` and `forget` need.
            notes: JSON values to keep in the manifest (sources, licence, figures).

        Returns:
            The folder.

        Raises:
            NotFittedError: there is nothing to save.
            BundleSaveError: it cannot be written; what was there before is untouched.
        """
        from mlpm_guard import __version__
        from mlpm_guard import bundle as bundles

        with self._lock:
            self.load()
            scorer = self._fitted()
            classifier = self._trainable() if statistics or self._bundle is None else None
            if classifier is not None:
                learned = classifier.statistics_
                settings = bundles.ClassifierSettings(
                    C=classifier.C,
                    sample_size=learned.saved_sample_size if statistics else classifier.sample_size,
                    folds=classifier.folds,
                    layers=learned.layers,
                    dim=learned.dim,
                )
                counts: Mapping[Any, int] = {"safe": learned.count(0), "unsafe": learned.count(1)}
                tensors = learned.to_tensors() if statistics else None
            else:
                assert self._bundle is not None
                settings, counts, tensors = (
                    self._bundle.manifest.classifier,
                    self._bundle.manifest.examples,
                    None,
                )
            kept = self._bundle.manifest.notes if self._bundle is not None else {}
            try:
                json.dumps(notes)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"notes must be JSON values ({type(error).__name__})") from None
            manifest = bundles.Manifest.model_validate(
                {
                    "library_version": __version__,
                    "target": self.target,
                    "threshold": self.threshold,
                    "window": self.window,
                    "fragment_margin": self._fragment_margin,
                    "encoder": self._encoder.identity.model_dump(),
                    "classifier": settings.model_dump(),
                    "examples": dict(counts),
                    "calibration": None if self.calibration is None else self.calibration.model_dump(),
                    "notes": kept if notes is None else dict(notes),
                }
            )
            saved = bundles.save(path, manifest, scorer, tensors)
            self._model = _Model(scorer, saved, self.calibration)
            return saved.path

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
        return self._run([conversation])[0]

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
        return self._run(_many(conversations))

    async def acheck(self, conversation: ConversationLike) -> Verdict:
        """`check` without blocking the event loop. Concurrent calls share forward passes."""
        return (await self._arun([conversation]))[0]

    async def acheck_batch(self, conversations: Iterable[ConversationLike]) -> list[Verdict]:
        """`check_batch` without blocking the event loop."""
        return await self._arun(_many(conversations))

    def enforce(self, conversation: ConversationLike) -> Verdict:
        """The verdict, unless its action is "block".

        Raises:
            PromptBlocked: a prompt was blocked; carries the verdict.
            ResponseBlocked: an answer was blocked; carries the verdict.
        """
        return self._enforced(self.check(conversation))

    async def aenforce(self, conversation: ConversationLike) -> Verdict:
        """`enforce` without blocking the event loop."""
        return self._enforced(await self.acheck(conversation))

    # -- fitting ------------------------------------------------------------------------------------------------------------

    def fit(
        self,
        prompts: Iterable[ConversationLike],
        labels: Iterable[Label],
        *,
        C: float = 1.0,
        sample_size: int = 1024,
        folds: int = 5,
        progress: bool | None = None,
    ) -> Self:
        """Learn prototypes from labelled prompts, from scratch. Streams: memory does not grow with the number of prompts.

        Args:
            prompts: conversations; any iterable.
            labels: 0, False or "safe"; 1, True or "unsafe".
            C: inverse strength of the penalty on layer weights; smaller keeps fewer layers.
            sample_size: prompts per class that the aggregation of layers is fitted on.
            folds: folds of the out-of-fold layer scores; see `PrototypeClassifier`.
            progress: show a progress bar; None shows one in a terminal.

        Raises:
            DataError: a row cannot be used, or a class has fewer than two prompts. The guard stays what it was.
        """
        from mlpm_guard.prototypes.classifier import PrototypeClassifier

        classifier = PrototypeClassifier(C=C, sample_size=sample_size, folds=folds).reset()
        self._learn(classifier, prompts, labels, progress)
        classifier.refit()
        self._adopt(classifier)
        return self

    def partial_fit(
        self, prompts: Iterable[ConversationLike], labels: Iterable[Label], *, progress: bool | None = None
    ) -> Self:
        """Learn from more labelled prompts, as if they had been there from the start. On an unfitted guard, the same as `fit`.

        Raises:
            DataError: a row cannot be used. The guard stays what it was.
            BundleError: the guard was saved without statistics.
        """
        with self._lock:
            if self._model is None:
                return self.fit(prompts, labels, progress=progress)
            classifier = self._copy_of_trainable()
            self._learn(classifier, prompts, labels, progress)
            classifier.refit()
            self._adopt(classifier)
        return self

    def forget(self, prompts: Iterable[ConversationLike], labels: Iterable[Label]) -> Self:
        """Unlearn labelled prompts: statistics and discriminants become what they were without them.

        Raises:
            UnknownPromptError: one was never learned under that label. The guard stays what it was.
            DataError: a row cannot be used, or too few prompts would be left.
            BundleError: the guard was saved without statistics.
        """
        from mlpm_guard.training import examples

        with self._lock:
            classifier = self._copy_of_trainable()
            chunks = list(examples(prompts, labels, self._encoder, self._reading(), progress=False))
            if chunks:
                states, marks, keys = zip(*chunks, strict=True)
                classifier.forget(
                    np.concatenate(states),
                    [label for chunk in marks for label in chunk],
                    np.concatenate(keys),
                )
                self._adopt(classifier)
        return self

    def calibrate(
        self,
        prompts: Iterable[ConversationLike],
        labels: Iterable[Label] | None = None,
        *,
        max_fpr: float | None = None,
        confidence: float = 0.95,
        objective: str | None = None,
    ) -> Self:
        """Set the threshold, and with labels also the probabilities, from prompts that were not trained on.

        Without labels, all prompts are benign, and the threshold is the lowest that flags at most `max_fpr` of such traffic
        with that confidence. With labels, the log-odds are first mapped to calibrated probabilities by an affine map, so that
        layers still add up to them; then the threshold is set for `objective`, or for `max_fpr` on the safe prompts. Learning
        or forgetting anything afterwards, or setting the threshold by hand, ends the calibration.

        Args:
            prompts: conversations.
            labels: as many labels, or None if all prompts are benign.
            max_fpr: largest acceptable share of benign prompts flagged; 0.01 where there is no objective.
            confidence: probability with which that is kept, for traffic exchangeable with the benign prompts.
            objective: "f1", or "recall@fpr=0.05" (no guarantee: best on these prompts).

        Raises:
            ConfigurationError: an option has a bad value, or `objective` comes without labels or together with `max_fpr`.
            DataError: too few prompts (the message says how many are needed and what is reachable), a prompt that cannot be
                judged, bad labels.
        """
        from mlpm_guard.calibrating import calibrated

        with self._lock:
            scale, found = calibrated(self, prompts, labels, max_fpr=max_fpr, confidence=confidence, objective=objective)
            model = self._known()
            self._model = model._replace(scorer=model.scorer.rescaled(*scale), calibration=found, saved=False)
            self.threshold = found.threshold
        return self

    # -- state --------------------------------------------------------------------------------------------------------------

    @property
    def _bundle(self) -> Bundle | None:
        return None if self._model is None else self._model.bundle

    @property
    def calibration(self) -> Calibration | None:
        """How the threshold was calibrated; None where it was not, or where something was learned or changed since."""
        found = None if self._model is None else self._model.calibration
        return found if found is not None and found.threshold == self._threshold else None

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
        if not (_is_number(value) and 0.0 <= value <= 1.0):
            raise ConfigurationError(f"threshold={value!r}: a probability from 0 to 1")
        self._threshold = float(value)

    @property
    def window(self) -> int:
        """Tokens of a judging window. May load the encoder."""
        return self._window if self._window is not None else self._encoder.window

    @property
    def bundle_id(self) -> str | None:
        """Name and hash of the bundle this guard was loaded from or saved to; None after a change that was not saved."""
        return None if self._bundle is None or not self._known().saved else self._bundle.bundle_id

    @property
    def classifier(self) -> PrototypeClassifier:
        """The fitted classifier with its statistics.

        Raises:
            NotFittedError: there is none.
            BundleError: the guard was saved without statistics.
        """
        return self._trainable()

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
        """
        scorer, bundle, _, saved = self._known()
        known = bundle.manifest.encoder.layers if bundle is not None else self._encoder.layers
        return Policy(
            scorer=scorer,
            layers=tuple(known[position] for position in scorer.positions),
            threshold=self.threshold,
            target=self.target,
            mode=self.mode,
            on_error=self.on_error,
            bundle_id=None if bundle is None or not saved else bundle.bundle_id,
        )

    # -- how: judging -------------------------------------------------------------------------------------------------------

    def _run(self, conversations: Sequence[ConversationLike]) -> list[Verdict]:
        self._prepare()
        if self.timeout is None:
            return self._settled(self._judge_inputs(conversations))
        results: list[Verdict | MlpmGuardError] = []
        cancelled = Cancellation()
        failure: list[BaseException] = []

        def work() -> None:
            try:
                for start in range(0, len(conversations), _TIMED_SLICE):
                    if cancelled.is_set():
                        return
                    results.extend(self._judge_inputs(conversations[start : start + _TIMED_SLICE], cancelled))
            except BaseException as error:  # noqa: BLE001  (handed to the caller's thread)
                failure.append(error)

        thread = threading.Thread(target=work, name="mlpm-guard-check", daemon=False)
        thread.start()
        thread.join(self.timeout)
        cancelled.set()
        if failure:
            raise failure[0]
        done = list(results)
        return self._settled([*done, *(self._late() for _ in conversations[len(done) :])])

    async def _arun(self, conversations: Sequence[ConversationLike]) -> list[Verdict]:
        if not self._is_ready():
            await asyncio.to_thread(self._prepare)
        submitted = [self._batcher.submit(each, len(each) if isinstance(each, str) else 1024) for each in conversations]
        futures = [asyncio.wrap_future(each) for each in submitted]
        try:
            if futures:
                await asyncio.wait(futures, timeout=self.timeout)
            return self._settled([await future if future.done() else self._late() for future in futures])
        finally:
            for future, running in zip(futures, submitted, strict=True):
                if not future.cancel() and not future.cancelled():
                    future.exception()  # an error that nobody is going to read is marked as seen
                elif not running.done():
                    self._batcher.abandon(running)

    def _late(self) -> Verdict | MlpmGuardError:
        return self.policy().failed(GuardTimeoutError(f"no verdict within {self.timeout} s"))

    def _settled(self, results: Iterable[Verdict | MlpmGuardError]) -> list[Verdict]:
        verdicts = []
        for result in results:
            if isinstance(result, MlpmGuardError):
                raise result
            verdicts.append(result)
        return verdicts

    def _judge_inputs(
        self, inputs: Sequence[ConversationLike], cancelled: threading.Event | None = None
    ) -> list[Verdict | MlpmGuardError]:
        """Verdicts, or with `on_error="raise"` errors, in order."""
        results: list[Verdict | MlpmGuardError] = []
        for start in range(0, len(inputs), _SLICE):
            results += self._judge_slice(inputs[start : start + _SLICE], cancelled or threading.Event())
        return results

    def _judge_slice(self, inputs: Sequence[ConversationLike], cancelled: threading.Event) -> list[Verdict | MlpmGuardError]:
        policy = self.policy()
        results: list[Verdict | MlpmGuardError | None] = []
        parsed: list[Conversation] = []
        for value in inputs:
            try:
                conversation = Conversation.parse(value, target=self.target)
                if conversation.characters > self.max_chars:
                    raise InputTooLongError(f"{conversation.characters} characters; this guard judges up to {self.max_chars}")
            except InputError as error:
                results.append(policy.failed(error))
            else:
                results.append(None)
                parsed.append(conversation)
        judged = iter(zip(parsed, self._evidence(policy, parsed, cancelled), strict=True))
        return [result if result is not None else policy.settle(*next(judged)) for result in results]

    def _evidence(
        self, policy: Policy, conversations: Sequence[Conversation], cancelled: threading.Event
    ) -> Sequence[Evidence | MlpmGuardError]:
        return Judge(self._encoder, policy.scorer, policy.layers, self._reading(), cancelled).judge(conversations)

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

    def _known(self) -> _Model:
        if self._model is None:
            raise NotFittedError("this guard knows no prototypes yet: call fit(prompts, labels), or Guard.from_pretrained()")
        return self._model

    def _reading(self) -> Reading:
        return Reading(self.target, self.window, self._normalise, self._fragment_margin)

    # -- how: fitting -------------------------------------------------------------------------------------------------------

    def _learn(
        self,
        classifier: PrototypeClassifier,
        prompts: Iterable[ConversationLike],
        labels: Iterable[Label],
        progress: bool | None,
    ) -> None:
        from mlpm_guard.training import examples

        if self._bundle is not None:
            self.load()
        for states, marks, keys in examples(prompts, labels, self._encoder, self._reading(), progress=progress):
            classifier.update(states, marks, keys)

    def _adopt(self, classifier: PrototypeClassifier) -> None:
        with self._lock:
            if self.calibration is not None:
                _log.warning("the guard has learned something else and is no longer calibrated: call calibrate again")
            self._classifier = classifier
            self._model = _Model(classifier.scorer_, None)

    def _copy_of_trainable(self) -> PrototypeClassifier:
        return copy.deepcopy(self._trainable())

    def _trainable(self) -> PrototypeClassifier:
        from mlpm_guard.prototypes.classifier import PrototypeClassifier
        from mlpm_guard.prototypes.statistics import PrototypeStatistics

        with self._lock:
            self._fitted()
            if self._classifier is None:
                assert self._bundle is not None
                shape = self._bundle.manifest.classifier
                classifier = PrototypeClassifier(C=shape.C, sample_size=shape.sample_size, folds=shape.folds)
                classifier.statistics_ = PrototypeStatistics.from_tensors(
                    self._bundle.statistics(),
                    layers=shape.layers,
                    dim=shape.dim,
                    sample_size=shape.sample_size,
                )
                self._classifier = classifier
            return self._classifier


def _many(conversations: Iterable[ConversationLike]) -> list[ConversationLike]:
    from mlpm_guard.errors import InvalidConversationError

    if isinstance(conversations, (str, bytes, Conversation, Mapping)):
        raise InvalidConversationError("a batch is a list of conversations; this is one: use check, or put it in a list")
    if not isinstance(conversations, Iterable):
        raise InvalidConversationError(f"a batch is a list of conversations, not {type(conversations).__name__}")
    found = list(conversations)
    if found and all(isinstance(each, Mapping) for each in found):
        raise InvalidConversationError(
            "a batch is a list of conversations; this is a list of messages: use check, or [messages]"
        )
    return found


def _choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool) and bool(np.isfinite(value))
