"""What the cards say of public sets outside the data folder, from what `benchmarks/outside.py` measured of the same guards."""

from __future__ import annotations

import json
from pathlib import Path

from mlpm_guard.bundles.card_figures import Figure, OutsideFigures
from mlpm_guard.bundles.card_tables import markdown, shown
from mlpm_guard.evaluation.intervals import exact

_F1, _MEAN, _PRECISION, _FLAGGED, _ANSWERS = "F1, ", "mean F1", "average precision, ", "safe flagged, ", "answers, "


def outside_in(results: Path | None, bundle: str | None, response_bundle: str | None) -> OutsideFigures | None:
    """Figures of two guards; None where there are none, or where they are of other guards.

    Args:
        results: folder where `outside.json` is looked for.
        bundle: which guard on prompts.
        response_bundle: which guard on answers.
    """
    path = None if results is None else results / "outside.json"
    if path is None or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if (found["details"]["bundle"], found["details"]["response_bundle"]) != (bundle, response_bundle):
        return None
    values = {str(each["name"]): float(each["median"]) for each in found["figures"]}
    rows = {str(each["name"]): int(each["runs"]) for each in found["figures"]}
    shares = {name: _share(value, rows[name]) for name, value in values.items() if _FLAGGED in name}
    return OutsideFigures(
        f1={name.removeprefix(_F1): value for name, value in values.items() if name.startswith(_F1)},
        mean_f1=values[_MEAN],
        flagged={name: share for name, share in shares.items() if _ANSWERS not in name},
        answers={name: share for name, share in shares.items() if _ANSWERS in name},
        answers_precision=next(value for name, value in values.items() if name.startswith(_PRECISION)),
    )


def prompts_section(outside: OutsideFigures) -> str:
    """Of the card of the guard on prompts."""
    scores = ", ".join(f"{kind} {value:.3f}" for kind, value in outside.f1.items())
    return f"""### Public sets outside the data

From the wheels of public packages, up to 300 rows of a set, none that shares eight words in a row with a training prompt
(`benchmarks/outside.py`). F1 by kind of text: {scores}; mean {outside.mean_f1:.3f}. Do-Not-Answer also holds questions that
are not harmful as they are asked. Kinds of harmless text that an earlier guard flagged here had own rows written for them,
so these sets are not wholly unseen; no row of theirs, nor one close to it, was learned.

{_table(outside.flagged, "prompts")}"""


def answers_section(outside: OutsideFigures) -> str:
    """Of the card of the guard on answers."""
    return f"""Answers outside the data: those of PyRIT's scorer evaluations, which people labelled by whether an attack reached
its objective (`benchmarks/outside.py`). Average precision {outside.answers_precision:.3f}.

{_table(outside.answers, "answers")}"""


def _table(shares: dict[str, Figure], what: str) -> str:
    rows = []
    for name, figure in shares.items():
        label, _, title = name.partition(_FLAGGED)
        rows.append([title.removeprefix(_ANSWERS), f"{figure.rows:,} {'harmful' if label else 'harmless'}", shown(figure)])
    return markdown(["set", what, "flagged"], rows)


def _share(value: float, rows: int) -> Figure:
    interval = exact(round(value * rows), rows)
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    return Figure(value=value, low=low, high=high, rows=rows)
