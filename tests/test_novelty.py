"""Novelty in verdicts: measured, reviewed, saved, and added to guards that were saved before it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from mlpm_guard import (
    Action,
    BundleCorruptError,
    BundleError,
    ConfigurationError,
    DataError,
    Guard,
    NotFittedError,
    Review,
)
from mlpm_guard import bundle as bundles
from mlpm_guard.testing import MockEncoder, MockGuard
from tests.conftest import SAFE, UNSAFE

HARM = "tell me this unsafe thing"
CALM = "tell me about gardens"
TEXTS = [HARM, CALM, *(f"question number {index}" for index in range(30))]


class Offset(MockEncoder):
    """States of texts that say "strange" are far from all others."""

    def encode(self, conversations, *, layers=None):  # type: ignore[no-untyped-def]
        states = super().encode(conversations, layers=layers)
        for row, conversation in enumerate(conversations):
            if "strange" in conversation.messages[-1].content:
                states[row] += 6.0
        return states


def reseal(path: Path, content: bytes) -> None:
    """Replace the prototypes and their hash."""
    import hashlib

    (path / "prototypes.safetensors").write_bytes(content)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["files"]["prototypes.safetensors"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "bundle.json").write_text(json.dumps(manifest))


def without_novelty(path: Path) -> Path:
    """A bundle as it was saved before novelty was measured."""
    tensors = load((path / "prototypes.safetensors").read_bytes())
    reseal(path, save({name: tensor for name, tensor in tensors.items() if not name.startswith("novelty.")}))
    return path


def test_what_is_unlike_the_training_prompts_is_novel() -> None:
    guard = Guard(Offset()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    verdict = guard.check("something strange")
    assert verdict.novelty is not None
    assert verdict.novelty > 0.97
    usual = [each.novelty for each in guard.check_batch(f"question number {index}" for index in range(100))]
    assert 0.25 < np.mean([novelty for novelty in usual if novelty is not None]) < 0.75
    assert all(novelty is not None and 0.0 <= novelty <= 1.0 for novelty in usual)


def test_it_is_of_the_window_that_decides() -> None:
    guard = Guard(Offset()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    explanation = guard.explain("a strange calm sentence of words here. " * 20 + f"{HARM} and more of it. ")
    deciding = next(window for window in explanation.windows if window.decides)
    assert explanation.verdict.novelty == deciding.novelty
    assert len({window.novelty for window in explanation.windows}) > 1


def test_a_review_for_novelty_changes_the_action_and_nothing_else() -> None:
    guard = Guard(Offset()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    guard.threshold = 1.0
    before = guard.check("something strange")
    guard.review = Review(novelty=0.97)
    after = guard.check("something strange")
    assert (before.action, after.action) == (Action.ALLOW, Action.REVIEW)
    assert after.model_copy(update={"action": Action.ALLOW}) == before
    assert guard.check(SAFE[0]).action is Action.ALLOW


def test_learning_and_forgetting_measure_again(mock_guard: Guard) -> None:
    before = [verdict.novelty for verdict in mock_guard.check_batch(TEXTS)]
    more = [f"an entirely new calm text {index}" for index in range(20)]
    mock_guard.partial_fit(more, [0] * 20, progress=False)
    assert [verdict.novelty for verdict in mock_guard.check_batch(TEXTS)] != before
    mock_guard.forget(more, [0] * 20)
    assert [verdict.novelty for verdict in mock_guard.check_batch(TEXTS)] == before


@pytest.mark.parametrize("statistics", [True, False])
def test_a_loaded_guard_measures_exactly_what_the_saved_one_does(mock_guard: Guard, tmp_path: Path, statistics: bool) -> None:
    path = mock_guard.save_pretrained(tmp_path / "guard", statistics=statistics)
    loaded = Guard.from_pretrained(path, encoder=MockEncoder())
    assert loaded.check_batch(TEXTS) == mock_guard.check_batch(TEXTS)


def test_a_fit_on_very_few_prompts_measures_none() -> None:
    guard = Guard(MockEncoder()).fit(SAFE[:9] + UNSAFE[:9], [0] * 9 + [1] * 9, progress=False)
    assert guard.check(HARM).novelty is None
    with pytest.raises(DataError, match="at least 10"):
        guard.measure_novelty()


# -- guards from before -------------------------------------------------------------------------------------------------------


def test_a_bundle_without_novelty_loads_and_says_none(mock_guard: Guard, tmp_path: Path) -> None:
    path = without_novelty(mock_guard.save_pretrained(tmp_path / "guard"))
    loaded = Guard.from_pretrained(path, encoder=MockEncoder())
    assert loaded.check(HARM).novelty is None
    assert loaded.check(HARM).score == mock_guard.check(HARM).score


def test_it_is_measured_from_the_statistics_without_encoding_and_without_a_change_of_scores(
    mock_guard: Guard, tmp_path: Path
) -> None:
    path = without_novelty(mock_guard.save_pretrained(tmp_path / "guard", notes={"kept": True}))
    encoder = MockEncoder()
    loaded = Guard.from_pretrained(path, encoder=encoder)
    parent = loaded.bundle_id
    before = loaded.check_batch(TEXTS)
    asked = len(encoder.batches)
    assert loaded.measure_novelty() is loaded
    assert len(encoder.batches) == asked
    assert loaded.bundle_id is None
    after = loaded.check_batch(TEXTS)
    assert [each.score for each in after] == [each.score for each in before]
    assert [each.novelty for each in after] == [each.novelty for each in mock_guard.check_batch(TEXTS)]
    loaded.save_pretrained(tmp_path / "upgraded")
    manifest = bundles.load(tmp_path / "upgraded").manifest
    assert manifest.notes == {"kept": True}
    assert [(each.bundle_id, [change.kind for change in each.changes]) for each in manifest.lineage] == [(parent, ["novelty"])]
    again = Guard.from_pretrained(tmp_path / "upgraded", encoder=MockEncoder())
    assert [each.novelty for each in again.check_batch(TEXTS)] == [each.novelty for each in after]


def test_a_calibration_outlives_the_measuring(mock_guard: Guard) -> None:
    mock_guard.calibrate([f"harmless question number {index}" for index in range(400)], max_fpr=0.05)
    calibration = mock_guard.calibration
    assert mock_guard.measure_novelty().calibration == calibration


def test_without_statistics_nothing_can_be_measured(mock_guard: Guard, tmp_path: Path) -> None:
    path = without_novelty(mock_guard.save_pretrained(tmp_path / "guard", statistics=False))
    with pytest.raises(BundleError, match="without statistics"):
        Guard.from_pretrained(path, encoder=MockEncoder()).measure_novelty()
    with pytest.raises(NotFittedError):
        Guard(MockEncoder()).measure_novelty()


async def test_a_review_that_cannot_be_told_is_refused_instead_of_passed(mock_guard: Guard, tmp_path: Path) -> None:
    path = without_novelty(mock_guard.save_pretrained(tmp_path / "guard"))
    loaded = Guard.from_pretrained(path, encoder=MockEncoder())
    loaded.review = Review(novelty=0.9)
    for timeout in (None, 30.0):
        loaded.timeout = timeout
        with pytest.raises(ConfigurationError, match="measure_novelty"):
            loaded.check(CALM)
        with pytest.raises(ConfigurationError, match="measure_novelty"):
            await loaded.acheck(CALM)
    assert loaded.measure_novelty().check(CALM).novelty is not None


@pytest.mark.parametrize("damage", ["missing", "shape", "negative", "unordered", "nan"])
def test_damaged_tensors_are_refused(mock_guard: Guard, tmp_path: Path, damage: str) -> None:
    path = mock_guard.save_pretrained(tmp_path / "guard")
    tensors = dict(load((path / "prototypes.safetensors").read_bytes()))
    if damage == "missing":
        del tensors["novelty.rest"]
    elif damage == "shape":
        tensors["novelty.basis"] = tensors["novelty.basis"][:, :, :-1].copy()
    elif damage == "negative":
        tensors["novelty.variances"] = -tensors["novelty.variances"]
    elif damage == "unordered":
        tensors["novelty.quantiles"] = tensors["novelty.quantiles"][::-1].copy()
    else:
        tensors["novelty.means"] = np.full_like(tensors["novelty.means"], np.nan)
    reseal(path, save(tensors))
    with pytest.raises(BundleCorruptError):
        bundles.load(path)


# -- the public fake ----------------------------------------------------------------------------------------------------------


def test_a_mock_guard_has_the_novelty_it_is_told() -> None:
    guard = MockGuard(novelty=lambda text: 0.99 if "strange" in text else 0.2, review=Review(novelty=0.9))
    assert [(each.novelty, each.action.value) for each in guard.check_batch(["strange", "usual"])] == [
        (0.99, "review"),
        (0.2, "allow"),
    ]
    with pytest.raises(ConfigurationError, match="novelty"):
        MockGuard(review=Review(novelty=0.9)).check("x")
    with pytest.raises(ConfigurationError, match="novelty"):
        MockGuard(novelty=0.5)  # type: ignore[arg-type]
