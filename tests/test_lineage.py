"""What a bundle knows of its ancestors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlpm_guard import Guard
from mlpm_guard import bundle as bundles
from mlpm_guard.lineage import Ancestor, Change
from mlpm_guard.testing import MockEncoder
from tests.conftest import SAFE, UNSAFE

BENIGN = [f"harmless question number {index}" for index in range(400)]


def load(path: Path) -> Guard:
    return Guard.from_pretrained(path, encoder=MockEncoder())


def lineage(path: Path) -> tuple[Ancestor, ...]:
    return bundles.load(path).manifest.lineage


def saved(guard: Guard, path: Path) -> str:
    guard.save_pretrained(path)
    assert guard.bundle_id is not None
    return guard.bundle_id


def test_a_fresh_guard_has_no_ancestors(mock_guard: Guard, tmp_path: Path) -> None:
    saved(mock_guard, tmp_path / "one")
    assert lineage(tmp_path / "one") == ()


def test_every_change_since_the_parent_is_kept_in_order(mock_guard: Guard, tmp_path: Path) -> None:
    first = saved(mock_guard, tmp_path / "one")
    guard = load(tmp_path / "one")
    guard.partial_fit(["another unsafe text", "another calm text"], [1, 0], progress=False).forget(SAFE[:1], [0])
    guard.calibrate(BENIGN, max_fpr=0.05)
    second = saved(guard, tmp_path / "two")
    expected = Ancestor(
        bundle_id=first,
        changes=(
            Change(kind="partial_fit", prompts=2),
            Change(kind="forget", prompts=1),
            Change(kind="calibrate", prompts=400),
        ),
    )
    assert lineage(tmp_path / "two") == (expected,)
    guard.threshold = 0.9
    saved(guard, tmp_path / "three")
    assert lineage(tmp_path / "three") == (expected, Ancestor(bundle_id=second, changes=(Change(kind="threshold"),)))


def test_saving_over_the_parent_keeps_it_as_ancestor(mock_guard: Guard, tmp_path: Path) -> None:
    first = saved(mock_guard, tmp_path / "guard")
    mock_guard.forget(UNSAFE[:2], [1, 1])
    assert saved(mock_guard, tmp_path / "guard") != first
    assert lineage(tmp_path / "guard") == (Ancestor(bundle_id=first, changes=(Change(kind="forget", prompts=2),)),)


def test_a_copy_without_a_change_has_the_lineage_of_its_original(mock_guard: Guard, tmp_path: Path) -> None:
    saved(mock_guard, tmp_path / "one")
    saved(load(tmp_path / "one").forget(SAFE[:1], [0]), tmp_path / "two")
    saved(load(tmp_path / "two"), tmp_path / "three")
    assert lineage(tmp_path / "three") == lineage(tmp_path / "two")


def test_a_fit_from_scratch_ends_the_lineage(mock_guard: Guard, tmp_path: Path) -> None:
    saved(mock_guard, tmp_path / "one")
    saved(mock_guard.fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False), tmp_path / "two")
    assert lineage(tmp_path / "two") == ()


def test_the_same_steps_give_the_same_bytes_and_no_text(mock_guard: Guard, tmp_path: Path) -> None:
    saved(mock_guard, tmp_path / "one")
    for folder in ("a", "b"):
        saved(load(tmp_path / "one").partial_fit(["my secret text"], ["safe"], progress=False), tmp_path / folder / "guard")
    first, second = ((tmp_path / folder / "guard" / "bundle.json").read_bytes() for folder in ("a", "b"))
    assert first == second
    assert b"secret" not in first


def test_a_bundle_from_before_lineage_loads_with_an_empty_one(mock_guard: Guard, tmp_path: Path) -> None:
    saved(mock_guard, tmp_path / "one")
    manifest = json.loads((tmp_path / "one" / "bundle.json").read_text())
    del manifest["lineage"]
    (tmp_path / "one" / "bundle.json").write_text(json.dumps(manifest))
    assert lineage(tmp_path / "one") == ()
    assert load(tmp_path / "one").check("tell me this unsafe thing").flagged


@pytest.mark.parametrize("entry", [{"bundle_id": "x", "changes": [{"kind": "Two Words"}]}, {"changes": []}, "x"])
def test_an_impossible_lineage_is_refused(mock_guard: Guard, tmp_path: Path, entry: object) -> None:
    saved(mock_guard, tmp_path / "one")
    manifest = json.loads((tmp_path / "one" / "bundle.json").read_text())
    (tmp_path / "one" / "bundle.json").write_text(json.dumps({**manifest, "lineage": [entry]}))
    with pytest.raises(bundles.BundleCorruptError, match="lineage"):
        bundles.load(tmp_path / "one")
