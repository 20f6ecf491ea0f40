"""Guard: judging, policy, fitting; on an encoder without weights."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mlpm_guard import (
    Action,
    BundleMismatchError,
    ConfigurationError,
    DataError,
    EmptyInputError,
    EncoderError,
    Guard,
    GuardTimeoutError,
    InputTooLongError,
    InvalidConversationError,
    NotFittedError,
    PromptBlocked,
    ResponseBlocked,
    UnknownPromptError,
    Verdict,
)
from mlpm_guard.testing import MockEncoder, MockGuard
from tests.conftest import SAFE, UNSAFE
from tests.loop_support import Meeting

HARM = "tell me this unsafe thing"
CALM = "tell me about gardens"


def test_an_unsafe_prompt_is_flagged_and_a_safe_one_is_not(mock_guard: Guard) -> None:
    assert mock_guard.check(HARM).flagged
    assert mock_guard.check(HARM).action is Action.BLOCK
    assert not mock_guard.check(CALM).flagged
    assert mock_guard.check(CALM).action is Action.ALLOW


def test_contributions_and_intercept_sum_to_the_log_odds_of_the_score(mock_guard: Guard) -> None:
    for text in (HARM, CALM):
        verdict = mock_guard.check(text)
        assert verdict.score is not None
        assert verdict.intercept is not None
        total = verdict.intercept + sum(layer.contribution for layer in verdict.layers)
        assert total == pytest.approx(np.log(verdict.score / (1 - verdict.score)), abs=1e-9)
        assert verdict.log_odds == pytest.approx(total, abs=1e-12)
        for layer in verdict.layers:
            assert layer.contribution == pytest.approx(layer.weight * layer.log_odds)


def test_a_verdict_survives_json_and_pickle_and_cannot_be_changed(mock_guard: Guard) -> None:
    verdict = mock_guard.check(HARM)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    with pytest.raises(ValueError, match="frozen"):
        verdict.flagged = False  # type: ignore[misc]


def test_a_batch_gives_what_single_checks_give(mock_guard: Guard) -> None:
    texts = [*SAFE[:5], *UNSAFE[:5], CALM, HARM]
    assert mock_guard.check_batch(texts) == [mock_guard.check(text) for text in texts]
    assert mock_guard.check_batch([]) == []
    assert mock_guard.check_batch(text for text in texts) == mock_guard.check_batch(texts)


async def test_async_gives_what_sync_gives(mock_guard: Guard) -> None:
    assert await mock_guard.acheck(HARM) == mock_guard.check(HARM)
    assert await mock_guard.acheck_batch([CALM, HARM]) == mock_guard.check_batch([CALM, HARM])
    assert await mock_guard.acheck_batch([]) == []


def test_a_huge_batch_is_judged_in_order() -> None:
    guard = MockGuard(flag=lambda text: text.endswith("7"))
    verdicts = guard.check_batch(str(i) for i in range(20_000))
    assert [verdict.flagged for verdict in verdicts] == [i % 10 == 7 for i in range(20_000)]


def test_one_conversation_is_not_taken_for_a_batch(mock_guard: Guard) -> None:
    for wrong in (CALM, b"bytes", [{"role": "user", "content": CALM}], {"role": "user", "content": CALM}):
        with pytest.raises(InvalidConversationError, match="batch"):
            mock_guard.check_batch(wrong)  # type: ignore[arg-type]


# -- multi-turn ---------------------------------------------------------------------------------------------------------------


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_the_last_user_turn_is_judged() -> None:
    seen: list[str] = []
    guard = MockGuard(flag=lambda text: bool(seen.append(text)))
    guard.check(turns("first", "answer", "second"))
    assert seen == ["second"]


def test_a_harmful_turn_is_found_alone_and_in_its_context(mock_guard: Guard) -> None:
    alone = mock_guard.check(turns("hello", "hi there", HARM))
    assert alone.flagged
    context = mock_guard.check(turns(HARM, "let us see", "go on"))
    assert context.flagged
    assert context.window is not None
    assert context.window.view == "context"


def test_the_worse_view_decides() -> None:
    flagged = Guard(MockEncoder(lambda text: "\n" not in text and "alone" in text)).fit(
        [*SAFE, *(f"alone {i}" for i in range(30))], [0] * 30 + [1] * 30, progress=False
    )
    verdict = flagged.check(turns("hello", "hi", "alone 77"))
    assert verdict.flagged
    assert verdict.window is not None
    assert verdict.window.view == "turn"


def test_system_messages_are_not_judged_by_an_encoder_that_does_not_read_roles(mock_guard: Guard) -> None:
    verdict = mock_guard.check([{"role": "system", "content": "never say unsafe things"}, {"role": "user", "content": CALM}])
    assert not verdict.flagged


def test_parts_that_are_not_text_are_named(mock_guard: Guard) -> None:
    content = [{"type": "text", "text": HARM}, {"type": "image_url", "image_url": {"url": "x"}}]
    verdict = mock_guard.check([{"role": "user", "content": content}])
    assert verdict.flagged
    assert verdict.not_judged == ("image_url",)
    only_image = mock_guard.check([{"role": "user", "content": content[1:]}])
    assert only_image.error == "empty_input"
    assert only_image.blocked
    assert only_image.not_judged == ("image_url",)


# -- disguise and length ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "disguised",
    [
        "un\u200bsafe",
        "ｕｎｓａｆｅ",
        "𝐮𝐧𝐬𝐚𝐟𝐞",
        "un\u202esafe",
        "unѕаfе",
        "u\u0336n\u0336s\u0336a\u0336f\u0336e\u0336",
        "un\u00adsafe",
    ],
)
def test_disguised_text_is_judged_in_its_normalised_form_too(mock_guard: Guard, disguised: str) -> None:
    verdict = mock_guard.check(f"tell me this {disguised} thing")
    assert verdict.flagged
    assert verdict.window is not None
    assert verdict.window.form == "normalised"
    plain = Guard(MockEncoder(), normalise=False).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    assert not plain.check(f"tell me this {disguised} thing").flagged


@pytest.mark.parametrize("length", [120, 600, 5_000, 50_000])
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_harmful_sentence_is_found_anywhere_in_a_long_text(length: int, place: str) -> None:
    # This encoder sees harm only where it is not diluted: at most 40 words around it.
    encoder = MockEncoder(lambda text: "unsafe" in text and len(text.split()) <= 40)
    guard = Guard(encoder).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    sentence = "The garden is calm and the birds sing in it today. "
    padding = sentence * (length // 10)
    at = {"start": 0, "middle": len(padding) // 2 // len(sentence) * len(sentence), "end": len(padding)}[place]
    assert guard.check(padding[:at] + f"{HARM}. " + padding[at:]).flagged
    assert not guard.check(padding).flagged


@pytest.mark.parametrize("length", [200, 50_000])
def test_a_harmful_request_is_found_behind_words_without_punctuation(length: int) -> None:
    encoder = MockEncoder(lambda text: "unsafe" in text and len(text.split()) <= 24)
    guard = Guard(encoder).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    assert guard.check("harmless " * length + HARM).flagged


def test_text_over_the_limit_is_an_error_that_follows_on_error() -> None:
    text = "x" * 1001
    blocked = MockGuard(max_chars=1000).check(text)
    assert (blocked.error, blocked.flagged, blocked.action, blocked.score) == ("too_long", True, Action.BLOCK, None)
    assert MockGuard(max_chars=1000, on_error="allow").check(text).action is Action.ALLOW
    with pytest.raises(InputTooLongError):
        MockGuard(max_chars=1000, on_error="raise").check(text)
    assert not MockGuard(max_chars=1000).check(text[:1000]).flagged


# -- policy -------------------------------------------------------------------------------------------------------------------


def test_monitor_mode_judges_and_never_blocks() -> None:
    guard = MockGuard(flag=lambda text: True, mode="monitor")
    verdict = guard.enforce("anything")
    assert verdict.flagged
    assert verdict.action is Action.ALLOW
    assert guard.check("").action is Action.ALLOW
    assert guard.check("").error == "empty_input"


def test_enforce_raises_with_the_verdict_and_without_the_text() -> None:
    guard = MockGuard(flag=lambda text: "bomb" in text)
    with pytest.raises(PromptBlocked) as caught:
        guard.enforce("a secret bomb")
    assert caught.value.verdict.flagged
    assert "secret" not in str(caught.value) + repr(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).verdict == caught.value.verdict
    assert guard.enforce("hello").allowed


async def test_aenforce_raises_for_prompts_and_for_responses() -> None:
    with pytest.raises(PromptBlocked):
        await MockGuard(flag=lambda text: True).aenforce("x")
    with pytest.raises(ResponseBlocked):
        await MockGuard(flag=lambda text: True, target="response").aenforce("x")


def test_a_response_guard_judges_the_answer() -> None:
    guard = MockGuard(flag=lambda text: "unsafe" in text, target="response")
    assert guard.check(turns("question", "unsafe answer")).flagged
    assert not guard.check(turns("unsafe question", "answer")).flagged
    assert guard.check("unsafe answer").flagged
    assert guard.check(turns("question")).error == "invalid_input"


def test_the_threshold_decides_and_is_checked() -> None:
    guard = MockGuard(flag=lambda text: 0.6)
    assert guard.check("x").flagged
    guard.threshold = 0.7
    assert not guard.check("x").flagged
    assert guard.check("x").threshold == 0.7
    for bad in (-0.1, 1.1, float("nan"), "0.5", None, True):
        with pytest.raises(ConfigurationError, match="threshold"):
            guard.threshold = bad  # type: ignore[assignment]


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "audit"}, {"on_error": "ignore"}, {"target": "both"}, {"timeout": 0}, {"timeout": "1"}, {"window": 3},
        {"max_chars": 0}, {"fragment_margin": -1}, {"threshold": 2},
    ],
)  # fmt: skip
def test_a_bad_option_is_named(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Guard(MockEncoder(), **options)  # type: ignore[arg-type]


def test_something_that_is_no_encoder_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Encoder"):
        Guard("default")  # type: ignore[arg-type]


def test_an_unfitted_guard_raises_whatever_on_error_says() -> None:
    for on_error in ("block", "allow", "raise"):
        with pytest.raises(NotFittedError):
            Guard(MockEncoder(), on_error=on_error).check("x")  # type: ignore[arg-type]


# -- failures -----------------------------------------------------------------------------------------------------------------


class Failing(MockEncoder):
    """Fails on texts that contain a word."""

    def encode(self, conversations, *, layers=None):  # type: ignore[no-untyped-def]
        states = super().encode(conversations, layers=layers)
        for row, conversation in enumerate(conversations):
            text = getattr(conversation, "messages", [None])[0]
            content = text.content if text else ""
            if "explode" in content:
                raise RuntimeError(f"secret: {content}")
            if "nan" in content:
                states[row] = np.nan
        return states


@pytest.fixture
def failing() -> Guard:
    return Guard(Failing()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)


def test_one_bad_item_does_not_disturb_the_others(failing: Guard) -> None:
    texts = [CALM, "explode", HARM, None, "nan", "", b"x", HARM, CALM]
    verdicts = failing.check_batch(texts)  # type: ignore[arg-type]
    kinds = [None, "encoder_error", None, "invalid_input", "non_finite", "empty_input", "invalid_input", None, None]
    assert [verdict.error for verdict in verdicts] == kinds
    assert [verdict.flagged for verdict in verdicts] == [False, True, True, True, True, True, True, True, False]
    assert all(verdict.blocked for verdict in verdicts if verdict.error)


async def test_an_encoder_error_fails_closed_in_async_too(failing: Guard) -> None:
    verdicts = await asyncio.gather(*(failing.acheck(text) for text in [CALM, "explode", HARM]))
    assert [verdict.error for verdict in verdicts] == [None, "encoder_error", None]


def test_no_text_reaches_an_error_or_a_log(failing: Guard, caplog: pytest.LogCaptureFixture) -> None:
    failing.on_error = "raise"
    with caplog.at_level(logging.DEBUG), pytest.raises(EncoderError) as caught:
        failing.check("explode with my password hunter2")
    shown = str(caught.value) + repr(caught.value) + caplog.text
    assert "hunter2" not in shown
    assert "RuntimeError" in shown
    assert caught.value.__cause__ is None


def test_on_error_raise_raises_the_specific_error() -> None:
    guard = MockGuard(on_error="raise")
    with pytest.raises(EmptyInputError):
        guard.check(" \n")
    with pytest.raises(InvalidConversationError):
        guard.check([])


# -- time-out, threads, tasks -------------------------------------------------------------------------------------------------


def test_what_is_not_judged_in_time_is_an_error() -> None:
    release = threading.Event()

    class Stuck(MockEncoder):
        def encode(self, conversations, *, layers=None):  # type: ignore[no-untyped-def]
            release.wait(60)
            return super().encode(conversations, layers=layers)

    release.set()
    guard = Guard(Stuck()).fit(SAFE[:4] + UNSAFE[:4], [0] * 4 + [1] * 4, progress=False)
    release.clear()
    guard.timeout = 0.05
    verdict = guard.check(CALM)
    assert (verdict.error, verdict.action) == ("timeout", Action.BLOCK)
    guard.on_error = "raise"
    with pytest.raises(GuardTimeoutError):
        guard.check(CALM)
    release.set()
    guard.timeout, guard.on_error = 60, "block"
    assert guard.check(CALM).error is None


async def test_acheck_times_out_and_leaves_the_guard_usable() -> None:
    guard = MockGuard(delay=0.3, timeout=0.05)
    assert (await guard.acheck("x")).error == "timeout"
    guard.timeout = None
    assert (await guard.acheck("x")).error is None


def test_sixty_four_threads_get_what_one_gets(mock_guard: Guard) -> None:
    texts = [f"{text} {i}" for i, text in enumerate([CALM, HARM] * 32)]
    expected = [mock_guard.check(text) for text in texts]
    barrier = threading.Barrier(64)

    def run(text: str) -> Verdict:
        barrier.wait()
        return mock_guard.check(text)

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(run, texts)) == expected


async def test_concurrent_calls_share_scorer_calls() -> None:
    guard = MockGuard(flag=lambda text: "bad" in text, delay=0.02)
    verdicts = await asyncio.gather(*(guard.acheck("bad" if i % 3 == 0 else "good") for i in range(200)))
    assert [verdict.flagged for verdict in verdicts] == [i % 3 == 0 for i in range(200)]
    assert sum(guard.calls) == 200
    assert len(guard.calls) <= 40


async def test_acheck_does_not_block_the_event_loop() -> None:
    meeting = Meeting()
    await MockGuard(meeting).acheck("x")
    assert meeting.held


async def test_a_cancelled_call_does_not_disturb_the_others() -> None:
    guard = MockGuard(delay=0.05)
    tasks = [asyncio.create_task(guard.acheck(f"text {i}")) for i in range(20)]
    await asyncio.sleep(0.01)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert all(isinstance(result, Verdict) for result in results[1::2])
    assert not (await guard.acheck("again")).flagged


def test_one_guard_serves_several_event_loops() -> None:
    guard = MockGuard(flag=lambda text: "bad" in text)

    def run(text: str) -> bool:
        return asyncio.run(guard.acheck(text)).flagged

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, ["bad", "good"] * 16)) == [True, False] * 16


def test_judging_does_not_wait_for_a_fit_on_another_thread() -> None:
    guard = Guard(MockEncoder()).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    learning, judged = threading.Event(), threading.Event()

    def slow_prompts():  # type: ignore[no-untyped-def]
        learning.set()
        judged.wait(10)
        yield "one more calm text"

    thread = threading.Thread(target=lambda: guard.partial_fit(slow_prompts(), [0]))
    thread.start()
    learning.wait(10)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(guard.check, HARM).result(timeout=5).flagged
    judged.set()
    thread.join()
    assert guard.classifier.statistics_.count(0) == 31


def test_a_refit_on_another_thread_never_mixes_two_guards(mock_guard: Guard) -> None:
    stop = threading.Event()
    wrong: list[str] = []

    def judge() -> None:
        while not stop.is_set():
            verdict = mock_guard.check(HARM)
            assert verdict.score is not None
            total = (verdict.intercept or 0) + sum(layer.contribution for layer in verdict.layers)
            if abs(total - np.log(verdict.score / (1 - verdict.score))) > 1e-6:
                wrong.append("mixed")

    threads = [threading.Thread(target=judge) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(5):
        mock_guard.partial_fit([f"new calm text {i}", f"new unsafe text {i}"], [0, 1])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- fitting ------------------------------------------------------------------------------------------------------------------


def test_fit_takes_any_iterable_and_any_spelling_of_labels() -> None:
    spelled = [("safe", "unsafe"), (0, 1), (False, True), (np.int64(0), np.int64(1)), ("0", "1")]
    scores = []
    for safe, unsafe in spelled:
        guard = Guard(MockEncoder()).fit(iter(SAFE + UNSAFE), (label for label in [safe] * 30 + [unsafe] * 30), progress=False)
        scores.append(guard.check(HARM).score)
    assert len(set(scores)) == 1


def test_fitting_in_parts_equals_fitting_at_once() -> None:
    labels = [0] * 30 + [1] * 30
    whole = Guard(MockEncoder()).fit(SAFE + UNSAFE, labels, progress=False)
    parts = Guard(MockEncoder()).fit(SAFE[:10] + UNSAFE[:10], [0] * 10 + [1] * 10, progress=False)
    parts.partial_fit(SAFE[10:] + UNSAFE[10:], [0] * 20 + [1] * 20, progress=False)
    assert parts.check(HARM) == whole.check(HARM)


def test_forgetting_undoes_learning(mock_guard: Guard) -> None:
    before = mock_guard.check(HARM)
    more, labels = ["calm addition", "unsafe addition", "another unsafe one"], ["safe", "unsafe", "safe"]
    mock_guard.partial_fit(more, labels)
    assert mock_guard.check(HARM) != before
    assert mock_guard.forget(more, labels).check(HARM) == before


def test_forgetting_what_was_never_learned_names_it_and_changes_nothing(mock_guard: Guard) -> None:
    before = mock_guard.check(HARM)
    with pytest.raises(UnknownPromptError) as caught:
        mock_guard.forget([SAFE[0], "never seen"], [0, 0])
    assert caught.value.indices == (1,)
    assert "never seen" not in str(caught.value)
    assert mock_guard.check(HARM) == before


@pytest.mark.parametrize(
    ("prompts", "labels", "message"),
    [
        (["a", "b"], [0], "only 1 labels"),
        (["a"], [0, 1], "only 1 prompts"),
        (["a", "b"], [0, 2], "row 1"),
        (["a", None], [0, 1], "row 1"),
        (["a", " "], [0, 1], "row 1"),
        ([], [], "no prompts"),
        (["a", "b"], [0, 0], "unsafe"),
        (["a", "b"], [0, 1], "1 safe"),
        ("one text", [0], "one text"),
    ],
)
def test_bad_training_data_is_named_and_leaves_the_guard_as_it_was(
    mock_guard: Guard, prompts: object, labels: list[int], message: str
) -> None:
    before = mock_guard.check(HARM)
    with pytest.raises(DataError, match=message):
        mock_guard.fit(prompts, labels, progress=False)  # type: ignore[arg-type]
    assert mock_guard.check(HARM) == before


def test_long_prompts_are_learned_by_windows_not_cut() -> None:
    words = " ".join(f"word{i}" for i in range(2000))
    guard = Guard(MockEncoder()).fit([*SAFE, words, *UNSAFE], [0] * 31 + [1] * 30, progress=False)
    assert guard.classifier.statistics_.count(0) == 30 + 4


# -- copies and processes -----------------------------------------------------------------------------------------------------


def test_a_guard_pickles_and_copies(mock_guard: Guard) -> None:
    for twin in (pickle.loads(pickle.dumps(mock_guard)), copy.deepcopy(mock_guard)):
        assert twin.check(HARM) == mock_guard.check(HARM)
        assert asyncio.run(twin.acheck(HARM)) == mock_guard.check(HARM)


def test_a_repr_tells_settings_only(mock_guard: Guard) -> None:
    assert "threshold=0.5" in repr(mock_guard)
    assert "topic number" not in repr(mock_guard)


def test_a_saved_guard_refuses_another_encoder(mock_guard: Guard, tmp_path) -> None:  # type: ignore[no-untyped-def]
    mock_guard.save_pretrained(tmp_path / "g")
    with pytest.raises(BundleMismatchError, match="dim: 16 here, 8 there"):
        Guard.from_pretrained(tmp_path / "g", encoder=MockEncoder(dim=8))
    with pytest.raises(BundleMismatchError, match="encoder="):
        Guard.from_pretrained(tmp_path / "g")
    loaded = Guard.from_pretrained(tmp_path / "g", encoder=MockEncoder())
    assert loaded.check(HARM).score == mock_guard.check(HARM).score


def test_a_mock_guard_is_a_guard_that_counts_its_calls() -> None:
    guard = MockGuard(flag=lambda text: "bad" in text)
    assert isinstance(guard, Guard)
    guard.check_batch(["bad", "good"])
    assert guard.calls == [2]
    assert json.loads(guard.check("bad").model_dump_json())["flagged"] is True
    assert MockGuard(flag=lambda text: 1 / 0).check("x").error == "encoder_error"
    assert pickle.loads(pickle.dumps(MockGuard())).check("x").allowed


def test_a_fragment_of_a_raised_text_must_be_clearer_than_one_of_a_calm_text() -> None:
    from mlpm_guard.judging import _margins
    from mlpm_guard.verdict import WindowEvidence

    def margins(log_odds: list[float], kinds: str = "fragment") -> list[float]:
        where = [
            WindowEvidence(view="turn", form="raw", kind=kinds, index=i, count=len(log_odds))  # type: ignore[arg-type]
            for i in range(len(log_odds))
        ]
        return _margins(where, np.array(log_odds), 0.6, (-3.0, 3.0)).tolist()

    least = 0.2 * 3.6
    assert margins([-3.0, -3.2, 2.0]) == pytest.approx([least] * 3)
    assert margins([-1.0, -2.5, 0.0, 2.0, 2.1]) == pytest.approx([3.6] * 5)
    assert least < margins([-2.2, -2.3, -1.3, 0.2, 2.0])[0] < 3.6
    assert margins([-3.0, 2.0]) == pytest.approx([least] * 2)
    assert margins([2.0, 2.0], kinds="window") == [0.0] * 2


def test_a_fragment_far_from_others_that_are_all_alike_stands_out() -> None:
    from mlpm_guard.judging import _margins
    from mlpm_guard.verdict import WindowEvidence

    log_odds = np.array([-1.0] * 9 + [3.5])
    where = [WindowEvidence(view="turn", form="raw", kind="fragment", index=i, count=10) for i in range(10)]
    margins = _margins(where, log_odds, 0.6, (-3.0, 3.0))
    assert margins[-1] == pytest.approx(0.2 * 3.6)
    assert margins[:-1] == pytest.approx([3.6] * 9)


def test_the_more_sentences_a_text_has_the_clearer_one_that_blends_in_must_be_up_to_a_limit() -> None:
    from mlpm_guard.judging import _margins
    from mlpm_guard.verdict import WindowEvidence

    def least(calm: list[float], count: int) -> float:
        log_odds = np.array([calm[at % len(calm)] for at in range(count - 1)] + [3.5])
        where = [WindowEvidence(view="turn", form="raw", kind="fragment", index=i, count=count) for i in range(count)]
        return float(_margins(where, log_odds, 0.6, (-3.0, 3.0))[-1])

    varied, alike = [-4.0, -4.0, -4.0, -2.0, -2.0], [-3.0]
    assert least(varied, 5) == least(varied, 10) == pytest.approx(0.2 * 3.6)
    assert least(varied, 20) == pytest.approx(0.36 * 3.6)
    assert least(varied, 10) < least(varied, 11) < least(varied, 40) < least(varied, 64)
    assert least(varied, 64) == least(varied, 5000) < 0.65 * 3.6
    assert least(alike, 64) == pytest.approx(0.2 * 3.6)


def test_windows_of_a_long_prompt_must_be_clearer_than_a_whole_one_and_those_of_an_answer_need_not() -> None:
    from mlpm_guard.judging import Reading, _window_margins
    from mlpm_guard.verdict import WindowEvidence

    kinds = ("window", "window", "fragment", "whole")
    where = [WindowEvidence(view="turn", form="raw", kind=kind, index=i, count=4) for i, kind in enumerate(kinds)]
    levels = (-3.0, 3.0)
    margins = _window_margins(where, Reading("prompt", 128, True, 0.6), levels)
    assert margins == pytest.approx([1.62, 1.62, 0.0, 0.0])
    for reading in (Reading("response", 128, True, 0.6), Reading("prompt", 128, True, 0.0)):
        assert not _window_margins(where, reading, levels).any()
    assert not _window_margins(where, Reading("prompt", 128, True, 0.6), (1.0, -1.0)).any()


@pytest.mark.parametrize(
    ("name", "value"), [("mode", "Monitor"), ("on_error", "rais"), ("timeout", "3"), ("max_chars", "x"), ("target", "response")]
)
def test_an_option_that_is_set_later_is_checked_too(mock_guard: Guard, name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        setattr(mock_guard, name, value)
    assert mock_guard.check("hello").action == "allow"


def test_notes_that_are_no_json_are_refused_without_being_shown(mock_guard: Guard, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="JSON") as caught:
        mock_guard.save_pretrained(tmp_path / "guard", notes={"secret": {1, 2}})
    assert "secret" not in str(caught.value)


async def test_a_text_that_took_too_long_does_not_hold_up_those_behind_it() -> None:
    release = threading.Event()
    release.set()

    class Stuck(MockEncoder):
        def encode(self, conversations, *, layers=None):  # type: ignore[no-untyped-def]
            release.wait(60)
            return super().encode(conversations, layers=layers)

    encoder = Stuck()
    guard = Guard(encoder).fit(SAFE + UNSAFE, [0] * 30 + [1] * 30, progress=False)
    long = "".join(f"How to cook rice number {index}? " for index in range(20_000))
    encoder.batches.clear()
    assert (await guard.acheck(long)).error is None
    whole = len(encoder.batches)
    assert whole > 10
    release.clear()
    guard.timeout = 0.5
    assert (await guard.acheck(long)).error == "timeout"
    encoder.batches.clear()
    guard.timeout = 60
    release.set()
    assert (await guard.acheck("What is 2 plus 2?")).error is None
    assert len(encoder.batches) <= 2
