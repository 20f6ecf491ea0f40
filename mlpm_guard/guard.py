"""Guard: an encoder, a classifier and a policy. Judges, learns, is saved and loaded; sync and async."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mlpm_guard.category_policy import CategoryAction, CategoryPolicy, PolicyLike
from mlpm_guard.checking import Checker
from mlpm_guard.conversation import ConversationLike
from mlpm_guard.encoders.base import Encoder
from mlpm_guard.errors import BundleError, CategoryError, DataError
from mlpm_guard.fitting import Counted, classifier_of, refitted, relearned, unmapped
from mlpm_guard.lineage import Change
from mlpm_guard.model import Model
from mlpm_guard.policy import OnError
from mlpm_guard.prototypes.categories import Categories, deeper_half, require_name, same_name, with_added
from mlpm_guard.rules import Rules
from mlpm_guard.verdict import Mode

if TYPE_CHECKING:
    from mlpm_guard.bundle import Calibration
    from mlpm_guard.comparing import Diff
    from mlpm_guard.prototypes.classifier import PrototypeClassifier
    from mlpm_guard.training import Label

_log = logging.getLogger("mlpm_guard")


class Guard(Checker):
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
            sentences are raised themselves, and of those that blend in the more, the more there are. Nearly half of it is
            deducted from every window of a prompt that is longer than one. 0 judges every piece like a whole text.
        max_chars: longest conversation in characters; a longer one counts as an error.
        normalise: undo disguises (look-alike and invisible characters, leet, letters set apart, base64 and its like) and judge
            what the text says; beyond doubt, that alone.
        rules: phrases and expressions that decide before the model is asked, or None. May be set later.
        review: which verdicts are reviewed although they are not flagged, or None for none. May be set later.
        policy: what is done about categories, by name: "block", "review" or "allow", or a `CategoryPolicy`, which may also give
            a threshold. May be set later, as `category_policy`.

    Raises:
        ConfigurationError: an option has a bad value.
        CategoryError: `policy` gives a name that no category can have.
    """

    _classifier: PrototypeClassifier | None = None

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
        policy: PolicyLike | None = None,
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
            policy: instead of the one in the bundle, thresholds of added categories included. To change a part, set
                `category_policy` to a changed copy of it.

        Raises:
            BundleNotFoundError: there is no such bundle.
            BundleCorruptError: a file is missing, truncated or altered.
            BundleSchemaError: the format is not one that this version reads.
            BundleMismatchError: `encoder` is not the one that the guard was fitted on.
            CategoryError: `policy` names a category that the guard does not have.
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
            rules=None if manifest.rules is None else Rules.from_saved(manifest.rules),
            review=manifest.review,
            policy=bundle.category_policy() if policy is None else policy,
        )
        guard._model = Model(
            bundle.scorer,
            bundle.novelty,
            bundle,
            manifest.calibration,
            parent=bundle,
            categories=bundle.categories,
            log_odds_map=manifest.log_odds_map,
        )
        guard._set_by_hand = guard.threshold != manifest.threshold
        if policy is not None:
            guard.category_policy = policy
        guard._checked = False
        if encoder is not None:
            guard.load()
        return guard

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
        from mlpm_guard import saving

        with self._lock:
            self.load()
            model = self._known()._replace(calibration=self.calibration)
            classifier = self._trainable() if statistics or model.bundle is None else None
            settings = {
                "target": self.target,
                "threshold": self.threshold,
                "window": self.window,
                "fragment_margin": self._fragment_margin,
                "rules": None if self.rules is None else self.rules.saved().model_dump(exclude_defaults=True),
                "review": self.review,
                "policy": {name: asdict(each) for name, each in sorted(self._category_policy.items())},
                "log_odds_map": model.log_odds_map,
            }
            saved = saving.save(path, model, classifier, settings, encoder=self._encoder, statistics=statistics, notes=notes)
            self._model = model._replace(bundle=saved, parent=saved, changes=(), saved=True)
            return saved.path

    # -- fitting ------------------------------------------------------------------------------------------------------------

    def fit(
        self,
        prompts: Iterable[ConversationLike],
        labels: Iterable[Label],
        categories: Iterable[str | None] | None = None,
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
            categories: as many categories, or None where verdicts are to name none. None, or "other", for an unsafe prompt of
                an unknown one, and None for every safe prompt. A category needs five prompts. Categories that were added from
                examples are forgotten.
            C: inverse strength of the penalty on layer weights; smaller keeps fewer layers.
            sample_size: prompts per class that the aggregation of layers is fitted on.
            folds: folds of the out-of-fold layer scores; see `PrototypeClassifier`.
            progress: show a progress bar; None shows one in a terminal.

        Raises:
            DataError: a row cannot be used, a prompt is in two categories, or a class has fewer than two prompts. The guard
                stays what it was.
            ContradictoryLabelsError: a prompt is there with both labels.
        """
        from mlpm_guard.prototypes.classifier import PrototypeClassifier

        classifier = PrototypeClassifier(C=C, sample_size=sample_size, folds=folds).reset()
        self._learn(classifier, prompts, labels, categories, progress)
        classifier.refit()
        self._adopt(classifier, None)
        return self

    def partial_fit(
        self,
        prompts: Iterable[ConversationLike],
        labels: Iterable[Label],
        categories: Iterable[str | None] | None = None,
        *,
        keep_layers: bool = False,
        progress: bool | None = None,
    ) -> Self:
        """Learn from more labelled prompts, as if they had been there from the start. On an unfitted guard, the same as `fit`.

        Args:
            prompts: conversations; any iterable.
            labels: as many labels.
            categories: as many categories, or None; see `fit`. Categories that were added from examples stay what they are.
            keep_layers: leave the way in which layers are put together as it is. By default that is fitted anew, on the bounded
                sample of prompts that a guard keeps, which moves all scores a little. A saved guard keeps a smaller sample than
                it was fitted on: once loaded, it moves by what the new prompts change of a fit on that. For a few corrections,
                keep it.
            progress: show a progress bar; None shows one in a terminal.

        Raises:
            DataError: a row cannot be used. The guard stays what it was.
            CategoryError: a category was added from examples; remove that first. The guard stays what it was.
            BundleError: the guard was saved without statistics.
        """
        with self._lock:
            if self._model is None:
                return self.fit(prompts, labels, categories, progress=progress)
            classifier = self._copy_of_trainable()
            added = self._known().categories.added_names
            learned = self._learn(classifier, prompts, labels, categories, progress, added)
            self._refit(classifier, keep_layers)
            self._adopt(classifier, Change(kind="partial_fit", prompts=learned))
        return self

    def forget(
        self,
        prompts: Iterable[ConversationLike],
        labels: Iterable[Label],
        categories: Iterable[str | None] | None = None,
        *,
        keep_layers: bool = False,
    ) -> Self:
        """Unlearn labelled prompts: statistics and discriminants become what they were without them.

        Args:
            prompts: conversations that were learned.
            labels: the labels under which they were.
            categories: the categories in which they were; None finds out.
            keep_layers: as in `partial_fit`.

        Raises:
            UnknownPromptError: one was never learned under that label, or in that category. The guard stays what it was.
            DataError: a row cannot be used, or too few prompts would be left.
            BundleError: the guard was saved without statistics.
        """
        from mlpm_guard.training import examples

        with self._lock:
            classifier = self._copy_of_trainable()
            counted = Counted(labels)
            known = examples(
                prompts,
                counted.labels,
                self._encoder,
                self._reading(),
                progress=False,
                consistent=False,
                categories=categories,
            )
            chunks = list(known)
            if chunks:
                classifier.unlearn(
                    np.concatenate([chunk.states for chunk in chunks]),
                    [label for chunk in chunks for label in chunk.labels],
                    np.concatenate([chunk.keys for chunk in chunks]),
                    None if categories is None else [name for chunk in chunks for name in chunk.categories or ()],
                )
                self._refit(classifier, keep_layers)
                self._adopt(classifier, Change(kind="forget", prompts=counted.number))
        return self

    def add_category(
        self,
        name: str,
        examples: Iterable[ConversationLike],
        *,
        negatives: Iterable[ConversationLike] | None = None,
        threshold: float | None = None,
        action: CategoryAction = "block",
    ) -> Self:
        """Add a category of your own from a few examples. A verdict that reaches its threshold is flagged, whatever its score.

        Nothing that was learned changes: not the score, nor any other category. The examples are told from the bounded sample
        of training prompts that a guard keeps, and from the negatives; they are not learned as safe or unsafe prompts, and not
        kept. Takes well under a second once they are encoded.

        Args:
            name: a new one, 1 to 64 letters, digits, spaces or any of _ . : / + -. Case alone does not make it new.
            examples: 5 to 50 different conversations that belong to it; 20 are good. More do no harm. Blanks, case and Unicode
                forms do not make an example different.
            negatives: conversations that do not, such as harmless traffic on neighbouring topics; a hundred help.
            threshold: probability, in [0, 1], from which it flags; 0.5 by default. The probability assumes that one text in ten
                belongs to the category.
            action: what a gate then does: "block", "review", or "allow", which flags and lets through.

        Raises:
            CategoryError: the name is in use or cannot be used, or there are fewer than five different examples.
            ContradictoryLabelsError: a prompt is an example and a negative.
            ConfigurationError: threshold or action has a bad value.
            DataError: an example cannot be used or is longer than `max_chars`, or all of them look like everything else.
            NotFittedError: the guard was neither fitted nor loaded.
            BundleError: the guard was saved without statistics.
        """
        from mlpm_guard.category_learning import THRESHOLD, read_examples
        from mlpm_guard.prototypes.few_shot import add_from_statistics

        require_name(name)
        policy = CategoryPolicy(action, THRESHOLD if threshold is None else threshold)
        with self._lock:
            model = self._known()
            model.categories.require_free(name)
            statistics = self._trainable().statistics_
            self.load()
            number, states, others = read_examples(examples, negatives, self._encoder, self._reading(), self.max_chars)
            block = add_from_statistics(name, states, others, statistics, model.scorer.positions)
            self._recategorise(Change(kind="add_category", prompts=number, name=name), model.categories.adding(block))
            self._category_policy = {**self._category_policy, name: policy}
        return self

    def assign_categories(
        self,
        prompts: Iterable[ConversationLike],
        categories: Iterable[str | None],
        *,
        progress: bool | None = None,
    ) -> Self:
        """Say which categories unsafe prompts belong to that were learned without any.

        For a guard that was fitted without categories. Scores stay what they are, to the last bit.

        Args:
            prompts: conversations that were learned as unsafe; not all of them are needed.
            categories: as many categories; None, or "other", for an unknown one.
            progress: show a progress bar; None shows one in a terminal.

        Raises:
            UnknownPromptError: one was never learned as an unsafe prompt. The guard stays what it was.
            CategoryError: one has a category already, or a category was added from examples. The guard stays what it was.
            DataError: a row cannot be used, or a prompt is in two categories.
            BundleError: the guard was saved without statistics.
        """
        from mlpm_guard.prototypes.category_fitting import fit_categories
        from mlpm_guard.training import examples

        with self._lock:
            model = self._known()
            classifier = self._copy_of_trainable()
            statistics = classifier.statistics_
            self.load()
            rows = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, (str, bytes)) else prompts
            labels = [1] * len(rows) if isinstance(rows, list) else [1]
            for chunk in examples(rows, labels, self._encoder, self._reading(), progress=progress, categories=categories):
                statistics.assign(chunk.states, chunk.categories or [], chunk.keys)
            fitted = fit_categories(statistics, deeper_half(model.scorer.positions))
            after = with_added(fitted, model.categories.added)
            self._classifier = classifier
            self._recategorise(Change(kind="assign_categories", prompts=len(labels)), after)
        return self

    def remove_category(self, name: str) -> Self:
        """Forget a category and what was to be done about it; everything else stays what it is.

        The prompts of a fitted one stay learned, as unsafe prompts without a category.

        Raises:
            CategoryError: there is no such category.
            NotFittedError: the guard was neither fitted nor loaded.
        """
        with self._lock:
            model = self._known()
            left = model.categories.without(name)
            if name not in model.categories.added_names:
                try:
                    classifier = self._copy_of_trainable()
                except BundleError:
                    pass  # without statistics it cannot come back by learning more either
                else:
                    classifier.statistics_.categories.sums.pop(name, None)
                    self._classifier = classifier
            self._category_policy = {each: policy for each, policy in self._category_policy.items() if each != name}
            self._recategorise(Change(kind="remove_category", name=name), left)
        return self

    def measure_novelty(self) -> Self:
        """Measure what is usual among the training prompts, for a guard that was saved before novelty was measured.

        Needs the statistics only: nothing is encoded, and scores stay what they are, to the last bit. Fitting measures it, and
        so do `partial_fit` and `forget`.

        Raises:
            NotFittedError: the guard was neither fitted nor loaded.
            BundleError: the guard was saved without statistics.
            DataError: a class has too few prompts for a percentile to mean anything.
        """
        from mlpm_guard.prototypes.covariance import FEWEST, fit_novelty

        with self._lock:
            model = self._known()
            novelty = fit_novelty(self._trainable().statistics_, model.scorer.positions)
            if novelty is None:
                raise DataError(f"novelty needs at least {FEWEST} different prompts of each class")
            self._model = model.changed(Change(kind="novelty"), novelty=novelty)
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
        or forgetting anything afterwards, or setting the threshold by hand, ends the calibration; the map stays, so that the
        threshold means what it meant. Rules and thresholds of categories are left aside: it is the model's scores that are
        calibrated, and what those flag comes on top.

        The promise rests on prompts drawn independently, and a file does not tell whether one that repeats another (but for
        blanks, case and Unicode forms) was drawn again, as greetings are, or copied. So benign prompts are counted both ways,
        each once and each as often as it is there, and the stricter threshold holds; as many different ones are needed as are
        needed at all. More than a tenth of repeats is also logged as a warning: they are rarely a plain sample of traffic.

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
            change = Change(kind="calibrate", prompts=found.benign + found.unsafe)
            self._model = model.calibrated(change, *scale, found)
            self._threshold, self._set_by_hand = found.threshold, False
        return self

    # -- comparing ----------------------------------------------------------------------------------------------------------

    def diff(self, other: Guard, prompts: Iterable[ConversationLike], labels: Iterable[Label] | None = None) -> Diff:
        """What changes from this guard to another on the same prompts, each judging at its own threshold. Holds no text.

        Args:
            other: a guard of the same target.
            prompts: conversations; any iterable.
            labels: as many labels, for the metrics of both and their change; None without.

        Returns:
            Which prompts flip, with both scores, and with labels how every metric moves, with bootstrap intervals.

        Raises:
            ConfigurationError: the guards judge different things, or `other` is no guard.
            DataError: there are no prompts, or bad labels.
            ContradictoryLabelsError: a prompt is there with both labels.
            MlpmGuardError: a guard itself cannot be used; see `check_batch`.
        """
        from mlpm_guard.comparing import diff

        return diff(self, other, prompts, labels)

    # -- state --------------------------------------------------------------------------------------------------------------

    @property
    def calibration(self) -> Calibration | None:
        """How the threshold was calibrated; None where it was not, or where something was learned or the threshold set since.

        A threshold that is set back to what it was stays set by hand: what else was set in between, nobody can tell.
        """
        return None if self._model is None or self._set_by_hand else self._model.calibration

    @property
    def classifier(self) -> PrototypeClassifier:
        """The fitted classifier with its statistics.

        Raises:
            NotFittedError: there is none.
            BundleError: the guard was saved without statistics.
        """
        return self._trainable()

    # -- how: fitting -------------------------------------------------------------------------------------------------------

    def _learn(
        self,
        classifier: PrototypeClassifier,
        prompts: Iterable[ConversationLike],
        labels: Iterable[Label],
        categories: Iterable[str | None] | None,
        progress: bool | None,
        added: Sequence[str] = (),
    ) -> int:
        """Collect prompts into a classifier; returns how many there were. Categories added from examples learn nothing more."""
        from mlpm_guard.training import examples

        if self._bundle is not None:
            self.load()
        counted = Counted(labels)
        chunks = examples(
            prompts,
            counted.labels,
            self._encoder,
            self._reading(),
            progress=progress,
            categories=categories,
            by_length=True,
        )
        for chunk in chunks:
            for name in added:
                if any(same_name(name, each) for each in {each for each in chunk.categories or () if each is not None}):
                    raise CategoryError(f"the category {name!r} was added from examples; remove it, then learn it from rows")
            classifier.update(chunk.states, chunk.labels, chunk.keys, chunk.categories)
        return counted.number

    def _refit(self, classifier: PrototypeClassifier, keep_layers: bool) -> None:
        refitted(classifier, self._known(), self._trainable().statistics_, keep_layers=keep_layers)

    def _recategorise(self, change: Change, categories: Categories) -> None:
        self._end_calibration()
        self._model = self._known().changed(change, categories=categories, calibration=None)

    def _end_calibration(self) -> None:
        if self.calibration is not None:
            _log.warning("the guard has learned something else and is no longer calibrated: call calibrate again")

    def _adopt(self, classifier: PrototypeClassifier, change: Change | None) -> None:
        """Judge with a classifier from now on, which came from the present one by a change, or from nothing."""
        with self._lock:
            before = self._model
            after = relearned(before, classifier, change)
            self._end_calibration()
            if before is not None and change is None:
                self._threshold = unmapped(self._threshold, before.log_odds_map)
            gone = set() if before is None else set(before.categories) - set(after.categories)
            if gone & self._category_policy.keys():
                _log.warning("categories are gone, and what was to be done about them: %s", ", ".join(sorted(gone)))
                self._category_policy = {name: each for name, each in self._category_policy.items() if name not in gone}
            self._classifier, self._model = classifier, after

    def _copy_of_trainable(self) -> PrototypeClassifier:
        return copy.deepcopy(self._trainable())

    def _trainable(self) -> PrototypeClassifier:
        with self._lock:
            self._fitted()
            if self._classifier is None:
                assert self._bundle is not None
                self._classifier = classifier_of(self._bundle)
            return self._classifier
