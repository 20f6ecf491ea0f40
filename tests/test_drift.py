import json
import math
import pickle
import random
import threading

import numpy as np
import pytest

from mlpm_guard.drift import FEWEST, LOG_ODDS_EDGES, MATERIAL, NOVELTY_BINS, Drift, DriftMonitor, _shift
from mlpm_guard.errors import ConfigurationError, DataError
from mlpm_guard.testing import MockGuard
from mlpm_guard.verdict import Action, Verdict


def verdict(log_odds, novelty=None, bundle_id="mine-1", target="prompt"):
    score = 1 / (1 + math.exp(-log_odds))
    flagged = score >= 0.5
    return Verdict(
        flagged=flagged,
        score=score,
        threshold=0.5,
        action=Action.BLOCK if flagged else Action.ALLOW,
        novelty=novelty,
        bundle_id=bundle_id,
        target=target,
    )


def failed(bundle_id="mine-1"):
    return Verdict(flagged=True, score=None, threshold=0.5, action=Action.BLOCK, error="empty_input", bundle_id=bundle_id)


def traffic(count, seed, shift=0.0, novel=None):
    rng = random.Random(seed)
    return [verdict(rng.gauss(-3 + shift, 2), None if novel is None else rng.random() ** novel) for _ in range(count)]


def binned(log_odds):
    return tuple(
        np.bincount(np.searchsorted(LOG_ODDS_EDGES, log_odds, side="right"), minlength=len(LOG_ODDS_EDGES) + 1).tolist()
    )


def test_monitors_of_parts_add_up_to_the_monitor_of_the_whole_in_any_order():
    verdicts = [*traffic(90, 1, novel=1.0), *[failed()] * 3]
    random.Random(0).shuffle(verdicts)
    a, b, c = (DriftMonitor(verdicts[start::3]) for start in range(3))
    whole = DriftMonitor(verdicts)
    assert len(whole) == 93
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == c.merge(a, b) == whole
    assert len(a) == 31
    assert DriftMonitor().merge(whole) == whole.merge(DriftMonitor()) == whole.merge() == whole
    assert a != whole


def test_a_monitor_survives_json_and_pickle_and_its_copy_counts_on():
    monitor = DriftMonitor([*traffic(50, 2, novel=1.0), failed()])
    for copy in (DriftMonitor.from_json(monitor.to_json()), pickle.loads(pickle.dumps(monitor))):
        assert copy == monitor
        copy.add(verdict(0.0))
        assert len(copy) == len(monitor) + 1


def test_every_score_and_novelty_falls_into_its_bin():
    for log_odds in (-800.0, -8.01, -8.0, -0.01, 0.0, 0.3, 7.99, 8.0, 30.0, 800.0):
        held = json.loads(DriftMonitor([verdict(max(log_odds, -700.0))]).to_json())["scores"]
        # The score's own rounding may cross an edge, never more than one.
        assert abs(held.index(1) - int(np.searchsorted(LOG_ODDS_EDGES, log_odds, side="right"))) <= 1
        assert sum(held) == 1
    for novelty, position in ((0.0, 0), (0.5, NOVELTY_BINS // 2), (1.0, NOVELTY_BINS - 1)):
        assert json.loads(DriftMonitor([verdict(0.0, novelty)]).to_json())["novelty"].index(1) == position


def test_the_shares_of_flagged_and_failed_texts_are_kept():
    drift = DriftMonitor([verdict(1.0)] * 150 + [verdict(-1.0)] * 50).compare(
        DriftMonitor([verdict(1.0)] * 200 + [failed()] * 50)
    )
    assert drift.flagged == (1.0, 0.75)
    assert drift.errors == (0.2, 0.0)


def test_threads_lose_no_count():
    monitor = DriftMonitor()
    verdicts = traffic(500, 3)
    threads = [threading.Thread(target=lambda: [monitor.add(each) for each in verdicts]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one = DriftMonitor(verdicts)
    assert monitor == one.merge(*[one] * 7)


def test_a_shift_raises_an_alarm_and_the_same_traffic_does_not():
    reference = DriftMonitor(traffic(2000, 4))
    moved = DriftMonitor(traffic(400, 5, shift=1.5)).compare(reference)
    assert moved.alarm
    assert moved.score.psi > moved.score.psi_limit >= MATERIAL
    assert moved.score.ks_p < 1e-6
    same = DriftMonitor(traffic(400, 6)).compare(reference)
    assert not same.alarm
    assert same.score.ks_p > 0.01


def test_a_monitor_compared_with_itself_has_not_moved():
    monitor = DriftMonitor(traffic(300, 7))
    drift = monitor.compare(monitor)
    assert (drift.score.psi, drift.score.ks, drift.alarm) == (0.0, 0.0, False)


def test_novelty_alone_raises_an_alarm():
    drift = DriftMonitor(traffic(500, 8, novel=0.3)).compare(DriftMonitor(traffic(500, 9, novel=1.0)))
    assert not drift.score.alarm
    assert drift.novelty is not None
    assert drift.novelty.alarm
    assert drift.alarm
    assert DriftMonitor(traffic(500, 8)).compare(DriftMonitor(traffic(500, 9, novel=1.0))).novelty is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(-3, 2, n),
        lambda rng, n: np.where(rng.random(n) < 0.9, rng.normal(-5, 1.5, n), rng.normal(2, 1.5, n)),
        lambda rng, n: np.where(rng.random(n) < 0.95, -3.9, 3.9),
    ],
    ids=["one hump", "two humps", "two values"],
)
@pytest.mark.parametrize(("n", "m"), [(200, 200), (500, 300)])
def test_resamples_of_the_same_traffic_raise_an_alarm_no_more_often_than_alpha(draw, n, m):
    rng, alpha, repeats = np.random.default_rng(0), 0.05, 1000
    alarms = sum(_shift("score", binned(draw(rng, n)), binned(draw(rng, m)), alpha).alarm for _ in range(repeats))
    # Three Monte-Carlo standard errors of a share alpha.
    assert alarms / repeats <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / repeats)


def test_scores_that_leave_a_crowded_bin_are_seen_on_either_side():
    crowd = DriftMonitor([verdict(0.1)] * 300)
    for log_odds in (-2.0, 2.0):
        assert DriftMonitor([verdict(0.1)] * 200 + [verdict(log_odds)] * 100).compare(crowd).alarm


def test_no_text_reaches_a_monitor():
    guard = MockGuard(lambda text: "unsafe" in text)
    monitor = DriftMonitor(guard.check_batch(["xyzzy unsafe", "xyzzy kind", ""]))
    assert "xyzzy" not in monitor.to_json() + repr(monitor)
    assert repr(monitor) == "DriftMonitor(3 verdicts)"


@pytest.mark.parametrize(
    "other", [verdict(0.0, bundle_id="mine-2"), verdict(0.0, bundle_id=None), verdict(0.0, target="response")]
)
def test_verdicts_of_two_guards_are_kept_apart(other):
    monitor, second = DriftMonitor([verdict(0.0)] * FEWEST), DriftMonitor([other] * FEWEST)
    for mixed in (lambda: monitor.add(other), lambda: monitor.merge(second), lambda: monitor.compare(second)):
        with pytest.raises(DataError, match=r"two guards, .*mine-1"):
            mixed()
    assert len(monitor) == FEWEST


def test_too_little_traffic_is_not_compared():
    enough, few = DriftMonitor([verdict(0.0)] * FEWEST), DriftMonitor([verdict(0.0)] * (FEWEST - 1) + [failed()] * 9)
    with pytest.raises(DataError, match="reference monitor holds 199 scores; at least 200"):
        enough.compare(few)
    with pytest.raises(DataError, match="compared monitor holds 199 scores; at least 200"):
        few.compare(enough)


def test_what_matters_is_the_user_s_to_say():
    reference, moved = DriftMonitor(traffic(5000, 4)), DriftMonitor(traffic(5000, 5, shift=0.4))
    assert not moved.compare(reference).alarm
    assert moved.compare(reference, material=0).alarm
    assert not reference.compare(reference, material=0).alarm
    with pytest.raises(ConfigurationError, match="material="):
        moved.compare(reference, material=-0.1)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, float("nan"), "0.1"])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    monitor = DriftMonitor([verdict(0.0)] * FEWEST)
    with pytest.raises(ConfigurationError, match="alpha="):
        monitor.compare(monitor, alpha=alpha)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": [1, 2]}, "scores: "),
        ({"novelty": [-1] * NOVELTY_BINS}, "novelty.0: "),
        ({"schema_version": 2}, "schema_version: "),
        ({"xyzzy": 1}, "xyzzy: "),
        ({"flagged": 1}, "flagged: more than"),
        ({"errors": "many"}, "errors: "),
    ],
)
def test_what_is_not_a_monitor_is_refused_by_name(change, said):
    content = {**json.loads(DriftMonitor().to_json()), **change}
    with pytest.raises(DataError, match=said):
        DriftMonitor.from_json(json.dumps(content))
    with pytest.raises(DataError, match="not the JSON of a drift monitor"):
        DriftMonitor.from_json("{")


def test_a_comparison_survives_json():
    drift = DriftMonitor(traffic(200, 1, novel=1.0)).compare(DriftMonitor(traffic(200, 2, novel=1.0)))
    assert Drift.model_validate_json(drift.model_dump_json()) == drift
