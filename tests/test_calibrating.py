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
