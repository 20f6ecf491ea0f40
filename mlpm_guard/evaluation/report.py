"""The evaluation report: one HTML file with curves, tables and mistakes of one or more guards on the same rows.

Shows ids, sources and categories of rows; their text only where it was kept on purpose (`collect(keep_text=True)`).
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from mlpm_guard.errors import ConfigurationError, ReportSaveError
from mlpm_guard.evaluation import plots
from mlpm_guard.evaluation.intervals import CONFIDENCE, REPEATS, SEED, Interval, exact, percentile, replicates
from mlpm_guard.evaluation.judged import EXAMPLES, Flags, Judged, Mistake
from mlpm_guard.evaluation.metrics import Name
from mlpm_guard.evaluation.page import Cell, Page, Value
from mlpm_guard.prototypes.calibration import expected_calibration_error

Array = npt.NDArray[np.float64]

_BINS = 10
_MOST_GROUPS = 60
_LONGEST_TEXT = 600
_LONGEST_NAME = 80
_COLUMNS = ("precision", "recall", "F1", "average precision", "recall at 1 % FP", "recall at 5 % FP", "false positives")


def report(results: Sequence[Judged], *, files: Sequence[str] = (), show_text: bool = False) -> str:
    """The report as an HTML document that needs nothing else.

    Args:
        results: what `collect` gave: one or more guards on the same rows.
        files: names of the files that the rows are from.
        show_text: show the text of mistakes, where it was kept.

    Raises:
        ConfigurationError: there are no results, they are of different rows, or matplotlib is not installed.
    """
    if not results:
        raise ConfigurationError("a report needs the results of at least one guard")
    if any(each.rows is not results[0].rows for each in results):
        raise ConfigurationError("these results are of different rows; collect them together")
    plots.require()
    page = Page(f"Guard evaluation: {', '.join(_short(each.name) for each in results)}")
    _header(page, results, files)
    _overall(page, results)
    if len(results) > 1:
        _differences(page, results)
    _ranking(page, results)
    _distributions(page, results)
    _reliability(page, results)
    _layers(page, results)
    _sources(page, results)
    _categories(page, results)
    _named_categories(page, results)
    _cost(page, results)
    _mistakes(page, results, show_text)
    return page.html()


def check_writable(path: str | Path) -> Path:
    """Find out before an evaluation whether its report can be written.

    Returns:
        The path.

    Raises:
        ReportSaveError: the folder does not exist or cannot be written, or the path is a folder.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise ReportSaveError(f"{target} is a folder; name the file that the report goes into")
    if not target.parent.is_dir():
        raise ReportSaveError(f"{target.parent}: no such folder; create it, or choose another path for the report")
    try:
        # Asked of the file system itself, because permissions alone do not tell of one that is mounted read-only.
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def save_report(path: str | Path, html: str) -> Path:
    """Write a report, whole or not at all.

    Returns:
        The path.

    Raises:
        ReportSaveError: it cannot be written; what was there before is untouched.
    """
    target = check_writable(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.saving")
    try:
        with temporary.open("x", encoding="utf-8", errors="replace") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _unwritable(target: Path, error: OSError) -> ReportSaveError:
    return ReportSaveError(
        f"cannot write the report to {target} ({error.strerror or type(error).__name__}); choose another path"
    )


# -- sections -----------------------------------------------------------------------------------------------------------------


def _header(page: Page, results: Sequence[Judged], files: Sequence[str]) -> None:
    from mlpm_guard import __version__

    rows = results[0].rows
    unsafe = int(rows.unsafe.sum())
    data = f" From {', '.join(_short(name) for name in files)}." if files else ""
    page.paragraph(f"{len(rows.unsafe)} rows, {unsafe} labelled unsafe and {len(rows.unsafe) - unsafe} safe.{data}")
    page.table(
        ("guard", "bundle", "encoder", "judges", "threshold", "not judged"),
        [
            (
                _short(each.name),
                _short(each.bundle_id or "not saved"),
                _short(each.encoder),
                each.target,
                f"{each.threshold:.4f}",
                str(int(np.isnan(each.scores).sum())),
            )
            for each in results
        ],
        text=(0, 1, 2, 3),
    )
    page.paragraph(
        f"Written by mlpm-guard {__version__} on {datetime.now(UTC):%Y-%m-%d}. Rows that could not be judged count as flagged, "
        f"and rank above all others. Small figures are {CONFIDENCE:.0%} confidence intervals: exact ones (Clopper-Pearson) for "
        f"recall and false positives, the percentile bootstrap for the rest ({REPEATS} resamples within each class, seed "
        f"{SEED}). They cover chance in the choice of rows, not a change of traffic.",
        note=True,
    )


def _overall(page: Page, results: Sequence[Judged]) -> None:
    page.heading("Overall")
    page.table(("guard", *_COLUMNS), [(_short(each.name), *_figures(each)) for each in results])


def _differences(page: Page, results: Sequence[Judged]) -> None:
    first = results[0]
    unsafe = first.rows.unsafe
    if not _both(unsafe):
        return
    page.heading(f"Difference from {_short(first.name)}")
    page.paragraph(
        "The same rows are drawn for both guards, so an interval that does not hold 0 is no chance of the rows.", note=True
    )
    base = replicates(unsafe, first.ranks, _flagged(first))
    base_metrics = first.metrics()
    shown: tuple[tuple[str, Name], ...] = (
        ("F1", "f1"),
        ("average precision", "average_precision"),
        ("recall at 1 % FP", "recall@0.01"),
        ("recall at 5 % FP", "recall@0.05"),
    )
    rows: list[list[Cell]] = []
    for each in results[1:]:
        drawn, metrics = replicates(unsafe, each.ranks, _flagged(each)), each.metrics()
        cells: list[Cell] = [_short(each.name)]
        for _, name in shown:
            one, other = metrics.figure(name), base_metrics.figure(name)
            change = None if one is None or other is None else one - other
            cells.append(_signed(change, percentile(drawn[name] - base[name])))
        changed = int((each.flagged != first.flagged).sum())
        rows.append([*cells, f"{changed} of {len(unsafe)}"])
    page.table(("guard", *(title for title, _ in shown), "judged differently"), rows)


def _ranking(page: Page, results: Sequence[Judged]) -> None:
    unsafe = results[0].rows.unsafe
    if not _both(unsafe):
        page.paragraph("Curves, reliability and average precision need both safe and unsafe rows; there is one class only.")
        return
    page.heading("Ranking")
    page.paragraph("Dots are the guards at their thresholds.", note=True)
    roc, precision_recall = [], []
    for each in results:
        metrics = each.metrics()
        false_positives, recall, _ = roc_curve(unsafe, each.ranks)
        assert metrics.recall is not None
        assert metrics.false_positive_rate is not None
        name = _short(each.name)
        roc.append(plots.Curve(name, false_positives, recall, (metrics.false_positive_rate, metrics.recall)))
        precision, caught, _ = precision_recall_curve(unsafe, each.ranks, drop_intermediate=True)
        point = None if metrics.precision is None else (metrics.recall, metrics.precision)
        precision_recall.append(plots.Curve(name, caught[::-1], precision[::-1], point))
    share = float(unsafe.mean())
    page.plots(
        [
            (
                "ROC",
                "what is caught against what is flagged for nothing",
                plots.curves(roc, x="false-positive rate", y="recall", alt="ROC curve of each guard", diagonal=True),
            ),
            (
                "Precision and recall",
                f"a share of {share:.0%} is unsafe here; precision depends on it",
                plots.curves(precision_recall, x="recall", y="precision", alt="precision-recall curve of each guard"),
            ),
        ]
    )


def _distributions(page: Page, results: Sequence[Judged]) -> None:
    unsafe = results[0].rows.unsafe
    page.heading("Scores")
    drawn = []
    for each in results:
        judged = ~np.isnan(each.scores)
        if judged.any():
            svg = plots.histogram(
                each.scores[judged & ~unsafe],
                each.scores[judged & unsafe],
                x="score",
                threshold=each.threshold,
                alt=f"histogram of scores by class, {_short(each.name)}",
            )
            drawn.append((_short(each.name), "", svg))
    if drawn:
        page.plots(drawn)
    else:
        page.paragraph("No row could be judged.")
    novel = [each for each in results if not np.isnan(each.novelty).all()]
    if novel:
        page.heading("Novelty", 3)
        page.paragraph("How unlike the training prompts, as a percentile: 1 is the most unlike.", note=True)
        known = [(each, ~np.isnan(each.novelty)) for each in novel]
        page.plots(
            [
                (
                    _short(each.name),
                    "",
                    plots.histogram(
                        each.novelty[measured & ~unsafe],
                        each.novelty[measured & unsafe],
                        x="novelty",
                        alt=f"histogram of novelty by class, {_short(each.name)}",
                    ),
                )
                for each, measured in known
            ]
        )


def _reliability(page: Page, results: Sequence[Judged]) -> None:
    unsafe = results[0].rows.unsafe
    if not _both(unsafe):
        return
    drawn = []
    for each in results:
        judged = ~np.isnan(each.scores)
        if not judged.any():
            continue
        error = expected_calibration_error(each.scores[judged], unsafe[judged], _BINS)
        svg = plots.reliability(
            _reliability_bins(each.scores[judged], unsafe[judged]), alt=f"reliability diagram, {_short(each.name)}"
        )
        drawn.append((_short(each.name), f"expected calibration error {error:.3f}", svg))
    if drawn:
        page.heading("Reliability")
        page.paragraph(
            f"Whether a probability is true: {_BINS} groups of equally many rows, exact intervals; the diagonal is perfect. "
            "A share of unsafe rows other than that of the calibration moves the curve.",
            note=True,
        )
        page.plots(drawn)


def _layers(page: Page, results: Sequence[Judged]) -> None:
    unsafe = results[0].rows.unsafe
    found = [(_short(each.name), _by_layer(each)) for each in results]
    layers = sorted({layer for _, precisions in found for layer in precisions})
    if not layers or not _both(unsafe):
        return
    page.heading("Layers")
    page.paragraph(
        "Average precision of each used layer's log-odds alone, read at the window that decided the verdict.", note=True
    )
    groups = [(name, [precisions.get(layer, float("nan")) for layer in layers]) for name, precisions in found]
    names = [str(layer) for layer in layers]
    page.plots(
        [("Average precision by layer", "", plots.bars(names, groups, y="average precision", alt="average precision by layer"))]
    )
    page.table(
        ("guard", *(f"layer {name}" for name in names)),
        [(name, *("-" if np.isnan(value) else f"{value:.3f}" for value in values)) for name, values in groups],
    )


def _sources(page: Page, results: Sequence[Judged]) -> None:
    rows = results[0].rows
    groups, hidden = _by_name(rows.sources)
    if len(groups) + hidden < 2:
        return
    page.heading("Sources")
    several = len(results) > 1
    lines: list[list[Cell]] = []
    for name, which in groups:
        counts = [str(int(which.sum())), str(int(rows.unsafe[which].sum()))]
        for each in results:
            # A source's name and counts stand once, before the first guard.
            first = each is results[0]
            lines.append(
                [
                    _short(name) if first else "",
                    *([_short(each.name)] if several else []),
                    *(counts if first else ("", "")),
                    *_figures(each, which),
                ]
            )
    page.table(
        ("source", *(["guard"] if several else []), "rows", "unsafe", *_COLUMNS), lines, text=(0, 1) if several else (0,)
    )
    _more(page, hidden)


def _categories(page: Page, results: Sequence[Judged]) -> None:
    """Recall and false positives by labelled category; its rows are mostly of one class, where nothing else is defined."""
    rows = results[0].rows
    groups, hidden = _by_name(rows.categories)
    if not groups:
        return
    page.heading("Categories as labelled")
    lines: list[list[Cell]] = []
    for name, which in groups:
        unsafe, safe = which & rows.unsafe, which & ~rows.unsafe
        line: list[Cell] = [_short(name), str(int(which.sum())), str(int(unsafe.sum()))]
        for each in results:
            flagged = _flagged(each)
            line += [_share(int(flagged[part].sum()), int(part.sum())) for part in (unsafe, safe)]
        lines.append(line)
    behind = [f", {_short(each.name)}" if len(results) > 1 else "" for each in results]
    titles = [title + name for name in behind for title in ("recall", "false positives")]
    page.table(("category", "rows", "unsafe", *titles), lines)
    _more(page, hidden)


def _by_name(column: npt.NDArray[np.object_]) -> tuple[list[tuple[str, Flags]], int]:
    """The rows of every name in a column, and how many further names there are."""
    names = sorted({str(name) for name in column.tolist() if name is not None})
    positions = {name: position for position, name in enumerate(names)}
    codes = np.array([-1 if name is None else positions[str(name)] for name in column.tolist()])
    return [(name, codes == positions[name]) for name in names[:_MOST_GROUPS]], max(0, len(names) - _MOST_GROUPS)


def _more(page: Page, hidden: int) -> None:
    if hidden:
        page.paragraph(f"{hidden} more are not shown.", note=True)


def _named_categories(page: Page, results: Sequence[Judged]) -> None:
    """How well verdicts name categories, where they do."""
    rows = results[0].rows
    for each in results:
        labelled = sorted({str(name) for name in rows.categories.tolist() if name is not None} & set(each.categories))
        if not labelled:
            continue
        page.heading(f"Categories as named by {_short(each.name)}")
        page.paragraph(
            "Of the unsafe rows of a category: how many verdicts name it, and how well its probability ranks its rows above "
            "all other rows, and above the other unsafe rows.",
            note=True,
        )
        lines: list[list[Cell]] = []
        for name in labelled:
            truth = (rows.categories == name) & rows.unsafe
            if not truth.any():
                continue
            probability = each.category_probabilities[:, each.categories.index(name)]
            known = ~np.isnan(probability)
            right = int((truth & (each.named == name)).sum())
            lines.append(
                [
                    _short(name),
                    str(int(truth.sum())),
                    _share(right, int(truth.sum())),
                    _number(_precision(truth[known], probability[known])),
                    _number(_precision(truth[known & rows.unsafe], probability[known & rows.unsafe])),
                ]
            )
        page.table(("category", "unsafe rows", "named", "AP over all", "AP over unsafe"), lines)


def _cost(page: Page, results: Sequence[Judged]) -> None:
    page.heading("Cost")
    first = results[0].cost
    page.paragraph(
        f"Measured during this evaluation, on this machine ({os.cpu_count()} processors), whatever else ran on it: in batches "
        f"of {first.batch_size} over all rows, and one by one on {first.sampled} of them.",
        note=True,
    )
    page.table(
        ("guard", "ms a prompt, batched", "prompts a second, batched", "ms alone, median", "ms alone, 95th percentile"),
        [
            (
                _short(each.name),
                f"{each.cost.batched * 1e3:.2f}",
                f"{1 / each.cost.batched:.0f}" if each.cost.batched > 0 else "-",
                f"{each.cost.alone * 1e3:.2f}",
                f"{each.cost.alone_slow * 1e3:.2f}",
            )
            for each in results
        ],
    )


def _mistakes(page: Page, results: Sequence[Judged], show_text: bool) -> None:
    page.heading("Mistakes")
    unsafe = results[0].rows.unsafe
    for each in results:
        missed, alarms = int((unsafe & ~each.flagged).sum()), int((~unsafe & each.flagged).sum())
        for what, count, worst in (
            (f"unsafe and passed by {_short(each.name)}", missed, each.missed),
            (f"safe and flagged by {_short(each.name)}", alarms, each.false_alarms),
        ):
            page.heading(f"{count} {what}", 3)
            if not worst:
                continue
            if count > len(worst):
                page.paragraph(f"The {EXAMPLES} worst:", note=True)
            texts = show_text and any(mistake.text is not None for mistake in worst)
            named = any(mistake.named is not None for mistake in worst)
            columns = ["row", "score", *(["text"] if texts else []), "category", *(["named"] if named else []), "source"]
            page.table(
                columns,
                [_mistake(mistake, named, texts) for mistake in worst],
                text=[position for position, name in enumerate(columns) if name != "score"],
            )


# -- figures ------------------------------------------------------------------------------------------------------------------


def _figures(each: Judged, which: Flags | None = None) -> list[Cell]:
    """Cells for `_COLUMNS`."""
    chosen = np.ones(len(each.scores), bool) if which is None else which
    metrics, unsafe, flagged = each.metrics(chosen), each.rows.unsafe[chosen], _flagged(each)[chosen]
    ends: dict[Name, Interval | None] = {}
    if _both(unsafe):
        ends = {name: percentile(values) for name, values in replicates(unsafe, each.ranks[chosen], flagged).items()}
    return [
        _estimate(metrics.precision, ends.get("precision")),
        _share(int((unsafe & flagged).sum()), int(unsafe.sum())),
        _estimate(metrics.f1, ends.get("f1")),
        _estimate(metrics.average_precision, ends.get("average_precision")),
        _estimate(metrics.recall_at_fpr["0.01"], ends.get("recall@0.01")),
        _estimate(metrics.recall_at_fpr["0.05"], ends.get("recall@0.05")),
        _share(int((~unsafe & flagged).sum()), int((~unsafe).sum())),
    ]


def _reliability_bins(scores: Array, unsafe: Flags) -> list[plots.Bin]:
    """The groups that `expected_calibration_error` averages over."""
    bins = []
    for group in np.array_split(np.argsort(scores, kind="stable"), min(_BINS, len(scores))):
        ends = exact(int(unsafe[group].sum()), len(group))
        assert ends is not None
        bins.append(plots.Bin(float(scores[group].mean()), float(unsafe[group].mean()), *ends))
    return bins


def _by_layer(each: Judged) -> dict[int, float]:
    found = {}
    for position, layer in enumerate(each.layers):
        values = each.layer_log_odds[:, position]
        known = ~np.isnan(values)
        precision = _precision(each.rows.unsafe[known], values[known])
        if precision is not None:
            found[layer] = precision
    return found


def _precision(truth: Flags, values: Array) -> float | None:
    return float(average_precision_score(truth, values)) if _both(truth) else None


def _flagged(each: Judged) -> Flags:
    # As in `Metrics`: a row that could not be judged counts as flagged.
    return each.flagged | np.isnan(each.scores)


def _both(unsafe: Flags) -> bool:
    return bool(unsafe.any() and not unsafe.all())


# -- cells --------------------------------------------------------------------------------------------------------------------


def _mistake(mistake: Mistake, named: bool, texts: bool) -> list[Cell]:
    return [
        _short(mistake.row),
        "not judged" if mistake.score is None else f"{mistake.score:.3f}",
        *([_cut(mistake.text or "")] if texts else []),
        _short(mistake.category or "-"),
        *([_short(mistake.named or "-")] if named else []),
        _short(mistake.source),
    ]


def _estimate(value: float | None, interval: Interval | None) -> Value:
    return Value(_number(value), None if value is None or interval is None else f"{interval.low:.3f} – {interval.high:.3f}")


def _share(part: int, whole: int) -> Value:
    return _estimate(part / whole if whole else None, exact(part, whole))


def _signed(value: float | None, interval: Interval | None) -> Value:
    if value is None:
        return Value("-")
    return Value(f"{value:+.3f}", None if interval is None else f"{interval.low:+.3f} – {interval.high:+.3f}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(name: str) -> str:
    """A name on one line, without what could steer a terminal or reverse the reading direction."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


def _cut(text: str) -> str:
    shown = "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
    more = len(shown) - _LONGEST_TEXT
    return shown if more <= 0 else f"{shown[:_LONGEST_TEXT]}… ({more} more characters)"
