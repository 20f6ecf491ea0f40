import copy
import logging

import numpy as np
import pytest

from mlpm_guard import Guard
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.testing import MockEncoder
from tests.conftest import SAFE, UNSAFE

BENIGN = [f"harmless question number {index}" for index in range(400)]
HARMFUL = [f"an unsafe question number {index}" for index in range(100)]


def test_a_benign_calibration_sets_a_threshold_and_keeps_the_scores(mock_guard):
    before = [verdict.score for verdict in mock_guard.check_batch(BENIGN)]
    assert mock_guard.calibrate(BENIGN, max_fpr=0.02) is mock_guard
    after = mock_guard.check_batch(BENIGN)
    assert [verdict.score for verdict in after] == before
    calibration = mock_guard.calibration
    assert sum(verdict.flagged for verdict in after) == calibration.flagged
    assert (calibration.threshold, calibration.benign, calibration.unsafe) == (mock_guard.threshold, 400, 0)
    assert (calibration.max_fpr, calibration.confidence, calibration.scale) == (0.02, 0.95, 1.0)


def test_labelled_calibration_maps_the_log_odds_and_layers_still_add_up(mock_guard):
    labels = [0] * len(BENIGN) + [1] * len(HARMFUL)
    before = mock_guard.check_batch(BENIGN + HARMFUL)
    mock_guard.calibrate(BENIGN + HARMFUL, labels, objective="f1")
    found = mock_guard.calibration
    after = mock_guard.check_batch(BENIGN + HARMFUL)
    for one, two in zip(before, after, strict=True):
        assert two.log_odds == pytest.approx(found.scale * one.log_odds + found.offset)
        assert two.score == pytest.approx(1 / (1 + np.exp(-two.log_odds)))
        assert two.intercept + sum(layer.contribution for layer in two.layers) == pytest.approx(two.log_odds)
    assert found.calibration_error < 0.05
    agreement = np.mean([verdict.flagged == bool(label) for verdict, label in zip(after, labels, strict=True)])
    assert agreement > 0.95


def test_a_calibration_is_saved_and_comes_back(mock_guard, tmp_path):
    mock_guard.calibrate(BENIGN + HARMFUL, [0] * 400 + [1] * 100, max_fpr=0.05)
    assert mock_guard.bundle_id is None
    scores = [verdict.score for verdict in mock_guard.check_batch(HARMFUL)]
    again = Guard.from_pretrained(mock_guard.save_pretrained(tmp_path / "guard"), encoder=MockEncoder())
    assert again.calibration == mock_guard.calibration
    assert again.threshold == mock_guard.threshold
    assert [verdict.score for verdict in again.check_batch(HARMFUL)] == pytest.approx(scores)


def test_a_loaded_guard_can_be_calibrated_and_still_learn(mock_guard, tmp_path):
    path = mock_guard.save_pretrained(tmp_path / "guard")
    loaded = Guard.from_pretrained(path, encoder=MockEncoder()).calibrate(BENIGN, max_fpr=0.05)
    assert loaded.bundle_id is None
    assert loaded.check("x").bundle_id is None
    loaded.partial_fit(["one more unsafe thing"], [1])
    assert loaded.calibration is None


@pytest.mark.parametrize("change", ["partial_fit", "forget", "fit", "threshold"])
def test_whatever_changes_the_guard_ends_the_calibration_and_says_so(mock_guard, change, caplog):
    mock_guard.calibrate(BENIGN, max_fpr=0.05)
    assert mock_guard.calibration is not None
    with caplog.at_level(logging.WARNING, "mlpm_guard"):
        if change == "threshold":
            mock_guard.threshold = 0.123
        elif change == "fit":
            mock_guard.fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
        else:
            getattr(mock_guard, change)(UNSAFE[:1], [1])
    assert mock_guard.calibration is None
    if change != "threshold":
        assert "no longer calibrated" in caplog.text


def mapped(guard, every=4):
    """Calibrated on prompts of which few that look unsafe are, so that its log-odds are mapped by much."""
    labels = [0] * len(BENIGN) + [int(index % every == 0) for index in range(100)]
    guard.calibrate(BENIGN + HARMFUL, labels, objective="recall@fpr=0.2")
    assert guard.calibration.offset < -0.3
    return guard


@pytest.mark.parametrize("keep_layers", [False, True])
def test_what_is_learned_after_a_labelled_calibration_leaves_the_threshold_where_it_was(mock_guard, keep_layers):
    plain = copy.copy(mock_guard)
    found, threshold = mapped(mock_guard).calibration, mock_guard.threshold
    for guard in (plain, mock_guard):
        guard.partial_fit(HARMFUL[:3], [1] * 3, keep_layers=keep_layers, progress=False)
        guard.forget(HARMFUL[:1], [1], keep_layers=keep_layers)
    assert mock_guard.calibration is None
    assert mock_guard.threshold == threshold
    # The decision is the one that the threshold stood for before the log-odds were mapped.
    plain.threshold = 1 / (1 + np.exp(-(np.log(threshold / (1 - threshold)) - found.offset) / found.scale))
    texts = [*BENIGN, *HARMFUL, *SAFE, *UNSAFE]
    for one, two in zip(plain.check_batch(texts), mock_guard.check_batch(texts), strict=True):
        assert two.log_odds == pytest.approx(found.scale * one.log_odds + found.offset, abs=1e-6)
        assert two.flagged == one.flagged


def test_maps_of_several_calibrations_add_up_and_are_saved(mock_guard, tmp_path):
    texts = HARMFUL[:20]
    plain = copy.copy(mock_guard)
    maps = [mapped(mock_guard).calibration, mapped(mock_guard, 12).calibration]
    mock_guard.partial_fit(HARMFUL[:3], [1] * 3, keep_layers=True, progress=False)
    saved = mock_guard.save_pretrained(tmp_path / "guard")
    again = Guard.from_pretrained(saved, encoder=MockEncoder())
    assert again.calibration is None
    for guard in (plain, again):
        guard.partial_fit(HARMFUL[:6], [1] * 6, progress=False)
    plain.partial_fit(HARMFUL[:3], [1] * 3, progress=False)
    for one, two in zip(plain.check_batch(texts), again.check_batch(texts), strict=True):
        expected = one.log_odds
        for each in maps:
            expected = each.scale * expected + each.offset
        assert two.log_odds == pytest.approx(expected, abs=1e-6)


def test_a_fit_from_scratch_undoes_the_map_and_takes_the_threshold_back(mock_guard):
    texts = [*BENIGN, *HARMFUL]
    mapped(mock_guard)
    before = mock_guard.check_batch(texts)
    mock_guard.fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    fresh = Guard(MockEncoder()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False).check_batch(texts)
    after = mock_guard.check_batch(texts)
    assert [verdict.score for verdict in after] == [verdict.score for verdict in fresh]
    assert [verdict.flagged for verdict in after] == [verdict.flagged for verdict in before]
    assert after[0].threshold != before[0].threshold


def test_a_threshold_that_is_set_away_and_back_does_not_bring_the_calibration_back(mock_guard, tmp_path):
    threshold = mock_guard.calibrate(BENIGN, max_fpr=0.05).threshold
    mock_guard.threshold = threshold
    assert mock_guard.calibration is not None
    mock_guard.threshold = 0.123
    mock_guard.threshold = threshold
    assert mock_guard.calibration is None
    assert copy.copy(mock_guard).calibration is None
    assert mock_guard.calibrate(BENIGN, max_fpr=0.05).calibration is not None
    saved = mock_guard.save_pretrained(tmp_path / "guard")
    loaded = Guard.from_pretrained(saved, encoder=MockEncoder(), threshold=0.123)
    loaded.threshold = threshold
    assert loaded.calibration is None


# -- prompts that repeat others -----------------------------------------------------------------------------------------------


def test_copies_of_the_prompts_promise_nothing_more(mock_guard):
    once = copy.copy(mock_guard).calibrate(BENIGN, max_fpr=0.05)
    thrice = mock_guard.calibrate([*BENIGN, *BENIGN, *(f"  {text.upper()} " for text in BENIGN)], max_fpr=0.05)
    assert thrice.threshold >= once.threshold
    assert (thrice.calibration.benign, thrice.calibration.repeated) == (1200, 800)
    assert once.calibration.repeated == 0


def test_a_prompt_that_traffic_repeats_counts_as_often_as_it_does(mock_guard):
    scores = {text: verdict.score for text, verdict in zip(BENIGN, mock_guard.check_batch(BENIGN), strict=True)}
    frequent = max(scores, key=scores.__getitem__)
    once = copy.copy(mock_guard).calibrate(BENIGN, max_fpr=0.05)
    found = mock_guard.calibrate([*BENIGN, *[frequent] * 100], max_fpr=0.05)
    # A quarter of such traffic is that prompt, so that it must not be flagged, whatever it scores.
    assert not mock_guard.check(frequent).flagged
    assert once.check(frequent).flagged
    assert found.calibration.repeated == 100


def test_too_few_different_prompts_are_refused_however_often_they_are_there(mock_guard):
    with pytest.raises(DataError, match="300 benign prompts, of which only 150 are different; at least 299 different ones"):
        mock_guard.calibrate(BENIGN[:150] * 2)
    with pytest.raises(DataError, match="30 benign prompts; at least 299 are needed"):
        mock_guard.calibrate(BENIGN[:15] * 2)
    assert mock_guard.calibration is None


@pytest.mark.parametrize(("copies", "warned"), [(20, False), (100, True)])
def test_many_repeats_are_warned_of(mock_guard, copies, warned, caplog):
    with caplog.at_level(logging.WARNING, "mlpm_guard"):
        mock_guard.calibrate([*BENIGN, *BENIGN[:copies]], max_fpr=0.05)
    assert (f"{copies} of {400 + copies} benign calibration prompts repeat others" in caplog.text) == warned
    assert "harmless question" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"prompts": BENIGN[:50]}, DataError, "at least 299 are needed"),
        ({"prompts": BENIGN, "objective": "f1"}, ConfigurationError, "labels"),
        ({"prompts": BENIGN, "labels": [0] * 400, "objective": "f1"}, DataError, "both"),
        ({"prompts": BENIGN, "max_fpr": 2.0}, ConfigurationError, "max_fpr"),
        ({"prompts": "one text"}, DataError, "not str"),
        ({"prompts": [*BENIGN, ""]}, DataError, "row 400 cannot be judged"),
        ({"prompts": BENIGN, "labels": [0, 1]}, DataError, "labels"),
        ({"prompts": BENIGN[:3], "labels": [0, 1, "maybe"]}, DataError, "row 2"),
    ],
)
def test_bad_calibrations_are_refused_and_change_nothing(mock_guard, arguments, error, says):
    threshold, score = mock_guard.threshold, mock_guard.check("x").score
    with pytest.raises(error, match=says):
        mock_guard.calibrate(**arguments)
    assert (mock_guard.threshold, mock_guard.check("x").score, mock_guard.calibration) == (threshold, score, None)
