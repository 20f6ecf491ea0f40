"""Markdown of the cards: figures with their intervals, and tables of them. Pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mlpm_guard.bundles.card_figures import (
    ALL_HARMFUL,
    ALL_HARMLESS,
    EVERYDAY_TOGETHER,
    QUESTIONS_TOGETHER,
    CardFigures,
    Figure,
    GuardFigures,
    SetFigures,
)
from mlpm_guard.bundles.card_sets import COPYRIGHT, EVERYDAY, QUESTIONS, STANDARD, TRANSLATED
from mlpm_guard.bundles.card_sources import find
from mlpm_guard.evaluation.robustness import CLEAN, Cell, table
from mlpm_guard.evaluation.suites import SUITES

SHIPPED, REFERENCE = "shipped", "reference"

TITLES = {
    "aegis_test": "Aegis 1.0 test",
    "xstest": "XSTest v2",
    STANDARD: "HarmBench, standard behaviours",
    COPYRIGHT: "HarmBench, requests for copyrighted text",
    "simple_safety_tests": "SimpleSafetyTests",
    "mt_vicuna_bench": "MT-Bench and Vicuna",
    "mmlu_sample": "MMLU sample",
    "truthfulqa": "TruthfulQA",
    "humaneval": "HumanEval",
    EVERYDAY_TOGETHER: "everyday: these four together",
    "clinc150": "CLINC150, held-out",
    "banking77": "BANKING77, held-out",
    "nq_open": "NQ-Open, held-out",
    QUESTIONS_TOGETHER: "held-out questions: these three together",
    "harmbench_resp": "HarmBench classifier set",
    "jbb_judge_comparison": "JailbreakBench judge set",
}
"""Names of sets as they stand in tables."""

_FEWEST = 20
_WEAKEST = 10


class Weakness(NamedTuple):
    """A cell of some table: what was measured, and the figure."""

    what: str
    figure: Figure


def shown(figure: Figure | None) -> str:
    """A figure and its interval; a dash where there is none."""
    return "–" if figure is None else f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[str] = ()) -> str:
    """A table; columns after the first are aligned to the right, but for those of `words`."""
    lines = [header, ["---", *("---" if name in words else "---:" for name in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def data_table(counts: Mapping[str, int]) -> str:
    """Sources, how many of their rows were learned from, their licences."""
    rows = []
    for name, count in sorted(counts.items()):
        source = find(name)
        if source is None:
            rows.append([f"`{name}`", f"{count:,}", "not recorded", "", "", ""])
        else:
            alike = "yes" if source.share_alike else ""
            rows.append([f"`{name}`", f"{count:,}", source.licence, alike, source.what, source.origin or "this project"])
    words = ["licence", "share-alike", "what", "from"]
    return markdown(["source", "rows", *words], rows, words=words)


def sets_table(shipped: Mapping[str, SetFigures], reference: Mapping[str, SetFigures]) -> str:
    """Both guards on every set, at their own thresholds."""
    rows = []
    for name, here in shipped.items():
        for who, each in ((SHIPPED, here), (REFERENCE, reference[name])):
            title = TITLES.get(name, name) if who == SHIPPED else ""
            counts = f"{each.unsafe:,} / {each.safe:,}" if who == SHIPPED else ""
            figures = (each.f1, each.average_precision, each.recall, each.flagged)
            rows.append([title, counts, who, *map(shown, figures)])
    header = ["set", "unsafe / safe", "guard", "F1", "average precision", "recall", "harmless flagged"]
    return markdown(header, rows, words=["guard"])


def curve_table(figures: CardFigures) -> str:
    """The operating curves of both guards, points beside each other."""
    columns = [
        (who, each) for pair in zip(figures.shipped.curve, figures.reference.curve, strict=True)
        for who, each in zip((SHIPPED, REFERENCE), pair, strict=True)
    ]  # fmt: skip
    header = ["everyday prompts flagged at most", *(f"{100 * each.rate:g} %, {who}" for who, each in columns)]
    rows = [
        ["threshold", *(f"{each.threshold:.4f}" for _, each in columns)],
        ["everyday, flagged", *(shown(each.everyday) for _, each in columns)],
    ]
    first = figures.shipped.curve[0]
    for what, name in [("recall", name) for name in first.recall] + [("flagged", name) for name in first.flagged]:
        if name in (EVERYDAY_TOGETHER, *EVERYDAY, *QUESTIONS):
            continue
        part = {"recall": "recall", "flagged": "harmless flagged"}[what]
        label = "held-out questions, flagged" if name == QUESTIONS_TOGETHER else f"{TITLES[name]}, {part}"
        rows.append([label, *(shown(getattr(each, what)[name]) for _, each in columns)])
    return markdown(header, rows)


def category_table(figures: CardFigures) -> str:
    """Held-out harmful rows by category."""
    rows = []
    for name, here in figures.shipped.categories.items():
        there = figures.reference.categories[name]
        rows.append([name, str(here.recall.rows), shown(here.recall), shown(here.named), shown(there.recall)])
    return markdown(["category", "rows", "recall", "of those, named so", f"recall, {REFERENCE}"], rows)


def language_table(figures: CardFigures) -> str:
    """Held-out rows of translated sources by language."""
    harmful, harmless = ({name: guard.languages[name] for name in TRANSLATED} for guard in (figures.shipped, figures.reference))
    languages = sorted({language for of in harmful.values() for language in of})
    rows = [
        [language, *(shown(guard[name].get(language)) for name in TRANSLATED for guard in (harmful, harmless))]
        for language in languages
    ]
    multijail, xquad = "recall, MultiJail", "flagged, XQuAD questions"
    header = [
        "language",
        f"{multijail}, {SHIPPED}",
        f"{multijail}, {REFERENCE}",
        f"{xquad}, {SHIPPED}",
        f"{xquad}, {REFERENCE}",
    ]
    return markdown(header, rows)


def source_table(figures: CardFigures) -> str:
    """Held-out rows by training source."""
    rows = []
    for name, here in figures.shipped.sources.items():
        there = figures.reference.sources[name]
        counts = f"{here.unsafe} / {here.safe}"
        rows.append([f"`{name}`", counts, *map(shown, (here.recall, there.recall, here.flagged, there.flagged))])
    header = ["source", "unsafe / safe"]
    return markdown([*header, "recall", f"recall, {REFERENCE}", "harmless flagged", f"harmless flagged, {REFERENCE}"], rows)


def calibration_tables(figures: CardFigures) -> str:
    """Calibration errors of both guards, and the reliability of the shipped one's scores."""
    errors = [
        [TITLES.get(name, name), str(here.rows), shown(here), shown(figures.reference.calibration[name])]
        for name, here in figures.shipped.calibration.items()
    ]
    bins = [[f"{each.score:.3f}", str(each.unsafe.rows), shown(each.unsafe)] for each in figures.shipped.reliability]
    return "\n\n".join(
        [
            markdown(["set", "rows", f"calibration error, {SHIPPED}", f"calibration error, {REFERENCE}"], errors),
            markdown(["mean score, held-out rows in ten equal parts", "rows", "share unsafe"], bins),
        ]
    )


def robustness_tables(figures: CardFigures) -> str:
    """Recall, and harmless prompts flagged, under every transformation: by set, then both guards beside each other."""
    here, there = table(figures.shipped.robustness), table(figures.reference.robustness)
    clean = here[CLEAN]
    harmful = [name for name, cell in clean.items() if cell.harmful and name != ALL_HARMFUL]
    harmless = [name for name, cell in clean.items() if not cell.harmful and name != ALL_HARMLESS]
    by_set = [
        [name, *(_recalled(row[each]) for each in harmful), *(_alarmed(row[each]) for each in harmless)]
        for name, row in here.items()
    ]
    header = [*(f"recall, {name} ({clean[name].rows})" for name in harmful)]
    header += [f"flagged, {name} ({clean[name].rows})" for name in harmless]
    together = [
        [
            name,
            *(_recalled(rows[name][ALL_HARMFUL]) for rows in (here, there)),
            *(_alarmed(rows[name][ALL_HARMLESS]) for rows in (here, there)),
        ]
        for name in here
    ]
    sides = [f"{what}, {who}" for what in ("recall", "flagged") for who in (SHIPPED, REFERENCE)]
    return "\n\n".join([markdown(["all sets together", *sides], together), markdown([f"{SHIPPED}, by set", *header], by_set)])


def published_table() -> str:
    """F1 times 100 as others published it."""
    sets = [each for suite in SUITES.values() for each in suite if each.published]
    guards = list(dict.fromkeys(name for each in sets for name in each.published))
    rows = [[guard, *(f"{each.published[guard]:.1f}" for each in sets)] for guard in guards]
    return markdown(["guard, as published by others", *(each.title for each in sets)], rows)


def trials_table(figures: CardFigures) -> str:
    """Recipes that were tried."""
    rows = [
        [name, f"{each.precision:.3f}", f"{each.change:+.3f}", f"{each.worst:+.3f}"] for name, each in figures.trials.items()
    ]
    return markdown(["recipe", "mean average precision", "change", "change of the source that lost most"], rows)


def readme_table(figures: CardFigures) -> str:
    """Both guards in a row each, for a page that has no room for more."""
    header = ["guard", "Aegis, F1 / average precision", "XSTest, F1 / average precision", "XSTest, harmless flagged"]
    header += ["HarmBench standard, recall", "SimpleSafetyTests, recall", "everyday, flagged", "held-out questions, flagged"]
    rows = []
    for name, guard in (("this bundle", figures.shipped), ("reference recipe, encoder as published", figures.reference)):
        sets = guard.sets
        scores = [(sets[each].f1, sets[each].average_precision) for each in ("aegis_test", "xstest")]
        shares = [sets["xstest"].flagged, sets[STANDARD].recall, sets["simple_safety_tests"].recall]
        shares += [sets[EVERYDAY_TOGETHER].flagged, sets[QUESTIONS_TOGETHER].flagged]
        pairs = (" / ".join("–" if one is None else f"{one.value:.3f}" for one in pair) for pair in scores)
        rows.append([f"{name}, threshold {guard.threshold:g}", *pairs, *map(shown, shares)])
    return markdown(header, rows)


def weakest(guard: GuardFigures) -> tuple[list[Weakness], list[Weakness]]:
    """The lowest recalls and the highest shares of harmless prompts flagged, of cells with enough rows, worst first."""
    cells = list(_cells(guard))
    recalls = [Weakness(what, figure) for harmful, what, figure in cells if harmful]
    alarms = [Weakness(what, figure) for harmful, what, figure in cells if not harmful]
    recalls.sort(key=lambda each: each.figure.value)
    alarms.sort(key=lambda each: -each.figure.value)
    return recalls[:_WEAKEST], alarms[:_WEAKEST]


def weakest_tables(guard: GuardFigures) -> str:
    """What `weakest` finds."""
    recalls, alarms = weakest(guard)
    parts = [("harmful, lowest recalls", "recall", recalls), ("harmless, flagged most often", "flagged", alarms)]
    return "\n\n".join(
        markdown([what, "rows", measure], [[each.what, str(each.figure.rows), shown(each.figure)] for each in of])
        for what, measure, of in parts
    )


def _cells(guard: GuardFigures) -> Iterator[tuple[bool, str, Figure]]:
    found: list[tuple[bool, str, Figure | None]] = []
    for name, each in guard.sets.items():
        found += [(True, TITLES.get(name, name), each.recall), (False, TITLES.get(name, name), each.flagged)]
    for name, each in guard.sources.items():
        found += [(True, f"held-out `{name}`", each.recall), (False, f"held-out `{name}`", each.flagged)]
    found += [(True, f"category {name}, held-out", each.recall) for name, each in guard.categories.items()]
    for harmful, source in zip((True, False), TRANSLATED, strict=True):
        found += [(harmful, f"`{source}`, language {name}", each) for name, each in guard.languages[source].items()]
    for cell in guard.robustness:
        if cell.transformation != CLEAN and cell.prompts not in (ALL_HARMFUL, ALL_HARMLESS):
            low, high = cell.interval
            figure = Figure(value=cell.share, low=low, high=high, rows=cell.rows)
            found.append((cell.harmful, f"{cell.prompts}, {cell.transformation}", figure))
    for harmful, what, each_figure in found:
        if each_figure is not None and each_figure.rows >= _FEWEST:
            yield harmful, what, each_figure


def _recalled(cell: Cell) -> str:
    text = f"{cell.share:.3f} ({cell.interval.low:.3f}–{cell.interval.high:.3f})"
    if cell.transformation == CLEAN or cell.ratio is None or cell.ratio_interval is None:
        return text
    return f"{text}; of clean {cell.ratio:.2f} ({cell.ratio_interval.low:.2f}–{cell.ratio_interval.high:.2f})"


def _alarmed(cell: Cell) -> str:
    text = f"{cell.share:.3f} ({cell.interval.low:.3f}–{cell.interval.high:.3f})"
    if cell.transformation == CLEAN:
        return text
    return f"{text}; {cell.difference:+.3f} ({cell.difference_interval.low:+.3f}–{cell.difference_interval.high:+.3f})"
