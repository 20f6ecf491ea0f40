"""How the command line shows verdicts, guards, evaluations and comparisons."""

from mlpm_guard.rendering.bundles import bundle_json, bundle_report, used_layers
from mlpm_guard.rendering.comparisons import calibration_report, category_report, correction_report, diff_report
from mlpm_guard.rendering.console import printable, show
from mlpm_guard.rendering.evaluations import evaluation_table, pipeline_table, suite_table
from mlpm_guard.rendering.explanations import explanation_report
from mlpm_guard.rendering.verdicts import verdict_panel

__all__ = [
    "bundle_json",
    "bundle_report",
    "calibration_report",
    "category_report",
    "correction_report",
    "diff_report",
    "evaluation_table",
    "explanation_report",
    "pipeline_table",
    "printable",
    "show",
    "suite_table",
    "used_layers",
    "verdict_panel",
]
