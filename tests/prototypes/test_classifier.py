"""The classifier: learning, unlearning, scoring, and scikit-learn's manners."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import sklearn.exceptions
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_data import close, make, reference_discriminant
from sklearn.base import clone, is_classifier
from sklearn.utils.validation import check_is_fitted

from mlpm_guard.errors import ConfigurationError, DataError, NonFiniteError, NotFittedError, UnknownPromptError
from mlpm_guard.prototypes.classifier import PrototypeClassifier, content_keys, state_keys

X, Y = make(60, 45)
KEYS = np.random.default_rng(5).permutation(1000)[: len(Y)].astype(np.uint64)
SIZES = pytest.mark.parametrize("sample_size", [512, 20], ids=["rows-kept", "rows-summed"])
LEARNED = ("coef_", "biases_", "layer_weights_", "intercept_")


def equal(one: PrototypeClassifier, two: PrototypeClassifier, names: tuple[str, ...] = LEARNED) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in names)


def near(one: PrototypeClassifier, two: PrototypeClassifier, tolerance: float = 1e-6, names: tuple[str, ...] = LEARNED) -> bool:
    return all(close(getattr(one, name), getattr(two, name), tolerance) for name in names)


# -- learning -----------------------------------------------------------------------------------------------------------------


@SIZES
def test_a_fit_holds_the_discriminants_of_the_formulas(sample_size: int) -> None:
    classifier = PrototypeClassifier(sample_size=sample_size).fit(X, Y)
    weights, biases = reference_discriminant(X, Y)
    assert close(classifier.coef_, weights, 1e-8)
    assert close(classifier.biases_, biases, 1e-8)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(len(Y))))
def test_the_order_of_prompts_does_not_change_a_single_bit(order: list[int]) -> None:
    assert equal(PrototypeClassifier().fit(X[order], Y[order]), PrototypeClassifier().fit(X, Y))


@SIZES
@pytest.mark.parametrize("chunk", [1, 17, 60])
def test_partial_fit_in_chunks_equals_one_fit(chunk: int, sample_size: int) -> None:
    streamed = PrototypeClassifier(sample_size=sample_size)
    for start in range(0, len(Y), chunk):
        streamed.partial_fit(X[start : start + chunk], Y[start : start + chunk])
    assert near(streamed, PrototypeClassifier(sample_size=sample_size).fit(X, Y))


@SIZES
def test_merging_shards_in_any_order_equals_fitting_on_all(sample_size: int) -> None:
    shards = [slice(0, 10), slice(10, 70), slice(70, 105)]
    whole = PrototypeClassifier(sample_size=sample_size).fit(X, Y)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged = PrototypeClassifier(sample_size=sample_size)
        for index in order:
            merged.merge(PrototypeClassifier(sample_size=sample_size).partial_fit(X[shards[index]], Y[shards[index]]))
        assert near(merged, whole)


@SIZES
def test_shards_of_one_class_each_can_be_merged(sample_size: int) -> None:
    parts = [PrototypeClassifier(sample_size=sample_size).partial_fit(X[label == Y], Y[label == Y]) for label in (0, 1)]
    assert near(parts[0].merge(parts[1]), PrototypeClassifier(sample_size=sample_size).fit(X, Y))


@SIZES
def test_forgetting_what_was_learned_last_gives_the_fit_before(sample_size: int) -> None:
    extra, labels = make(8, 6, seed=9)
    before = PrototypeClassifier(sample_size=sample_size).fit(X, Y, KEYS)
    classifier = copy.deepcopy(before)
    ids = np.arange(5000, 5014)
    classifier.partial_fit(extra, labels, ids)
    assert not near(classifier, before)
    classifier.forget(extra, labels, ids)
    # The new keys are the largest, so that they were never in a sample.
    assert near(classifier, before)


def test_fitting_again_forgets_what_came_before() -> None:
    other, labels = make(30, 30, layers=2, dim=4, seed=3)
    classifier = PrototypeClassifier().fit(X, Y)
    assert equal(classifier.fit(other, labels), PrototypeClassifier().fit(other, labels))


def test_without_keys_prompts_are_known_by_their_states() -> None:
    assert equal(PrototypeClassifier().fit(X, Y), PrototypeClassifier().fit(X, Y, state_keys(X)))
    classifier = PrototypeClassifier().fit(np.concatenate([X, X[:3]]), np.concatenate([Y, Y[:3]]))
    assert near(classifier.forget(X[:3], Y[:3]), PrototypeClassifier().fit(X, Y))


def test_keys_are_equal_for_equal_contents_only() -> None:
    keys = content_keys([b"a", b"b", b"a", b""])
    assert keys.dtype == np.uint64
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3
    assert len(set(state_keys(X).tolist())) == len(X)
    assert np.array_equal(state_keys(X.astype(np.float64)), state_keys(X))


def test_forgetting_the_unknown_names_their_positions_and_changes_nothing() -> None:
    classifier = PrototypeClassifier().fit(X[:90], Y[:90])
    before = copy.deepcopy(classifier)
    with pytest.raises(UnknownPromptError) as caught:
        classifier.forget(X[[5, 100, 7]], Y[[5, 100, 7]])
    assert caught.value.indices == (1,)
    assert equal(classifier, before)
    assert equal(classifier.refit(), before)


def test_a_classifier_that_learned_nothing_knows_no_prompt_and_can_still_learn_other_shapes() -> None:
    classifier = PrototypeClassifier()
    with pytest.raises(UnknownPromptError):
        classifier.forget(X[:2, :1], Y[:2])
    assert equal(classifier.partial_fit(X, Y), PrototypeClassifier().fit(X, Y))


def test_unknown_prompts_are_named_even_where_too_few_would_be_left() -> None:
    few = np.concatenate([np.flatnonzero(Y == 0)[:3], np.flatnonzero(Y == 1)[:3]])
    classifier = PrototypeClassifier().fit(X[few], Y[few])
    strangers = np.flatnonzero(Y == 0)[10:12]
    with pytest.raises(UnknownPromptError) as caught:
        classifier.forget(X[strangers], Y[strangers])
    assert caught.value.indices == (0, 1)


def test_two_prompts_of_a_class_must_stay() -> None:
    few = np.concatenate([np.flatnonzero(Y == 0)[:3], np.flatnonzero(Y == 1)[:3]])
    classifier = PrototypeClassifier().fit(X[few], Y[few])
    before = copy.deepcopy(classifier)
    with pytest.raises(DataError, match="would leave 1 prompts of class 0"):
        classifier.forget(X[few[:2]], Y[few[:2]])
    assert equal(classifier.refit(), before)
    classifier.forget(X[few[:1]], Y[few[:1]])


def test_until_both_classes_have_two_prompts_a_classifier_only_collects() -> None:
    safe, unsafe = np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)
    classifier = PrototypeClassifier().partial_fit(X[safe], Y[safe]).partial_fit(X[unsafe[:1]], Y[unsafe[:1]])
    with pytest.raises(NotFittedError):
        classifier.predict(X)
    classifier.partial_fit(X[unsafe[1:]], Y[unsafe[1:]])
    assert near(classifier, PrototypeClassifier().fit(X, Y))


# -- the aggregation of layers ------------------------------------------------------------------------------------------------


def one_informative_layer(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = np.arange(600) % 2
    states = rng.normal(size=(600, 5, 16))
    states[:, 2, 1] += 3.0 * labels
    return states.astype(np.float32), labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sample_size", [512, 100])
def test_a_sparse_fit_keeps_the_informative_layer_and_drops_noise(seed: int, sample_size: int) -> None:
    states, labels = one_informative_layer(seed)
    classifier = PrototypeClassifier(C=0.5, sample_size=sample_size).fit(states[:500], labels[:500])
    assert np.flatnonzero(classifier.layer_weights_).tolist() == [2]
    assert classifier.scorer_.positions.tolist() == [2]
    assert (classifier.predict(states[500:]) == labels[500:]).mean() > 0.85


def test_a_stronger_penalty_keeps_no_more_layers() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    states = rng.normal(size=(600, 6, 16))
    states[:, :3, 0] += np.array([3.0, 1.0, 0.7]) * labels[:, None]
    kept = [np.count_nonzero(PrototypeClassifier(C=C).fit(states, labels).layer_weights_) for C in (0.02, 0.05, 0.5, 50.0)]
    assert kept == sorted(kept)
    assert kept[0] == 1
    assert kept[-1] >= 3


def test_layers_that_scoring_does_not_need_do_not_change_scores() -> None:
    states, labels = one_informative_layer(0)
    classifier = PrototypeClassifier(C=0.5).fit(states, labels)
    changed = states.copy()
    changed[:, [0, 1, 3, 4]] = 1e3
    assert np.array_equal(classifier.decision_function(changed), classifier.decision_function(states))


def test_where_no_layer_survives_the_penalty_all_count_alike() -> None:
    classifier = PrototypeClassifier(C=1e-9).fit(X, Y)
    assert len(set(classifier.layer_weights_.tolist())) == 1
    assert classifier.layer_weights_[0] > 0
    assert (classifier.predict(X) == Y).mean() > 0.7


def test_both_classes_count_the_same_however_many_prompts_they_have() -> None:
    states, labels = make(400, 400, shift=0.5)
    few = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:60]])
    classifier = PrototypeClassifier().fit(states[few], labels[few])
    flagged = classifier.predict(states)
    rates = flagged[labels == 1].mean(), 1 - flagged[labels == 0].mean()
    assert abs(rates[0] - rates[1]) < 0.2
    assert min(rates) > 0.5


@SIZES
def test_layer_contributions_and_intercept_add_up_to_the_score(sample_size: int) -> None:
    classifier = PrototypeClassifier(sample_size=sample_size).fit(X, Y)
    scorer = classifier.scorer_
    contributions = np.zeros((len(X), X.shape[1]))
    for place, layer in enumerate(scorer.positions):
        log_odds = X[:, layer].astype(np.float64) @ scorer.weights[place] + scorer.biases[place]
        contributions[:, layer] = log_odds * classifier.layer_weights_[layer]
    assert close(contributions.sum(axis=1) + classifier.intercept_, classifier.decision_function(X))


@SIZES
def test_a_layer_is_scored_in_the_direction_of_its_discriminant(sample_size: int) -> None:
    classifier = PrototypeClassifier(sample_size=sample_size).fit(X, Y)
    scorer = classifier.scorer_
    assert scorer.positions.tolist() == np.flatnonzero(classifier.layer_weights_).tolist()
    assert np.array_equal(scorer.layer_weights, classifier.layer_weights_[scorer.positions])
    for place, layer in enumerate(scorer.positions):
        one, two = scorer.weights[place], classifier.coef_[layer]
        assert close(one / np.linalg.norm(one), two / np.linalg.norm(two), 1e-12)


def test_folds_change_the_aggregation_and_not_the_discriminants() -> None:
    with_folds, without = PrototypeClassifier(folds=5).fit(X, Y), PrototypeClassifier(folds=0).fit(X, Y)
    assert equal(with_folds, without, ("coef_", "biases_"))
    assert not equal(with_folds, without, ("layer_weights_",))
    assert equal(PrototypeClassifier(folds=1).fit(X, Y), without)


def test_folds_see_less_than_the_data_that_they_score() -> None:
    # Random labels on more dimensions than prompts: only scores that saw the prompt look right.
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(60, 2, 200)).astype(np.float32), np.arange(60) % 2
    own, folded = PrototypeClassifier(folds=0).fit(states, labels), PrototypeClassifier(folds=5).fit(states, labels)
    assert np.abs(folded.decision_function(states)).mean() < np.abs(own.decision_function(states)).mean()


# -- scoring ------------------------------------------------------------------------------------------------------------------


def test_probabilities_sum_to_one_and_follow_the_log_odds() -> None:
    classifier = PrototypeClassifier().fit(X, Y)
    log_odds, probabilities = classifier.decision_function(X), classifier.predict_proba(X)
    assert probabilities.shape == (len(X), 2)
    assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-15)
    assert np.allclose(np.log(probabilities[:, 1] / probabilities[:, 0]), log_odds)
    assert np.array_equal(classifier.predict(X), (probabilities[:, 1] >= 0.5).astype(int))
    assert classifier.score(X, Y) == (classifier.predict(X) == Y).mean() > 0.7


def test_the_score_of_a_prompt_does_not_depend_on_the_others() -> None:
    classifier = PrototypeClassifier().fit(X, Y)
    alone = np.concatenate([classifier.decision_function(X[i : i + 1]) for i in range(len(X))])
    assert close(alone, classifier.decision_function(X), 1e-12)
    assert classifier.decision_function(X[:0]).shape == (0,)


def test_extreme_states_give_probabilities_and_no_warning() -> None:
    classifier = PrototypeClassifier().fit(X, Y)
    with np.errstate(all="raise"):
        probabilities = classifier.predict_proba(np.concatenate([X, -X]) * 1e30)
    assert np.isfinite(probabilities).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@pytest.mark.parametrize("shape", [(3, 6), (2, 2, 6), (2, 3, 5), (2, 3, 6, 1)])
def test_scoring_states_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected \(n, 3, 6\)"):
        PrototypeClassifier().fit(X, Y).decision_function(np.zeros(shape))


# -- data that cannot be used -------------------------------------------------------------------------------------------------


def test_two_prompts_of_either_class_are_enough_and_one_is_not() -> None:
    safe, unsafe = np.flatnonzero(Y == 0), np.flatnonzero(Y == 1)
    for each in (1, 2):
        chosen = np.concatenate([safe[:each], unsafe[:2]])
        if each == 2:
            assert np.isfinite(PrototypeClassifier().fit(X[chosen], Y[chosen]).decision_function(X)).all()
        else:
            with pytest.raises(DataError, match="1 safe prompts"):
                PrototypeClassifier().fit(X[chosen], Y[chosen])
    with pytest.raises(DataError, match="0 unsafe prompts"):
        PrototypeClassifier().fit(X[safe], Y[safe])
    with pytest.raises(DataError, match="0 safe prompts"):
        PrototypeClassifier().fit(X[unsafe[:1]], Y[unsafe[:1]])


def test_fewer_prompts_than_dimensions_are_separated() -> None:
    states, labels = make(6, 5, dim=300, shift=0.5)
    assert PrototypeClassifier().fit(states, labels).score(states, labels) == 1.0


def test_constant_features_and_layers_do_no_harm() -> None:
    states = X.copy()
    states[:, 0] = 2.0
    states[:, 1, :3] = -7.0
    classifier = PrototypeClassifier().fit(states, Y)
    assert classifier.layer_weights_[0] == 0.0
    assert np.isfinite(classifier.decision_function(states)).all()


@pytest.mark.parametrize("states", [np.ones((20, 2, 3)), np.zeros((20, 2, 3))], ids=["ones", "zeros"])
def test_states_that_are_all_the_same_cannot_be_learned_from(states: Any) -> None:
    with pytest.raises(DataError, match="do not differ"):
        PrototypeClassifier().fit(states, np.arange(20) % 2)


def test_identical_prompts_in_both_classes_cannot_be_learned_from() -> None:
    with pytest.raises(DataError, match="do not differ"):
        PrototypeClassifier().fit(np.concatenate([X, X]), np.repeat([0, 1], len(X)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_not_finite_are_refused(value: float) -> None:
    bad = X.copy()
    bad[17, 0, 0] = value
    with pytest.raises(NonFiniteError, match="position 17"):
        PrototypeClassifier().fit(bad, Y)


@pytest.mark.parametrize(
    "states", [np.zeros((4, 6)), np.zeros(4), np.zeros((0, 3, 6)), np.zeros((4, 1, 3, 6))], ids=lambda a: str(a.shape)
)
def test_states_of_a_wrong_shape_are_refused(states: Any) -> None:
    with pytest.raises(DataError, match="states have shape"):
        PrototypeClassifier().fit(states, np.arange(len(states)) % 2)


@pytest.mark.parametrize(
    "labels",
    [
        Y[:-1],
        Y[:, None],
        Y + 1,
        Y * 2.5,
        np.array(["safe", "unsafe"])[Y],
        np.where(Y == 1, np.nan, 0.0),
        np.where(Y == 1, -1, 0),
    ],
    ids=["short", "column", "1-2", "2.5", "strings", "nan", "minus-one"],
)
def test_labels_that_are_not_zero_and_one_are_refused(labels: Any) -> None:
    with pytest.raises(DataError, match="labels"):
        PrototypeClassifier().fit(X, labels)


def test_keys_that_do_not_match_are_refused() -> None:
    classifier = PrototypeClassifier().fit(X, Y)
    for call in (classifier.partial_fit, classifier.forget):
        with pytest.raises(DataError, match="keys"):
            call(X, Y, KEYS[:-1])


@pytest.mark.parametrize(
    "labels", [Y.astype(bool), Y.astype(float), Y.tolist(), Y.astype(np.int8)], ids=["bool", "float", "list", "int8"]
)
def test_labels_may_be_of_any_type_that_means_zero_or_one(labels: Any) -> None:
    assert equal(PrototypeClassifier().fit(X, labels), PrototypeClassifier().fit(X, Y))


# -- scikit-learn's manners ---------------------------------------------------------------------------------------------------


def test_clone_copies_options_and_nothing_learned() -> None:
    classifier = PrototypeClassifier(C=0.5, sample_size=20, folds=3).fit(X, Y)
    other = clone(classifier)
    assert other.get_params() == classifier.get_params() == {"C": 0.5, "sample_size": 20, "folds": 3}
    assert not other.__sklearn_is_fitted__()
    assert equal(other.fit(X, Y), classifier)
    assert is_classifier(classifier)


def test_options_can_be_set_and_count_at_the_next_fit() -> None:
    classifier = PrototypeClassifier().set_params(C=0.5, folds=0)
    assert equal(classifier.fit(X, Y), PrototypeClassifier(C=0.5, folds=0).fit(X, Y))


def test_before_a_fit_nothing_learned_can_be_read() -> None:
    classifier = PrototypeClassifier()
    with pytest.raises(sklearn.exceptions.NotFittedError):
        check_is_fitted(classifier)
    for call in (classifier.predict, classifier.predict_proba, classifier.decision_function):
        with pytest.raises(NotFittedError, match="fit first"):
            call(X)
    for name in (*LEARNED, "scorer_"):
        assert not hasattr(classifier, name)
    check_is_fitted(classifier.fit(X, Y))
    assert all(hasattr(classifier, name) for name in LEARNED)
    assert classifier.classes_.tolist() == [0, 1]
    assert not hasattr(classifier.reset(), "coef_")


@pytest.mark.parametrize(
    "options",
    [
        {"C": 0},
        {"C": -1.0},
        {"C": float("nan")},
        {"C": "1"},
        {"sample_size": 1},
        {"sample_size": 10.0},
        {"folds": -1},
        {"folds": 2.5},
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_at_fit(options: dict[str, Any]) -> None:
    classifier = PrototypeClassifier(**options)
    for learn in (classifier.fit, classifier.partial_fit):
        with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
            learn(X, Y)


@SIZES
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
def test_a_copy_scores_the_same_and_learns_on_its_own(copied: Any, sample_size: int) -> None:
    classifier = PrototypeClassifier(sample_size=sample_size).fit(X[:80], Y[:80])
    other = copied(classifier)
    assert equal(other, classifier)
    scores = classifier.decision_function(X)
    other.partial_fit(X[80:], Y[80:])
    assert np.array_equal(classifier.decision_function(X), scores)
    assert near(other, PrototypeClassifier(sample_size=sample_size).fit(X, Y))


def test_scores_during_a_partial_fit_are_of_one_state_or_the_next() -> None:
    classifier = PrototypeClassifier().fit(X[:60], Y[:60])
    allowed = [PrototypeClassifier().fit(X[:end], Y[:end]).decision_function(X) for end in (60, 75, 90, 105)]
    seen: list[Any] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(classifier.decision_function(X))

    reader = threading.Thread(target=read)
    reader.start()
    for start in (60, 75, 90):
        classifier.partial_fit(X[start : start + 15], Y[start : start + 15])
    done.set()
    reader.join()
    assert all(any(close(scores, each) for each in allowed) for scores in seen)
    assert close(classifier.decision_function(X), allowed[-1])
