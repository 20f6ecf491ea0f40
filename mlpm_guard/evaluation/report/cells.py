"""Cells of the report's tables: figures with their intervals, and names that cannot leave their place."""

from __future__ import annotations

from mlpm_guard.evaluation.intervals import Interval, exact
from mlpm_guard.evaluation.page import Value

_LONGEST_TEXT = 600
_LONGEST_NAME = 80


def estimate(value: float | None, interval: Interval | None) -> Value:
    """A figure with its interval below it."""
    return Value(number(value), None if value is None or interval is None else f"{interval.low:.3f} – {interval.high:.3f}")


def share(part: int, whole: int) -> Value:
    """A share with its exact interval."""
    return estimate(part / whole if whole else None, exact(part, whole))


def signed(value: float | None, interval: Interval | None) -> Value:
    """A difference with its sign, and its interval."""
    if value is None:
        return Value("-")
    return Value(f"{value:+.3f}", None if interval is None else f"{interval.low:+.3f} to {interval.high:+.3f}")


def number(value: float | None) -> str:
    """Three decimals, or a dash where there is no figure."""
    return "-" if value is None else f"{value:.3f}"


def short(name: str) -> str:
    """A name on one line, without what could steer a terminal or reverse the reading direction."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


def cut(text: str) -> str:
    """A text on several lines, shortened."""
    shown = "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
    more = len(shown) - _LONGEST_TEXT
    return shown if more <= 0 else f"{shown[:_LONGEST_TEXT]}… ({more} more characters)"
