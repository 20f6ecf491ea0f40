"""Saved guards: a folder with `bundle.json`, `prototypes.safetensors` and, optionally, `statistics.safetensors`.

Beside them lies `adapter.safetensors` where the guard's encoder has a low-rank adapter that does not ship with the library.

The manifest names every file's size and SHA-256 and the encoder that the guard is bound to. No pickle anywhere. Hashes find
damage and mix-ups; they do not prove who wrote a bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from mlpm_guard import __version__
from mlpm_guard.category_policy import CategoryPolicy
from mlpm_guard.encoders.base import Encoder, EncoderIdentity
from mlpm_guard.errors import (
    BundleCorruptError,
    BundleError,
    BundleMismatchError,
    BundleNotFoundError,
    BundleSaveError,
    BundleSchemaError,
    ConfigurationError,
)
from mlpm_guard.lineage import Ancestor
from mlpm_guard.prototypes.categories import Categories
from mlpm_guard.prototypes.novelty import Novelty
from mlpm_guard.prototypes.scorer import LayerScorer
from mlpm_guard.review import Review
from mlpm_guard.rules import Rules, SavedRules
from mlpm_guard.verdict import Target

MANIFEST = "bundle.json"
PROTOTYPES = "prototypes.safetensors"
STATISTICS = "statistics.safetensors"
ADAPTER = "adapter.safetensors"
FORMAT = "mlpm-guard-bundle"
SCHEMA_VERSION = 2
SHIPPED = Path(__file__).parent / "bundles"
_NOVELTY = {
    "novelty.means": 3,
    "novelty.basis": 3,
    "novelty.variances": 2,
    "novelty.rest": 1,
    "novelty.quantiles": 1,
}
_CATEGORIES = "categories."
_MAX_MANIFEST = 16 * 2**20

Tensors = dict[str, npt.NDArray[np.generic]]

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema version to a function that turns a manifest of that version into one of the next."""


class FileEntry(BaseModel):
    """A file of the bundle: its size in bytes and its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ClassifierSettings(BaseModel):
    """Options of the `PrototypeClassifier` that was fitted, and the shape of what it learned from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    C: float = Field(gt=0)
    sample_size: int = Field(ge=2)
    folds: int = Field(ge=0)
    layers: int = Field(ge=1)
    dim: int = Field(ge=1)


class Calibration(BaseModel):
    """How a guard's threshold, and perhaps its probabilities, were set.

    Attributes:
        threshold: the threshold that was set.
        benign: benign prompts it was set on.
        repeated: how many of those repeat another one, but for blanks, case and Unicode forms.
        unsafe: unsafe prompts among the calibration prompts.
        flagged: how many of the benign ones it flags.
        max_fpr: promised false-positive rate, or None.
        confidence: of that promise, or None.
        objective: what the threshold is best for, or None.
        scale: of the affine map of the log-odds; 1 without labelled prompts.
        offset: of that map, in nats.
        calibration_error: expected calibration error on the labelled prompts, behind the map; None without them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(ge=0.0, le=1.0)
    benign: int = Field(ge=0)
    repeated: int = Field(default=0, ge=0)
    unsafe: int = Field(ge=0)
    flagged: int = Field(ge=0)
    max_fpr: float | None = None
    confidence: float | None = None
    objective: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    calibration_error: float | None = None


class SavedBlock(BaseModel):
    """Categories that were learned together: all fitted ones, or one that was added from a few examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fitted: bool
    names: list[str] = Field(min_length=1)


class SavedCategoryPolicy(BaseModel):
    """What is done about a category; see `CategoryPolicy`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["allow", "review", "block"] = "block"
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)


class Manifest(BaseModel):
    """`bundle.json`.

    Attributes:
        threshold: probability from which a verdict is flagged.
        window: tokens of a judging window.
        fragment_margin: most that is deducted from a part of a longer text; see `Guard`.
        encoder: what the guard is bound to.
        examples: training windows of each class.
        calibration: how the threshold was set, where `Guard.calibrate` set it and nothing was learned since.
        rules: the user's own allow and block lists, patterns included.
        review: which verdicts are reviewed although they are not flagged.
        categories: the categories it knows, block by block.
        policy: what is done about them, by name.
        log_odds_map: scale and offset, in nats, by which calibrations have mapped the log-odds since the fit; it stays where
            learning has ended the calibration.
        lineage: bundles that this one was made from, the oldest first.
        notes: whatever the author wants to keep beside it (sources, licence, figures). Never prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["mlpm-guard-bundle"] = "mlpm-guard-bundle"
    schema_version: Literal[2] = 2
    library_version: str = __version__
    target: Target
    threshold: float = Field(ge=0.0, le=1.0)
    window: int = Field(ge=1)
    fragment_margin: float = Field(ge=0.0)
    encoder: EncoderIdentity
    classifier: ClassifierSettings
    examples: dict[Literal["safe", "unsafe"], int]
    files: dict[str, FileEntry] = Field(default_factory=dict)
    calibration: Calibration | None = None
    log_odds_map: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], FiniteFloat] = (1.0, 0.0)
    rules: SavedRules | None = None
    review: Review | None = None
    categories: list[SavedBlock] = Field(default_factory=list)
    policy: dict[str, SavedCategoryPolicy] = Field(default_factory=dict)
    lineage: tuple[Ancestor, ...] = ()
    notes: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked.

    Attributes:
        path: its folder.
        manifest: the checked manifest.
        scorer: what scoring needs.
        novelty: what measuring novelty needs; None in a bundle that was saved before it was measured.
        categories: every category it knows.
        bundle_id: name and the first digits of the manifest's SHA-256.
    """

    path: Path
    manifest: Manifest
    scorer: LayerScorer
    novelty: Novelty | None
    categories: Categories
    bundle_id: str

    def category_policy(self) -> dict[str, CategoryPolicy]:
        """What is done about categories, by name."""
        return {name: CategoryPolicy(each.action, each.threshold) for name, each in self.manifest.policy.items()}

    def statistics(self) -> Tensors:
        """Tensors of `statistics.safetensors`, checked again.

        Raises:
            BundleError: the bundle was saved without statistics.
            BundleCorruptError: the file is not what the manifest says.
        """
        if STATISTICS not in self.manifest.files:
            raise BundleError(
                f"{self.path} was saved without statistics, so it can be neither extended nor corrected; fit it "
                "again, or save it with statistics=True",
                self.path,
            )
        return _read_tensors(self.path, STATISTICS, self.manifest)

    def encoder(self, device: str = "auto") -> Encoder:
        """The encoder that the bundle names, not loaded yet.

        Raises:
            BundleMismatchError: the guard was fitted on a model that was passed in loaded and has no name, or with an adapter
                that neither lies in its folder nor ships with this version.
        """
        from mlpm_guard.encoders.embedded import DEFAULT, MODEL, REVISION, EmbeddedEncoder, shipped_adapter
        from mlpm_guard.encoders.transformer import TransformerEncoder

        identity = self.manifest.encoder
        options: dict[str, Any] = {
            "pooling": identity.pooling,
            "layers": identity.layers,
            "dtype": identity.dtype,
            "device": device,
        }
        adapter = self._adapter()
        if (identity.model, identity.revision) == (MODEL, REVISION):
            return EmbeddedEncoder(adapter=DEFAULT if adapter and adapter == shipped_adapter() else adapter, **options)
        if identity.model is None:
            raise BundleMismatchError(
                f"the guard {self.bundle_id} was fitted on a model that was passed in loaded ({identity.architecture}); pass "
                "it again: Guard.from_pretrained(path, encoder=TransformerEncoder(model, tokenizer))",
                self.path,
            )
        return TransformerEncoder(identity.model, adapter=adapter, revision=identity.revision, **options)

    def _adapter(self) -> Path | None:
        """The file of the encoder's adapter; None where it has none."""
        from mlpm_guard.encoders.embedded import ADAPTER_SHA256, shipped_adapter

        wanted = self.manifest.encoder.adapter
        if wanted is None:
            return None
        if ADAPTER in self.manifest.files:
            return self.path.absolute() / ADAPTER
        if wanted == ADAPTER_SHA256:
            return shipped_adapter()
        raise BundleMismatchError(
            f"the guard {self.bundle_id}, saved by mlpm-guard {self.manifest.library_version}, was fitted with an adapter of "
            f"its encoder that is neither in its folder nor ships with this version (SHA-256 {wanted}). Pass the encoder: "
            "Guard.from_pretrained(path, encoder=EmbeddedEncoder(adapter=file)), or TransformerEncoder(name, adapter=file)",
            self.path,
        )


def resolve(name_or_path: str | Path) -> tuple[str, Path]:
    """Name and folder of a bundle. A shipped name wins over a folder of that name; `./name` always means the folder.

    Raises:
        BundleNotFoundError: neither exists.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, str) and not {"/", os.sep} & set(text) and text not in {"", ".", ".."}:
        shipped = SHIPPED / text
        if (shipped / MANIFEST).is_file():
            return text, shipped
    path = Path(text).expanduser()
    if not (path / MANIFEST).is_file():
        names = ", ".join(sorted(folder.name for folder in SHIPPED.iterdir() if (folder / MANIFEST).is_file()))
        what = f"the folder has no {MANIFEST}" if path.is_dir() else "no such folder"
        raise BundleNotFoundError(f"no bundle at {text!r} ({what}); bundles shipped with this version: {names or 'none'}", path)
    return path.resolve().name, path


def load(name_or_path: str | Path) -> Bundle:
    """Read and check a bundle: manifest, schema version, every file's hash, shapes, and that all numbers are finite.

    Raises:
        BundleNotFoundError: there is none.
        BundleSchemaError: it is of a version, or a kind, that this library does not read.
        BundleCorruptError: a file is missing, truncated or altered, or holds impossible values.
    """
    name, path = resolve(name_or_path)
    raw = _read_bytes(path / MANIFEST, limit=_MAX_MANIFEST)
    manifest = _parse_manifest(raw, path)
    tensors = _read_tensors(path, PROTOTYPES, manifest)
    if STATISTICS in manifest.files:
        _check_file(path, STATISTICS, manifest)
    if ADAPTER in manifest.files:
        _check_file(path, ADAPTER, manifest)
        if manifest.files[ADAPTER].sha256 != manifest.encoder.adapter:
            raise BundleCorruptError(f"{path / ADAPTER} is not the adapter of the encoder in {MANIFEST}", path)
    categories = _categories(tensors, manifest, path)
    scorer, novelty = _scorer(tensors, manifest, path), _novelty(tensors, manifest, path)
    if not set(categories.positions.tolist()) <= set(scorer.positions.tolist()):
        raise BundleCorruptError(f"{path / PROTOTYPES}: categories read layers that the guard does not", path)
    return Bundle(path, manifest, scorer, novelty, categories, f"{name}-{hashlib.sha256(raw).hexdigest()[:12]}")


def save(
    path: str | Path,
    manifest: Manifest,
    scorer: LayerScorer,
    novelty: Novelty | None,
    categories: Categories,
    statistics: Tensors | None,
    adapter: bytes | None = None,
) -> Bundle:
    """Write a bundle. Either all of it is there afterwards or nothing has changed.

    An existing bundle at the path is replaced; other files in its folder (a README, say) are kept.

    Raises:
        BundleSaveError: it cannot be written there, or the path holds something that is not a bundle.
    """
    target = Path(path).expanduser()
    if target.is_symlink():
        target = target.resolve()
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise BundleSaveError(f"{target} exists and is not a bundle; choose another path", target)
    prototypes: Tensors = {
        "positions": scorer.positions.astype(np.int64),
        "weights": scorer.weights,
        "biases": scorer.biases,
        "layer_weights": scorer.layer_weights,
        "intercept": np.array([scorer.intercept]),
        "levels": np.array(scorer.levels),
    }
    if novelty is not None:
        kept = (novelty.means.astype(np.float32), novelty.basis.astype(np.float16), novelty.variances, novelty.rest)
        prototypes.update(zip(_NOVELTY, (*kept, novelty.quantiles), strict=True))
    prototypes.update(categories.to_tensors())
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".saving", dir=target.parent))
        entries = {PROTOTYPES: _write_tensors(temporary / PROTOTYPES, prototypes)}
        if statistics is not None:
            entries[STATISTICS] = _write_tensors(temporary / STATISTICS, statistics)
        if adapter is not None:
            entries[ADAPTER] = _write_bytes(temporary / ADAPTER, adapter)
        manifest = manifest.model_copy(update={"files": entries})
        _write_bytes(temporary / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
        _swap(temporary, target)
    except OSError as error:
        raise BundleSaveError(
            f"cannot save to {target} ({error.strerror or type(error).__name__}); what was there before is untouched",
            target,
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return load(target.resolve())


def _swap(temporary: Path, target: Path) -> None:
    temporary.chmod(0o755)
    if not target.exists():
        temporary.rename(target)
        return
    for extra in target.iterdir():
        if extra.name not in {MANIFEST, PROTOTYPES, STATISTICS, ADAPTER}:
            if extra.is_dir():
                shutil.copytree(extra, temporary / extra.name, symlinks=True)
            else:
                shutil.copy2(extra, temporary / extra.name, follow_symlinks=False)
    old = temporary.with_suffix(".old")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_tensors(path: Path, tensors: Tensors) -> FileEntry:
    from safetensors.numpy import save as to_bytes

    return _write_bytes(path, to_bytes({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


def _write_bytes(path: Path, content: bytes) -> FileEntry:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _read_bytes(path: Path, limit: int | None = None) -> bytes:
    try:
        if limit is not None and path.stat().st_size > limit:
            raise BundleCorruptError(f"{path} is larger than any manifest ({path.stat().st_size} bytes)", path)
        return path.read_bytes()
    except OSError as error:
        raise BundleCorruptError(f"cannot read {path} ({error.strerror or type(error).__name__})", path) from error


def _parse_manifest(raw: bytes, path: Path) -> Manifest:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleCorruptError(f"{path / MANIFEST} is not JSON ({type(error).__name__})", path) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleSchemaError(f"{path / MANIFEST} does not describe an mlpm-guard bundle", path)
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleSchemaError(f"{path / MANIFEST} has no schema version", path)
    while version < SCHEMA_VERSION and version in MIGRATIONS:
        data = MIGRATIONS[version](data)
        version = data["schema_version"]
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise BundleSchemaError(
            f"{path} has schema version {version}; this library (mlpm-guard {__version__}) reads {SCHEMA_VERSION}. "
            + ("Upgrade the library." if newer else "Fit and save the guard again."),
            path,
        )
    try:
        manifest = Manifest.model_validate(data)
        if manifest.rules is not None:
            Rules.from_saved(manifest.rules)
        return manifest
    except ConfigurationError as error:
        raise BundleCorruptError(f"{path / MANIFEST} holds impossible rules ({error})", path) from error
    except ValidationError as error:
        where = "; ".join(".".join(map(str, each["loc"])) + ": " + each["msg"] for each in error.errors()[:3])
        raise BundleCorruptError(f"{path / MANIFEST} holds impossible values ({where})", path) from error


def _check_file(path: Path, name: str, manifest: Manifest) -> bytes:
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleCorruptError(f"{path / MANIFEST} does not list {name}", path)
    content = _read_bytes(path / name)
    if len(content) != entry.bytes:
        raise BundleCorruptError(f"{path / name} has {len(content)} bytes, not {entry.bytes}: it is truncated or altered", path)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BundleCorruptError(f"{path / name} does not match its SHA-256 in {MANIFEST}: it was altered", path)
    return content


def _read_tensors(path: Path, name: str, manifest: Manifest) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    content = _check_file(path, name, manifest)
    try:
        tensors: Tensors = from_bytes(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleCorruptError(f"{path / name} is not a safetensors file ({type(error).__name__})", path) from error
    for key, tensor in tensors.items():
        if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
            raise BundleCorruptError(f"{path / name}: tensor {key} holds NaN or infinity", path)
    return tensors


def _scorer(tensors: Mapping[str, npt.NDArray[np.generic]], manifest: Manifest, path: Path) -> LayerScorer:
    shape = manifest.classifier
    if (len(manifest.encoder.layers), manifest.encoder.dim) != (shape.layers, shape.dim):
        raise BundleCorruptError(f"{path / MANIFEST}: encoder and classifier have other layers or dimensions", path)
    expected = {"positions": 1, "weights": 2, "biases": 1, "layer_weights": 1, "intercept": 1, "levels": 1}
    known = {name for name in tensors if name in _NOVELTY or name.startswith(_CATEGORIES)}
    if set(tensors) - known != set(expected) or any(tensors[name].ndim != ndim for name, ndim in expected.items()):
        raise BundleCorruptError(f"{path / PROTOTYPES} does not hold the tensors of a fitted guard", path)
    positions = tensors["positions"].astype(np.int64)
    used = len(positions)
    fits = (
        used >= 1
        and np.issubdtype(tensors["positions"].dtype, np.integer)
        and positions.min() >= 0
        and positions.max() < shape.layers
        and bool((np.diff(positions) > 0).all())
        and tensors["weights"].shape == (used, shape.dim)
        and tensors["biases"].shape == tensors["layer_weights"].shape == (used,)
        and tensors["intercept"].shape == (1,)
        and tensors["levels"].shape == (2,)
    )
    if not fits:
        raise BundleCorruptError(f"{path / PROTOTYPES} has tensors of the wrong shape", path)
    return LayerScorer(
        positions,
        tensors["weights"].astype(np.float64),
        tensors["biases"].astype(np.float64),
        tensors["layer_weights"].astype(np.float64),
        float(tensors["intercept"].astype(np.float64)[0]),
        (float(tensors["levels"].astype(np.float64)[0]), float(tensors["levels"].astype(np.float64)[1])),
    )


def _categories(tensors: Mapping[str, npt.NDArray[np.generic]], manifest: Manifest, path: Path) -> Categories:
    of_categories = {name: tensor for name, tensor in tensors.items() if name.startswith(_CATEGORIES)}
    layout = [(block.fitted, block.names) for block in manifest.categories]
    shape = manifest.classifier
    try:
        return Categories.from_tensors(of_categories, layout, layers=shape.layers, dim=shape.dim)
    except BundleCorruptError as error:
        raise BundleCorruptError(f"{path / PROTOTYPES}: {error}", path) from error


def _novelty(tensors: Mapping[str, npt.NDArray[np.generic]], manifest: Manifest, path: Path) -> Novelty | None:
    found = set(tensors) & set(_NOVELTY)
    if not found:
        return None
    if found != set(_NOVELTY) or any(tensors[name].ndim != ndim for name, ndim in _NOVELTY.items()):
        raise BundleCorruptError(f"{path / PROTOTYPES} holds some of the tensors of novelty only", path)
    means, basis, variances, rest, quantiles = (tensors[name] for name in _NOVELTY)
    used, dim = len(tensors["positions"]), manifest.classifier.dim
    fits = (
        means.shape == (2, used, dim)
        and basis.shape == (used, variances.shape[1], dim)
        and variances.shape[0] == used
        and rest.shape == (used,)
        and len(quantiles) >= 1
        and bool((variances.astype(np.float64) > 0).all())
        and bool((rest.astype(np.float64) > 0).all())
        and bool((np.diff(quantiles.astype(np.float64)) >= 0).all())
    )
    if not fits:
        raise BundleCorruptError(f"{path / PROTOTYPES} has tensors of novelty of the wrong shape", path)
    return Novelty(
        means.astype(np.float64),
        basis.astype(np.float32),
        variances.astype(np.float64),
        rest.astype(np.float64),
        quantiles.astype(np.float64),
    )
