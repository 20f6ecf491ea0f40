"""How often the drift alarm cries wolf, and what it finds: simulated scores, without a model.

Log-odds are drawn from three kinds of traffic: one hump, two humps (nine in ten prompts calm), and two values only. Reference
and current sample come from the same one for the false alarms, and from one that is shifted for the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from _bench import Figure, options, report, share

from mlpm_guard.drift import LOG_ODDS_EDGES, _shift

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]

ALPHA = 0.01
TRAFFIC: dict[str, Draw] = {
    "one hump": lambda rng, n: rng.normal(-3, 2, n),
    "two humps": lambda rng, n: np.where(rng.random(n) < 0.9, rng.normal(-5, 1.5, n), rng.normal(2, 1.5, n)),
    "two values": lambda rng, n: np.where(rng.random(n) < 0.95, -3.9, 3.9),
}
SIZES = ((200, 200), (500, 500), (2000, 300), (2000, 2000))
SHIFTS = (0.25, 0.5, 1.0, 1.5)


def main() -> int:
    """Simulate and report."""
    arguments = options(__doc__).parse_args()
    repeats = 500 if arguments.quick else 10_000
    # What chance may add to a rate of exactly alpha: three standard errors of the simulation.
    slack = 3 * (ALPHA * (1 - ALPHA) / repeats) ** 0.5
    figures: list[Figure] = []
    for name, draw in TRAFFIC.items():
        for n, m in SIZES:
            rate = _alarms(draw, draw, n, m, repeats)
            figures.append(share(f"false alarms, {name}, {n} then {m}", rate, repeats, at_most=ALPHA + slack))
    hump = TRAFFIC["one hump"]
    for shift in SHIFTS:
        for m in (200, 2000):
            rate = _alarms(hump, lambda rng, count, by=shift: hump(rng, count) + by, 2000, m, repeats // 10)
            figures.append(share(f"alarms, one hump shifted by {shift / 2:g} deviations, 2000 then {m}", rate, repeats // 10))
    return report("drift", figures, quick=arguments.quick, alpha=ALPHA)


def _alarms(reference: Draw, current: Draw, n: int, m: int, repeats: int) -> float:
    rng = np.random.default_rng(0)
    raised = [_shift("score", _binned(reference(rng, n)), _binned(current(rng, m)), ALPHA).alarm for _ in range(repeats)]
    return sum(raised) / repeats


def _binned(log_odds: npt.NDArray[np.float64]) -> tuple[int, ...]:
    positions = np.searchsorted(LOG_ODDS_EDGES, log_odds, side="right")
    return tuple(np.bincount(positions, minlength=len(LOG_ODDS_EDGES) + 1).tolist())


if __name__ == "__main__":
    raise SystemExit(main())
