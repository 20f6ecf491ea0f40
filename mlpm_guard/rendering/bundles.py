"""How a bundle looks in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlpm_guard.rendering.console import printable

if TYPE_CHECKING:
    from mlpm_guard.bundle import Bundle, Manifest


def bundle_report(bundle: Bundle) -> RenderableType:
    """What a bundle is bound to, what it uses, and its files."""
    manifest = bundle.manifest
    encoder = manifest.encoder
    grid = Table.grid(padding=(0, 2))
    model = encoder.model or "a model that was passed in loaded"
    if encoder.revision:
        model += f" at {encoder.revision}"
    for name, value in (
        ("bundle", bundle.bundle_id),
        ("folder", str(bundle.path)),
        ("schema", f"{manifest.schema_version}, written by mlpm-guard {manifest.library_version}"),
        ("judges", f"the {manifest.target}"),
        ("threshold", f"{manifest.threshold:.4f}"),
        ("encoder", model),
        ("architecture", f"{encoder.architecture}, {encoder.pooling} pooling, {encoder.dim} numbers, {encoder.dtype}"),
        ("weights", encoder.weights),
        *([("adapter", encoder.adapter)] if encoder.adapter else []),
        ("layers used", used_layers(bundle)),
        ("window", f"{manifest.window} tokens, fragment margin {manifest.fragment_margin:g}"),
        ("examples", ", ".join(f"{count} {label}" for label, count in sorted(manifest.examples.items()))),
    ):
        grid.add_row(Text(name, style="bold"), Text(printable(value)))
    if manifest.rules is not None:
        counts = f"{len(manifest.rules.allow)} allowed, {len(manifest.rules.block)} blocked"
        grid.add_row(Text("rules", style="bold"), Text(counts))
    if manifest.review is not None:
        limits = [("score", manifest.review.score), ("novelty", manifest.review.novelty)]
        shown = " or ".join(f"{name} from {limit:g}" for name, limit in limits if limit is not None)
        grid.add_row(Text("review", style="bold"), Text(shown))
    for name, value in (*_calibration(manifest), *_categories(manifest)):
        grid.add_row(Text(name, style="bold"), Text(printable(value)))
    for ancestor in manifest.lineage:
        changes = ", ".join(str(change) for change in ancestor.changes)
        grid.add_row(Text("made from", style="bold"), Text(printable(f"{ancestor.bundle_id}: {changes}")))
    for name, entry in sorted(manifest.files.items()):
        grid.add_row(Text("file", style="bold"), Text(printable(f"{name}, {entry.bytes} bytes, SHA-256 {entry.sha256}")))
    if manifest.notes:
        grid.add_row(Text("notes", style="bold"), Text(json.dumps(manifest.notes, indent=1)))
    return grid


def _calibration(manifest: Manifest) -> Iterator[tuple[str, str]]:
    found = manifest.calibration
    if found is None:
        return
    if found.max_fpr is not None and found.confidence is not None:
        yield "calibrated", f"at most {found.max_fpr:.2%} of harmless traffic flagged, with {found.confidence:.0%} confidence"
    if found.objective is not None:
        yield "calibrated", f"for {found.objective}, on {found.benign + found.unsafe} prompts; nothing is promised for others"


def _categories(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """All categories by how they were learned, and a line for each that something is to be done about."""
    for how, fitted in (("", True), (", added from examples", False)):
        names = sorted(name for block in manifest.categories if block.fitted == fitted for name in block.names)
        if names:
            yield "categories", ", ".join(names) + how
    for name, policy in sorted(manifest.policy.items()):
        flags = "" if policy.threshold is None else f", flags by itself from {policy.threshold:.4f}"
        yield "policy", f"{name}: {policy.action}{flags}"


def bundle_json(bundle: Bundle) -> str:
    """The manifest with the bundle's name, folder and used layers, as JSON."""
    layers = [bundle.manifest.encoder.layers[position] for position in bundle.scorer.positions]
    return json.dumps(
        {
            "bundle_id": bundle.bundle_id,
            "path": str(bundle.path),
            "layers_used": layers,
            **bundle.manifest.model_dump(mode="json"),
        }
    )


def used_layers(bundle: Bundle) -> str:
    """Layers that scoring needs, out of those that the encoder has."""
    known = bundle.manifest.encoder.layers
    return f"{', '.join(str(known[position]) for position in bundle.scorer.positions)} (of {len(known)})"
