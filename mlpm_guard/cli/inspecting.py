"""Commands that look into a judgement, and into a guard: explain, info."""

from __future__ import annotations

import typer

from mlpm_guard.cli import opening
from mlpm_guard.cli.options import BundleArgument, BundleOption, Json, Text, Threshold
from mlpm_guard.cli.program import app, fail


@app.command()
def explain(text: Text, bundle: BundleOption = "default", threshold: Threshold = None, json: Json = False) -> None:
    """Show why a prompt is judged as it is: what every layer adds, every piece, distances, categories.

    Contributions and intercept add up to the log-odds of the score. The text itself is not shown. Exit code 0: explained,
    flagged or not; 2: it could not be judged.
    """
    prompt = opening.standard_input() if text == "-" else text
    explanation = opening.load_guard(bundle, threshold).explain(prompt)
    if json:
        typer.echo(explanation.model_dump_json())
    else:
        from mlpm_guard.rendering import explanation_report, show

        show(explanation_report(explanation))
    if explanation.verdict.error is not None:
        fail(f"the text could not be judged ({explanation.verdict.error})")


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
