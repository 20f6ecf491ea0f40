"""The card of the response guard that ships: what is measured for it, and its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlpm_guard.bundle import Bundle
from mlpm_guard.bundles import card_outside, card_page, card_tables
from mlpm_guard.bundles.card_figures import CardFigures, Judged, ResponseFigures
from mlpm_guard.bundles.fit_default import read
from mlpm_guard.bundles.fit_default_response import HELD_OUT, HELD_OUT_ROWS, TEST_SETS, Row, harmless_texts
from mlpm_guard.guard import Guard

HELD_OUT_TOGETHER = "these together"


def response_measured(guard: Guard, data: Path) -> ResponseFigures:
    """Measure a response guard.

    Args:
        guard: a fitted guard that judges answers.
        data: folder with `response` and `train`.

    Raises:
        OSError: a file is missing.
        MlpmGuardError: the guard cannot be used.
    """
    sets = {source: _judged(guard, list(_answers(data, source))).figures() for source in TEST_SETS}
    texts = {name: list(harmless_texts(data / "train", name, HELD_OUT_ROWS, kept_out=True)) for name in HELD_OUT}
    texts = {name: rows for name, rows in texts.items() if rows}
    harmless = {name: _judged(guard, rows).figures() for name, rows in texts.items()}
    harmless[HELD_OUT_TOGETHER] = _judged(guard, [row for rows in texts.values() for row in rows]).figures()
    return ResponseFigures(bundle_id=guard.bundle_id, threshold=guard.threshold, sets=sets, harmless=harmless)


def response_page(bundle: Bundle, figures: CardFigures) -> str:
    """The card, as Markdown with front matter."""
    found = figures.response
    counts = card_page.counts_of(bundle)
    front = card_page.front_matter("mlpm-guard-default-response", bundle, counts, found.sets)
    header = ["set", "harmful / harmless", "F1", "average precision", "recall", "harmless flagged"]
    sets = [
        [
            card_tables.TITLES.get(name, name),
            f"{each.unsafe:,} / {each.safe:,}",
            *map(card_tables.shown, (each.f1, each.average_precision, each.recall, each.flagged)),
        ]
        for name, each in found.sets.items()
    ]
    outside = "" if figures.outside is None else f"\n{card_outside.answers_section(figures.outside)}\n"
    harmless = [[name, f"{each.safe:,}", card_tables.shown(each.flagged)] for name, each in found.harmless.items()]
    return f"""{front}
# default-response: the response guard of mlpm-guard

Reads an assistant's answer, alone and in windows, and says how likely it is that it does something harmful. Made to stand
behind a model, with or without the prompt guard before it. It is a start, not a finished moderator: fit one on answers of your
own models, and read the figures below first.

```python
from mlpm_guard import Guard

moderator = Guard.from_pretrained("default-response")
verdict = moderator.check([
    {{"role": "user", "content": "How long do I boil an egg?"}},
    {{"role": "assistant", "content": "Eight minutes for a firm yolk, six for a soft one."}},
])
print(verdict.flagged, verdict.score, verdict.threshold)
```

## Training data

{card_page.data_section(bundle, counts, "answers")}

The test sets below are other sources than the labelled answers above. Of the harmless texts, rows whose id has a SHA-1 that is
divisible by ten were held out.

## Recipe

{card_page.recipe_section(bundle)}

## Figures

{card_page.measured_by(found.bundle_id, found.threshold)}

{card_tables.markdown(header, sets)}

Held-out harmless texts, read as answers, at most {HELD_OUT_ROWS} of a source:

{card_tables.markdown(["source", "rows", "flagged"], harmless)}
{outside}
## Limits

* One of the test sets and one of the sources come from the same project, JailbreakBench.
* Both sets hold answers to harmful requests, attacks included; other answers are not measured by them but by the last table.
* The answers learned from are those of a few older models, and some labels are a model's. Other models answer differently.
* How an answer is read and the rule of the threshold were chosen with the two test sets in view.
* It judges text in the language it was fitted on, English; nothing here measures others.

## Licence

{card_page.licence_section(counts)}
"""


def _answers(data: Path, source: str) -> list[Row]:
    rows = read(data / "response" / f"{source}.jsonl.gz")
    return [Row(source, str(row["prompt"]), str(row["text"]), int(str(row["label"]))) for row in rows]


def _judged(guard: Guard, rows: Sequence[Row]) -> Judged:
    return Judged([row.label for row in rows], guard.check_batch([row.conversation for row in rows]))
