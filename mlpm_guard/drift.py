"""Drift: is the traffic of today still that of the calibration? Keeps histograms of scores and novelty, never text.

A `DriftMonitor` counts verdicts in fixed bins, so that monitors of many threads, processes and days add up exactly. Imports
errors and verdicts only; numpy and scipy when two monitors are compared.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.verdict import Target, Verdict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Counts = npt.NDArray[np.float64]

LOG_ODDS_EDGES = tuple(-8.0 + 0.25 * step for step in range(65))
"""Edges of the bins of scores, in nats of log-odds; a first and a last bin, open outwards, hold the rest."""

NOVELTY_BINS = 50
"""Equally wide bins of the novelty percentile."""

MATERIAL = 0.1
"""Population stability index from which a shift counts as moderate (Siddiqi, "Credit Risk Scorecards", 2006)."""

FEWEST = 200
"""Scores that a monitor needs to be compared: with fewer, the index exceeds its approximate distribution too often."""

_GROUPS = 10

_Count = Annotated[int, Field(ge=0)]


class Shift(BaseModel):
    """How far one quantity has moved between two monitors.

    Attributes:
        quantity: "score" or "novelty".
        reference: values that the reference monitor holds.
        current: values that the compared monitor holds.
        psi: population stability index, the sum of (q - p) ln(q / p) over groups of bins, p the reference's shares, q the
            current ones.
        psi_limit: what the index must reach for an alarm: the larger of `material` and what about a share `alpha` of
            comparisons reaches without any shift.
        ks: largest distance of the two cumulative histograms (two-sample Kolmogorov-Smirnov statistic on binned data).
        ks_p: its asymptotic p-value. Binning makes it larger than that of the unbinned test, never smaller.
        alarm: whether the index reached its limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: Literal["score", "novelty"]
    reference: int
    current: int
    psi: float
    psi_limit: float
    ks: float
    ks_p: float
    alarm: bool


class Drift(BaseModel):
    """What a comparison of two monitors found.

    Attributes:
        score: shift of the scores.
        novelty: shift of the novelty percentiles; None where one of the monitors has too few.
        flagged: share of judged texts that were flagged, in the reference and now.
        errors: share of texts that could not be judged, in the reference and now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Shift
    novelty: Shift | None
    flagged: tuple[float, float]
    errors: tuple[float, float]

    @property
    def alarm(self) -> bool:
        """Whether the scores or the novelty have shifted."""
        return self.score.alarm or (self.novelty is not None and self.novelty.alarm)


class _State(BaseModel):
    """What a monitor holds, and its JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    guard: tuple[str | None, Target] | None
    flagged: _Count
    errors: _Count
    scores: tuple[_Count, ...] = Field(min_length=len(LOG_ODDS_EDGES) + 1, max_length=len(LOG_ODDS_EDGES) + 1)
    novelty: tuple[_Count, ...] = Field(min_length=NOVELTY_BINS, max_length=NOVELTY_BINS)


class _Bins(NamedTuple):
    score: int | None
    novelty: int | None


class DriftMonitor:
    """Counts verdicts of one guard, to tell later whether its traffic has changed.

    Holds numbers of verdicts per bin of score and novelty, and nothing else of them: no text, no time, no order. Safe to share
    between threads; picklable, so that worker processes can hand theirs back. Monitors of parts add up to the monitor of the
    whole, exactly and in any order.

    Args:
        verdicts: counted at once; more are counted with `add`.
    """

    def __init__(self, verdicts: Iterable[Verdict] = ()) -> None:
        self._lock = threading.Lock()
        self._guard: tuple[str | None, Target] | None = None
        self._flagged = 0
        self._errors = 0
        self._scores = [0] * (len(LOG_ODDS_EDGES) + 1)
        self._novelty = [0] * NOVELTY_BINS
        for verdict in verdicts:
            self.add(verdict)

    def __len__(self) -> int:
        """Verdicts counted, those without a score included."""
        with self._lock:
            return sum(self._scores) + self._errors

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} verdicts)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DriftMonitor) and self._state() == other._state()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_json, (self.to_json(),)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict.

        Raises:
            DataError: it is of another guard than those before: scores of two guards make no common histogram.
        """
        bins, guard = _binned(verdict), (verdict.bundle_id, verdict.target)
        with self._lock:
            if self._guard is None:
                self._guard = guard
            elif self._guard != guard:
                raise _other_guard(self._guard, guard)
            if bins.score is None:
                self._errors += 1
            else:
                self._scores[bins.score] += 1
                self._flagged += verdict.flagged
            if bins.novelty is not None:
                self._novelty[bins.novelty] += 1

    def merge(self, *others: DriftMonitor) -> Self:
        """A new monitor of everything that this one and the others have counted; they stay as they are.

        Raises:
            DataError: they counted verdicts of different guards.
        """
        states = [self._state(), *(other._state() for other in others)]
        guards = [state.guard for state in states if state.guard is not None]
        for guard in guards:
            if guard != guards[0]:
                raise _other_guard(guards[0], guard)
        return self._of(
            _State(
                guard=guards[0] if guards else None,
                flagged=sum(state.flagged for state in states),
                errors=sum(state.errors for state in states),
                scores=tuple(map(sum, zip(*(state.scores for state in states), strict=True))),
                novelty=tuple(map(sum, zip(*(state.novelty for state in states), strict=True))),
            )
        )

    def to_json(self) -> str:
        """The counts as JSON, for `from_json`."""
        return self._state().model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A monitor from what `to_json` gave.

        Raises:
            DataError: it is something else; says what is wrong where.
        """
        try:
            state = _State.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise DataError(f"not the JSON of a drift monitor: {where}: {first['msg']}") from None
        if state.flagged > sum(state.scores):
            raise DataError("not the JSON of a drift monitor: flagged: more than there are scores")
        return cls._of(state)

    def compare(self, reference: DriftMonitor, *, alpha: float = 0.01, material: float = MATERIAL) -> Drift:
        """How far this traffic has moved from the reference's, and whether that is cause for an alarm.

        The bins are joined into about ten groups that the reference fills equally. Without any shift the population stability
        index over B groups is approximately (1/n + 1/m) times chi-squared distributed with B - 1 degrees of freedom (Yurdakul
        & Naranjo, "Statistical properties of the population stability index", J. Risk Model Validation 14(4), 2020). The alarm
        needs an index that is beyond that distribution's upper `alpha` and that also matters (`material`), so that small
        samples do not cry wolf and large ones do not report the immaterial. The Kolmogorov-Smirnov distance is told beside it.

        Args:
            reference: what the traffic should be like: verdicts of the same guard, on the calibration prompts say.
            alpha: largest share of false alarms, per quantity, in (0, 1).
            material: index below which a shift does not matter, at least 0; 0 reports whatever is not chance.

        Raises:
            ConfigurationError: `alpha` is not in (0, 1), or `material` is negative.
            DataError: a monitor holds fewer than `FEWEST` scores, or they are of different guards.
        """
        if not (isinstance(alpha, (int, float)) and 0.0 < alpha < 1.0):
            raise ConfigurationError(f"alpha={alpha!r}: a share above 0 and below 1")
        if not (isinstance(material, (int, float)) and 0.0 <= material < math.inf):
            raise ConfigurationError(f"material={material!r}: a population stability index, at least 0")
        then, now = reference._state(), self._state()
        for name, state in (("reference", then), ("compared", now)):
            if sum(state.scores) < FEWEST:
                raise DataError(f"the {name} monitor holds {sum(state.scores)} scores; at least {FEWEST} are needed to compare")
        if then.guard != now.guard:
            assert then.guard is not None
            assert now.guard is not None
            raise _other_guard(then.guard, now.guard)
        novel = min(sum(then.novelty), sum(now.novelty)) >= FEWEST
        return Drift(
            score=_shift("score", then.scores, now.scores, alpha, material),
            novelty=_shift("novelty", then.novelty, now.novelty, alpha, material) if novel else None,
            flagged=(then.flagged / sum(then.scores), now.flagged / sum(now.scores)),
            errors=(then.errors / (then.errors + sum(then.scores)), now.errors / (now.errors + sum(now.scores))),
        )

    def _state(self) -> _State:
        with self._lock:
            return _State.model_construct(
                schema_version=1,
                guard=self._guard,
                flagged=self._flagged,
                errors=self._errors,
                scores=tuple(self._scores),
                novelty=tuple(self._novelty),
            )

    @classmethod
    def _of(cls, state: _State) -> Self:
        monitor = cls()
        monitor._guard = state.guard
        monitor._flagged, monitor._errors = state.flagged, state.errors
        monitor._scores, monitor._novelty = list(state.scores), list(state.novelty)
        return monitor


def _binned(verdict: Verdict) -> _Bins:
    novelty = None if verdict.novelty is None else min(int(verdict.novelty * NOVELTY_BINS), NOVELTY_BINS - 1)
    if verdict.score is None:
        return _Bins(None, novelty)
    score = verdict.score
    if score <= 0.0:
        return _Bins(0, novelty)
    if score >= 1.0:
        return _Bins(len(LOG_ODDS_EDGES), novelty)
    log_odds = math.log(score) - math.log1p(-score)
    step = LOG_ODDS_EDGES[1] - LOG_ODDS_EDGES[0]
    return _Bins(min(max(math.floor((log_odds - LOG_ODDS_EDGES[0]) / step) + 1, 0), len(LOG_ODDS_EDGES)), novelty)


def _shift(
    quantity: Literal["score", "novelty"], then: tuple[int, ...], now: tuple[int, ...], alpha: float, material: float = MATERIAL
) -> Shift:
    import numpy as np
    from scipy.stats import chi2, kstwobign

    reference, current = np.array(then, np.float64), np.array(now, np.float64)
    n, m = float(reference.sum()), float(current.sum())
    starts = _groups(reference / n)
    # Half a count everywhere, so that an empty group has a logarithm (Jeffreys' prior).
    p = np.add.reduceat(reference, starts) + 0.5
    q = np.add.reduceat(current, starts) + 0.5
    p, q = p / p.sum(), q / q.sum()
    psi = float(((q - p) * np.log(q / p)).sum())
    noise = (1 / n + 1 / m) * float(chi2.isf(alpha, len(starts) - 1)) if len(starts) > 1 else 0.0
    ks = float(np.abs(np.cumsum(reference) / n - np.cumsum(current) / m).max())
    limit = max(material, noise)
    return Shift(
        quantity=quantity,
        reference=int(n),
        current=int(m),
        psi=psi,
        psi_limit=limit,
        ks=ks,
        ks_p=float(kstwobign.sf(ks * math.sqrt(n * m / (n + m)))),
        alarm=0.0 < psi >= limit,
    )


def _groups(shares: Counts) -> list[int]:
    """First bins of the groups. A bin that fills a group alone stands alone, so that what leaves it is seen on both sides."""
    full = 1 / _GROUPS
    starts, filled = [0], 0.0
    for position, share in enumerate(shares.tolist()):
        if position and (filled >= full or (share >= full and starts[-1] != position)):
            starts.append(position)
            filled = 0.0
        filled += share
    return starts


def _other_guard(one: tuple[str | None, Target], other: tuple[str | None, Target]) -> DataError:
    names = [f"{'a guard that was not saved' if bundle is None else bundle} ({target})" for bundle, target in (one, other)]
    return DataError(f"verdicts of two guards, {names[0]} and {names[1]}; keep one monitor for each guard")
