"""Sections of the report that are drawn: curves, histograms, reliability, layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from mlpm_guard.evaluation import plots
from mlpm_guard.evaluation.judged import Judged
from mlpm_guard.evaluation.page import Page
from mlpm_guard.evaluation.report.cells import short
from mlpm_guard.evaluation.report.figures import BINS, both, by_layer, reliability_bins
from mlpm_guard.prototypes.calibration import expected_calibration_error


def ranking(page: Page, results: Sequence[Judged]) -> None:
    """ROC and precision-recall curves, with a dot where each guard works."""
    unsafe = results[0].rows.unsafe
    if not both(unsafe):
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
        name = short(each.name)
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


def distributions(page: Page, results: Sequence[Judged]) -> None:
    """Histograms of scores and, where it was measured, of novelty, by class."""
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
                alt=f"histogram of scores by class, {short(each.name)}",
            )
            drawn.append((short(each.name), "", svg))
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
                    short(each.name),
                    "",
                    plots.histogram(
                        each.novelty[measured & ~unsafe],
                        each.novelty[measured & unsafe],
                        x="novelty",
                        alt=f"histogram of novelty by class, {short(each.name)}",
                    ),
                )
                for each, measured in known
            ]
        )


def reliability(page: Page, results: Sequence[Judged]) -> None:
    """Whether probabilities are true."""
    unsafe = results[0].rows.unsafe
    if not both(unsafe):
        return
    drawn = []
    for each in results:
        judged = ~np.isnan(each.scores)
        if not judged.any():
            continue
        error = expected_calibration_error(each.scores[judged], unsafe[judged], BINS)
        svg = plots.reliability(
            reliability_bins(each.scores[judged], unsafe[judged]), alt=f"reliability diagram, {short(each.name)}"
        )
        drawn.append((short(each.name), f"expected calibration error {error:.3f}", svg))
    if drawn:
        page.heading("Reliability")
        page.paragraph(
            f"Whether a probability is true: {BINS} groups of equally many rows, exact intervals; the diagonal is perfect. "
            "A share of unsafe rows other than that of the calibration moves the curve.",
            note=True,
        )
        page.plots(drawn)


def layers(page: Page, results: Sequence[Judged]) -> None:
    """How well each used layer ranks alone."""
    unsafe = results[0].rows.unsafe
    found = [(short(each.name), by_layer(each)) for each in results]
    layers = sorted({layer for _, precisions in found for layer in precisions})
    if not layers or not both(unsafe):
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
