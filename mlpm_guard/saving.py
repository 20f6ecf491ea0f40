"""From a guard to its bundle: what the manifest says, and which tensors go beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpm_guard import bundle as bundles
from mlpm_guard.errors import BundleSaveError, ConfigurationError, EncoderError
from mlpm_guard.lineage import Ancestor, Change
from mlpm_guard.rules import SavedRules

if TYPE_CHECKING:
    from mlpm_guard.encoders.base import Encoder
    from mlpm_guard.model import Model
    from mlpm_guard.prototypes.classifier import PrototypeClassifier


def save(
    path: str | Path,
    model: Model,
    classifier: PrototypeClassifier | None,
    settings: Mapping[str, Any],
    *,
    encoder: Encoder,
    statistics: bool,
    notes: Mapping[str, Any] | None,
) -> bundles.Bundle:
    """Write a bundle.

    Args:
        path: the folder.
        model: what the guard judges with.
        classifier: where it was learned; None for one that was loaded without its statistics, or is saved without them.
        settings: fields of the manifest that are the guard's options.
        encoder: what the guard is bound to. Its adapter goes beside the guard, unless it ships with the library.
        statistics: include the classifier's statistics.
        notes: JSON values; None keeps those of the bundle that the guard comes from.

    Raises:
        ConfigurationError: the notes are no JSON values.
        BundleSaveError: it cannot be written.
    """
    tensors = None
    if classifier is not None:
        learned = classifier.statistics_
        shape = bundles.ClassifierSettings(
            C=classifier.C,
            sample_size=learned.saved_sample_size if statistics else classifier.sample_size,
            folds=classifier.folds,
            layers=learned.layers,
            dim=learned.dim,
        )
        counts: Mapping[Any, int] = {"safe": learned.count(0), "unsafe": learned.count(1)}
        tensors = learned.to_tensors() if statistics else None
    else:
        assert model.bundle is not None
        shape, counts = model.bundle.manifest.classifier, model.bundle.manifest.examples
    try:
        json.dumps(notes)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"notes must be JSON values ({type(error).__name__})") from None
    kept = model.bundle.manifest.notes if model.bundle is not None else {}
    manifest = bundles.Manifest.model_validate(
        {
            **settings,
            "encoder": encoder.identity.model_dump(),
            "classifier": shape.model_dump(),
            "examples": dict(counts),
            "categories": [{"fitted": fitted, "names": names} for fitted, names in model.categories.layout()],
            "lineage": [each.model_dump() for each in lineage(model, settings)],
            "calibration": None if model.calibration is None else model.calibration.model_dump(),
            "notes": kept if notes is None else dict(notes),
        }
    )
    return bundles.save(path, manifest, model.scorer, model.novelty, model.categories, tensors, _adapter(path, encoder))


def _adapter(path: str | Path, encoder: Encoder) -> bytes | None:
    """Content of the file of the encoder's adapter; None without one, and where it need not be saved or is not known."""
    wanted = encoder.identity.adapter
    if wanted is None:
        return None
    from mlpm_guard.encoders.adapter import content_of
    from mlpm_guard.encoders.embedded import ADAPTER_SHA256
    from mlpm_guard.encoders.transformer import TransformerEncoder

    if wanted == ADAPTER_SHA256 or not isinstance(encoder, TransformerEncoder) or encoder.adapter_file is None:
        return None
    try:
        content, _ = content_of(encoder.adapter_file, wanted)
    except EncoderError as error:
        raise BundleSaveError(f"cannot save to {path}: {error}", path) from error
    return content


def lineage(model: Model, settings: Mapping[str, Any]) -> tuple[Ancestor, ...]:
    """Ancestors of a bundle that holds this model with these settings; those of its parent where nothing was changed."""
    if model.parent is None:
        return ()
    parent = model.parent.manifest
    changes = list(model.changes)
    calibrated = model.calibration is not None and model.calibration != parent.calibration
    if settings["threshold"] != parent.threshold and not calibrated:
        changes.append(Change(kind="threshold"))
    for name, before in (("rules", parent.rules), ("review", parent.review)):
        after = settings[name]
        if after != (before.model_dump(exclude_defaults=True) if isinstance(before, SavedRules) else before):
            changes.append(Change(kind=name))
    told = {each.name for each in changes if each.kind in {"add_category", "remove_category"}}
    policies = ({name: each.model_dump() for name, each in parent.policy.items()}, settings["policy"])
    if len({json.dumps({name: policy[name] for name in sorted(policy.keys() - told)}) for policy in policies}) > 1:
        changes.append(Change(kind="policy"))
    if not changes:
        return parent.lineage
    return (*parent.lineage, Ancestor(bundle_id=model.parent.bundle_id, changes=tuple(changes)))
