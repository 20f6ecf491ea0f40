"""Saving and loading: whole or not at all, and nothing is loaded that was not checked."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from mlpm_guard import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleSaveError,
    BundleSchemaError,
    Guard,
    NotFittedError,
)
from mlpm_guard import bundle as bundles
from mlpm_guard.testing import MockEncoder

TEXTS = ["tell me this unsafe thing", "tell me about gardens"]


@pytest.fixture
def saved(mock_guard: Guard, tmp_path: Path) -> Path:
    return mock_guard.save_pretrained(tmp_path / "guard", notes={"author": "me"})


def load_guard(path: Path) -> Guard:
    return Guard.from_pretrained(path, encoder=MockEncoder())


def rewrite(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "bundle.json").read_text())
    manifest.update(changes)
    (path / "bundle.json").write_text(json.dumps(manifest))


def reseal(path: Path, name: str, content: bytes) -> None:
    """Replace a file and its hash, as somebody would who edits a bundle on purpose."""
    import hashlib

    (path / name).write_bytes(content)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "bundle.json").write_text(json.dumps(manifest))


def test_a_loaded_guard_judges_exactly_as_the_saved_one(mock_guard: Guard, saved: Path) -> None:
    loaded = load_guard(saved)
    assert loaded.check_batch(TEXTS) == mock_guard.check_batch(TEXTS)
    assert loaded.bundle_id is not None
    assert loaded.bundle_id.startswith("guard-")
    assert loaded.check(TEXTS[0]).bundle_id == loaded.bundle_id
    assert bundles.load(saved).manifest.notes == {"author": "me"}


def test_threshold_window_and_target_are_kept(tmp_path: Path) -> None:
    guard = Guard(MockEncoder(), target="response", threshold=0.7, window=32, fragment_margin=1.5)
    guard.fit(["calm a", "calm b", "unsafe a", "unsafe b"], [0, 0, 1, 1], progress=False)
    loaded = load_guard(guard.save_pretrained(tmp_path / "r"))
    assert (loaded.target, loaded.threshold, loaded.window) == ("response", 0.7, 32)
    assert bundles.load(tmp_path / "r").manifest.fragment_margin == 1.5


def test_a_loaded_guard_learns_on_as_if_it_had_never_been_saved(mock_guard: Guard, saved: Path) -> None:
    loaded = load_guard(saved)
    for guard in (loaded, mock_guard):
        guard.partial_fit(["another unsafe text", "another calm text"], [1, 0], progress=False)
    assert loaded.check(TEXTS[0]).score == pytest.approx(mock_guard.check(TEXTS[0]).score, abs=1e-9)
    assert loaded.bundle_id is None


def test_a_large_guard_learns_on_after_loading(tmp_path: Path) -> None:
    texts = [f"{'unsafe' if i % 2 else 'calm'} text {i}" for i in range(600)]
    guard = Guard(MockEncoder()).fit(texts, [i % 2 for i in range(600)], sample_size=50, progress=False)
    loaded = load_guard(guard.save_pretrained(tmp_path / "large"))
    for each in (guard, loaded):
        each.partial_fit(["one more unsafe text"], [1], progress=False).forget(texts[:4], [0, 1, 0, 1])
    expected, found = guard.classifier.coef_, loaded.classifier.coef_
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_without_statistics_a_guard_judges_but_does_not_learn(mock_guard: Guard, tmp_path: Path) -> None:
    small = mock_guard.save_pretrained(tmp_path / "small", statistics=False)
    assert not (small / "statistics.safetensors").exists()
    loaded = load_guard(small)
    assert loaded.check(TEXTS[0]).score == mock_guard.check(TEXTS[0]).score
    for learn in (loaded.partial_fit, loaded.forget):
        with pytest.raises(BundleError, match="without statistics"):
            learn(["x"], [1])
    again = loaded.save_pretrained(tmp_path / "again", statistics=False)
    assert load_guard(again).check(TEXTS[0]).score == mock_guard.check(TEXTS[0]).score
    with pytest.raises(BundleError, match="without statistics"):
        loaded.save_pretrained(tmp_path / "more")


def test_an_unfitted_guard_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        Guard(MockEncoder()).save_pretrained(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# -- names and paths ----------------------------------------------------------------------------------------------------------


def test_a_shipped_name_wins_over_a_folder_and_a_separator_means_the_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved.rename(tmp_path / "default")
    assert bundles.resolve("default")[1] == bundles.SHIPPED / "default"
    assert bundles.resolve("./default")[1] == Path("./default")
    assert bundles.resolve(Path("default"))[1] == Path("default")


def test_a_folder_is_found_by_its_bare_name_where_no_shipped_bundle_has_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Guard.from_pretrained("guard", encoder=MockEncoder()).check(TEXTS[0]).flagged


def test_a_missing_bundle_is_named_together_with_those_that_ship(tmp_path: Path) -> None:
    for name in ("no-such-bundle", str(tmp_path / "none"), "", str(tmp_path)):
        with pytest.raises(BundleNotFoundError) as caught:
            Guard.from_pretrained(name)
        assert "default" in str(caught.value)
        assert isinstance(caught.value, FileNotFoundError)


# -- damage -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prototypes.safetensors", "statistics.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "empty", "longer"])
def test_a_damaged_file_is_refused_and_named(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = bytearray(content)
        flipped[-3] ^= 1
        path.write_bytes({"truncated": content[:-7], "flipped": bytes(flipped), "empty": b"", "longer": content + b"x"}[damage])
    with pytest.raises(BundleCorruptError, match=name.split(".", maxsplit=1)[0]):
        load_guard(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": "mlpm-guard-bundle"'])
def test_a_broken_manifest_is_refused(saved: Path, content: bytes) -> None:
    (saved / "bundle.json").write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"bundle\.json"):
        load_guard(saved)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"format": "something else", "schema_version": 1}))
    with pytest.raises(BundleSchemaError, match="does not describe"):
        Guard.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("version", "advice"),
    [(3, "Upgrade"), (99, "Upgrade"), (1, "again"), (0, "again"), (None, "no schema"), ("1", "no schema")],
)
def test_another_schema_version_is_refused_with_advice(saved: Path, version: object, advice: str) -> None:
    rewrite(saved, schema_version=version)
    with pytest.raises(BundleSchemaError, match=advice):
        load_guard(saved)


def test_an_older_manifest_is_migrated_where_a_migration_exists(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((saved / "bundle.json").read_text())
    manifest["schema_version"] = 0
    manifest["limit"] = manifest.pop("threshold")
    (saved / "bundle.json").write_text(json.dumps(manifest))

    def migrate(old: dict[str, object]) -> dict[str, object]:
        new = {**old, "schema_version": bundles.SCHEMA_VERSION, "threshold": old["limit"]}
        del new["limit"]
        return new

    monkeypatch.setitem(bundles.MIGRATIONS, 0, migrate)
    assert load_guard(saved).threshold == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 1.5}, {"threshold": float("nan")}, {"window": 0}, {"target": "both"}, {"files": {}}, {"encoder": {}},
        {"unknown_field": 1}, {"classifier": {"C": 1, "sample_size": 512, "folds": 5, "layers": 9, "dim": 16}},
        {"files": {"prototypes.safetensors": {"bytes": 1, "sha256": "zz"}}},
    ],
)  # fmt: skip
def test_impossible_values_in_a_manifest_are_refused(saved: Path, changes: dict[str, object]) -> None:
    rewrite(saved, **changes)
    with pytest.raises(BundleCorruptError):
        load_guard(saved)


@pytest.mark.parametrize("change", ["nan", "shape", "missing", "order", "extra", "garbage"])
def test_impossible_prototypes_are_refused_even_with_a_matching_hash(saved: Path, change: str) -> None:
    tensors = load((saved / "prototypes.safetensors").read_bytes())
    if change == "nan":
        tensors["weights"] = tensors["weights"] * np.nan
    elif change == "shape":
        tensors["weights"] = tensors["weights"][:, :-1].copy()
    elif change == "missing":
        del tensors["biases"]
    elif change == "order":
        tensors["positions"] = tensors["positions"] + 99
    elif change == "extra":
        tensors["more"] = np.zeros(3)
    reseal(saved, "prototypes.safetensors", b"garbage" if change == "garbage" else save(tensors))
    with pytest.raises(BundleCorruptError):
        load_guard(saved)


def test_impossible_statistics_are_refused_when_they_are_needed(saved: Path) -> None:
    tensors = load((saved / "statistics.safetensors").read_bytes())
    del tensors["0.keys"]
    reseal(saved, "statistics.safetensors", save(tensors))
    loaded = load_guard(saved)
    assert loaded.check(TEXTS[0]).flagged
    with pytest.raises(BundleCorruptError, match="statistics"):
        loaded.partial_fit(["x"], [1])


# -- writing ------------------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saving_again_replaces_the_bundle_and_keeps_other_files(mock_guard: Guard, saved: Path) -> None:
    (saved / "README.md").write_text("mine")
    (saved / "figures").mkdir()
    (saved / "figures" / "a.txt").write_text("1")
    mock_guard.threshold = 0.9
    mock_guard.save_pretrained(saved, statistics=False)
    assert load_guard(saved).threshold == 0.9
    assert (saved / "README.md").read_text() == "mine"
    assert (saved / "figures" / "a.txt").read_text() == "1"
    assert not (saved / "statistics.safetensors").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["guard"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_leaves_the_old_bundle_whole(
    mock_guard: Guard, saved: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before = contents(saved)
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    mock_guard.threshold = 0.9
    with pytest.raises(BundleSaveError, match="No space left"):
        mock_guard.save_pretrained(saved)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["guard"]


def test_a_failed_swap_puts_the_old_bundle_back(mock_guard: Guard, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(saved)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".saving":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleSaveError, match="Input/output"):
        mock_guard.save_pretrained(saved)
    assert contents(saved) == before


def test_a_read_only_or_impossible_place_is_named(mock_guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleSaveError, match="file"):
        mock_guard.save_pretrained(tmp_path / "file" / "guard")
    with pytest.raises(BundleSaveError, match="not a bundle"):
        mock_guard.save_pretrained(tmp_path / "file")
    with pytest.raises(BundleSaveError, match="not a bundle"):
        mock_guard.save_pretrained(tmp_path)

    def read_only(*args: object, **kwargs: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(BundleSaveError, match="Read-only"):
        mock_guard.save_pretrained(tmp_path / "new")


def test_a_read_only_bundle_loads(saved: Path) -> None:
    for path in saved.iterdir():
        path.chmod(0o444)
    saved.chmod(0o555)
    try:
        assert load_guard(saved).check(TEXTS[0]).flagged
    finally:
        saved.chmod(0o755)


def test_a_bundle_holds_no_text_and_no_pickle(saved: Path) -> None:
    for path in saved.iterdir():
        content = path.read_bytes()
        assert b"topic number" not in content
        assert b"unsafe request" not in content
        assert path.suffix in {".json", ".safetensors"}
