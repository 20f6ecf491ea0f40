"""Commands that look into a guard: info."""

from __future__ import annotations

import typer

from mlpm_guard.cli.options import BundleArgument, Json
from mlpm_guard.cli.program import app


@app.command()
def info(bundle: BundleArgument, json: Json = False) -> None:
    """Show what a guard is made of. Checks its files; loads no encoder."""
    from mlpm_guard import bundle as bundles
    from mlpm_guard.rendering import bundle_json, bundle_report, show

    found = bundles.load(bundle)
    if json:
        typer.echo(bundle_json(found))
    else:
        show(bundle_report(found))
