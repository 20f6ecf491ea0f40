"""The report's plots, as inline SVG that takes its colours from the page, so that they are legible on light and dark.

Needs matplotlib (the extra `report`), which is imported at the first plot. Matplotlib's settings are global: plots are drawn
one at a time, on its defaults, whatever the user's own are.
"""

from __future__ import annotations

import io
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mlpm_guard.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[np.float64]

MISSING = 'a report needs matplotlib, which is not installed. Install it with:\npip install "mlpm-guard[report]"'

_lock = threading.Lock()
_WIDTH, _HEIGHT = 4.6, 3.3
_MOST_POINTS = 400
_LONGEST_NAME = 32
# Colours that stand for a variable of the page's style sheet; matplotlib knows no such variables.
_INK, _FAINT, _SAFE, _UNSAFE = "#010101", "#020202", "#030303", "#040404"
_SERIES = ("#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a")
_STYLES = ("-", "--", "-.", ":")
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _SAFE: "--safe", _UNSAFE: "--unsafe"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_SERIES)
}


class Curve(NamedTuple):
    """A line with the point at which its guard works.

    Attributes:
        name: for the legend.
        x: shape (points,).
        y: shape (points,).
        point: x and y at the guard's threshold, or None.
    """

    name: str
    x: Array
    y: Array
    point: tuple[float, float] | None


class Bin(NamedTuple):
    """A group of rows of like probability: their mean, the share of unsafe among them, and that share's interval."""

    mean: float
    share: float
    low: float
    high: float


def require() -> None:
    """Find out early whether plots can be drawn.

    Raises:
        ConfigurationError: matplotlib is not installed; the message holds the line that installs it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigurationError(MISSING) from None


def curves(lines: Sequence[Curve], *, x: str, y: str, alt: str, diagonal: bool = False) -> str:
    """Lines from 0 to 1 on both axes, a dot where each guard works."""

    def draw(axes: Axes) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=":")
        for number, line in enumerate(lines):
            colour, style = _SERIES[number % len(_SERIES)], _STYLES[number % len(_STYLES)]
            kept = _thinned(len(line.x))
            axes.plot(line.x[kept], line.y[kept], color=colour, linestyle=style, linewidth=1.6, label=_label(line.name))
            if line.point is not None:
                axes.plot(*line.point, marker="o", markersize=5, color=colour, linestyle="none")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
        _legend(axes, len(lines) > 1)

    return _svg(draw, alt)


def histogram(safe: Array, unsafe: Array, *, x: str, alt: str, threshold: float | None = None) -> str:
    """How values from 0 to 1 are distributed in each class, as shares of the class."""

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 1, 26)
        for values, colour, hatch, name in ((safe, _SAFE, "", "safe"), (unsafe, _UNSAFE, "////", "unsafe")):
            if len(values):
                shares = np.histogram(np.clip(values, 0, 1), edges)[0] / len(values)
                axes.stairs(
                    shares, edges, color=colour, fill=not hatch, alpha=None if hatch else 0.45, linewidth=1.4, label=name
                )
                if hatch:
                    axes.stairs(shares, edges, fill=True, facecolor="none", edgecolor=colour, hatch=hatch, linewidth=0)
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linewidth=1, linestyle="--", label=f"threshold {threshold:.3f}")
        axes.set(xlim=(0, 1), xlabel=x, ylabel="share of the class")
        axes.set_ylim(bottom=0)
        # The two classes pile up at the ends.
        _legend(axes, True, "upper center")

    return _svg(draw, alt)


def reliability(bins: Sequence[Bin], *, alt: str) -> str:
    """Probability against the observed share of unsafe, with intervals; the diagonal is perfect."""

    def draw(axes: Axes) -> None:
        mean, share, low, high = (np.array([getattr(each, name) for each in bins]) for name in Bin._fields)
        axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=":")
        spread = np.stack([np.maximum(share - low, 0), np.maximum(high - share, 0)])
        axes.errorbar(mean, share, yerr=spread, color=_SERIES[0], marker="o", markersize=4, linewidth=1.2, elinewidth=1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="mean probability", ylabel="observed share of unsafe")

    return _svg(draw, alt)


def bars(names: Sequence[str], groups: Sequence[tuple[str, Sequence[float]]], *, y: str, alt: str) -> str:
    """Bars from 0 to 1, one for each name, side by side for each group; NaN leaves a gap."""

    def draw(axes: Axes) -> None:
        places, width = np.arange(len(names)), 0.8 / len(groups)
        for number, (name, heights) in enumerate(groups):
            shift = (number - (len(groups) - 1) / 2) * width
            colour = _SERIES[number % len(_SERIES)]
            hatch = ("", "////", "....", "xxxx")[number % 4]
            axes.bar(places + shift, heights, width * 0.92, facecolor=colour if not hatch else "none", edgecolor=colour,
                     hatch=hatch, linewidth=1, label=_label(name))  # fmt: skip
        axes.set_xticks(places, names)
        axes.set(ylim=(0, 1.02), ylabel=y, xlabel="layer")
        _legend(axes, len(groups) > 1)

    return _svg(draw, alt)


def _svg(draw: Callable[[Axes], None], alt: str) -> str:
    """A figure as an SVG element for a page; `alt` describes it."""
    require()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _lock, _defaults():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_INK)
        axes.tick_params(colors=_INK)
        axes.grid(color=_FAINT, alpha=0.35, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(_INK)
        content = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=empty)
    return _inlined(content.getvalue(), alt)


@contextmanager
def _defaults() -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mlpm-guard",
        "font.size": 10,
        "hatch.linewidth": 0.8,
        "text.usetex": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def _inlined(svg: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    # A style element would apply to the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Several plots share a page: their ids must differ, and a page has no use for most of them.
    mark = f"p{zlib.crc32((alt + svg).encode()):08x}"
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{mark}-", svg)
    svg = re.sub(r"font-family: [^;\"]+; ?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(
        r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>",
        lambda found: f'<svg class="plot" viewBox="{found[1]}" role="img" aria-label="{escape(alt)}">',
        svg,
        count=1,
    )


def _thinned(count: int) -> npt.NDArray[np.intp]:
    """Positions of at most `_MOST_POINTS` points, spread evenly, both ends included."""
    if count <= _MOST_POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, _MOST_POINTS).round().astype(np.intp))


def _label(name: str) -> str:
    """A name as matplotlib shows it unchanged: no mathematics, and not hidden."""
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return short.replace("$", r"\$").lstrip("_") or "-"


def _legend(axes: Axes, wanted: bool, place: Literal["best", "upper center"] = "best") -> None:
    if wanted:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9, loc=place)
