"""Allow and block lists: decided before a model is asked, visible in the verdict, at every door."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest

from mlpm_guard import (
    Action,
    BundleCorruptError,
    ConfigurationError,
    Guard,
    PromptBlocked,
    ResponseBlocked,
    RuleMatch,
    Rules,
    StreamModerator,
    Verdict,
)
from mlpm_guard import bundle as bundles
from mlpm_guard.testing import MockEncoder, MockGuard

HARM = "tell me this unsafe thing"
CALM = "tell me about gardens"


def flagging(**options: object) -> MockGuard:
    """A guard whose model flags what says "unsafe"."""
    return MockGuard(lambda text: "unsafe" in text, **options)


# -- phrases and expressions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "how to build a pipe bomb", "PIPE BOMB!", "pipe\n bomb", "(pipe bomb)", "pipe_bomb or pipe bomb", "a ｐｉｐｅ bomb",
        "pi\u200bpe bomb", "рipe bomb",
    ],
)  # fmt: skip
def test_a_blocked_phrase_is_found_as_whole_words_however_it_is_written(text: str) -> None:
    verdict = flagging(rules=Rules(block=["pipe bomb"])).check(text)
    assert verdict.blocked
    assert verdict.rule is not None
    assert (verdict.rule.kind, verdict.rule.entry) == ("block", 0)


@pytest.mark.parametrize("text", ["pipe bombastic", "windpipe bomb", "a pipe and a bomb", "pipe"])
def test_a_blocked_phrase_inside_other_words_is_not_found(text: str) -> None:
    assert flagging(rules=Rules(block=["pipe bomb"])).check(text).allowed


@pytest.mark.parametrize(
    ("phrase", "text"),
    [("炸弹", "怎样制造炸弹的方法"), ("ระเบิด", "วิธีทำระเบิดที่บ้าน"), ("$$$", "win$$$now"), ("c++", "learn c++ now")],
)
def test_a_phrase_without_spaces_or_letters_at_its_ends_is_found(phrase: str, text: str) -> None:
    assert flagging(rules=Rules(block=[phrase])).check(text).blocked


def test_the_form_in_which_it_was_found_is_told() -> None:
    guard = flagging(rules=Rules(block={"weapons": "pipe bomb"}))
    assert guard.check("a pipe bomb").rule == RuleMatch(kind="block", entry="weapons", form="raw")
    assert guard.check("a pi\u200bpe bomb").rule == RuleMatch(kind="block", entry="weapons", form="normalised")


@pytest.mark.parametrize("text", ["How do I kill a process?", "  how do I KILL a\n process?  "])
def test_an_allowed_phrase_allows_the_whole_turn_only(text: str) -> None:
    guard = MockGuard(lambda text: True, rules=Rules(allow=["How do I kill a process?"]))
    assert guard.check(text).allowed
    for longer in (f"{text} And a person?", f"Say unsafe things. {text}", text.replace("process", "pro cess")):
        assert guard.check(longer).blocked


@pytest.mark.parametrize("disguise", ["\u200b", "\U000e0068\U000e0069", "\u202e"])
def test_what_is_hidden_in_an_allowed_phrase_is_not_allowed(disguise: str) -> None:
    guard = MockGuard(lambda text: True, rules=Rules(allow=["good morning"]))
    assert guard.check("good morning").allowed
    assert guard.check(f"good{disguise} morning").blocked


def test_an_expression_searches_where_it_blocks_and_matches_all_where_it_allows() -> None:
    order = re.compile(r"where is order \d+\?", re.IGNORECASE)
    guard = MockGuard(lambda text: True, rules=Rules(allow={"orders": order}))
    assert guard.check("Where is order 12?").rule == RuleMatch(kind="allow", entry="orders")
    assert guard.check("Where is order 12? And your prompt?").blocked
    assert guard.check("Where is order 12?\nunsafe").blocked
    blocking = MockGuard(rules=Rules(block=[re.compile(r"\bAKIA[0-9A-Z]{16}\b")]))
    assert blocking.check("my key is AKIAABCDEFGHIJKLMNOP thanks").blocked
    assert blocking.check("my key is akiaabcdefghijklmnop thanks").allowed


def test_blocking_wins_over_allowing() -> None:
    guard = flagging(rules=Rules(allow=["a pipe bomb"], block=["pipe bomb"]))
    verdict = guard.check("a pipe bomb")
    assert verdict.blocked
    assert verdict.rule is not None
    assert verdict.rule.kind == "block"


# -- what a verdict by a rule is ----------------------------------------------------------------------------------------------


def test_no_model_is_asked_about_what_a_rule_decides() -> None:
    guard = flagging(rules=Rules(allow=["good morning"], block=["pipe bomb"]))
    verdicts = guard.check_batch(["good morning", "a pipe bomb", CALM, HARM])
    assert guard.calls == [2]
    assert [verdict.action for verdict in verdicts] == [Action.ALLOW, Action.BLOCK, Action.ALLOW, Action.BLOCK]
    assert [verdict.rule is None for verdict in verdicts] == [False, False, True, True]


def test_a_verdict_by_a_rule_is_sound_survives_json_and_shows_no_text() -> None:
    guard = flagging(rules=Rules(allow=["good morning"], block=["secret plan"]))
    for text, score in (("good morning", 0.0), ("my secret plan", 1.0)):
        verdict = guard.check(text)
        assert (verdict.score, verdict.flagged) == (score, score == 1.0)
        assert (verdict.layers, verdict.intercept, verdict.log_odds, verdict.window, verdict.windows) == (
            (),
            None,
            None,
            None,
            0,
        )
        shown = verdict.model_dump_json()
        assert Verdict.model_validate_json(shown) == verdict
        assert "secret" not in shown
        assert "morning" not in shown


@pytest.mark.parametrize(
    "fields",
    [
        {"score": 0.0, "flagged": False, "rule": {"kind": "block", "entry": 0}},
        {"score": 0.5, "flagged": False, "rule": {"kind": "allow", "entry": 0}},
        {"score": None, "flagged": True, "error": "timeout", "rule": {"kind": "block", "entry": 0}},
    ],
)
def test_a_verdict_by_a_rule_that_says_something_else_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="rule"):
        Verdict.model_validate({"threshold": 0.5, "action": "allow", **fields})


def test_monitor_mode_judges_by_rules_and_blocks_nothing() -> None:
    verdict = flagging(mode="monitor", rules=Rules(block=["pipe bomb"])).check("a pipe bomb")
    assert verdict.flagged
    assert verdict.allowed


def test_what_cannot_be_judged_is_an_error_and_no_rule() -> None:
    guard = flagging(max_chars=20, rules=Rules(allow=["a"], block=["pipe bomb"]))
    assert guard.check("pipe bomb " * 10).error == "too_long"
    assert guard.check("").error == "empty_input"
    assert guard.check([{"role": "assistant", "content": "pipe bomb"}]).error == "invalid_input"


def test_rules_that_fail_block(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = flagging(rules=Rules(block=["x"]))

    def fail(*_: object) -> None:
        raise RecursionError("secret")

    monkeypatch.setattr(Rules, "match", fail)
    verdict = guard.check(CALM)
    assert (verdict.error, verdict.action) == ("encoder_error", Action.BLOCK)


# -- conversations ------------------------------------------------------------------------------------------------------------


def test_only_the_judged_turn_is_looked_at() -> None:
    guard = flagging(rules=Rules(block=["pipe bomb"]))
    turns = [
        {"role": "user", "content": "a pipe bomb"},
        {"role": "assistant", "content": "I can't help with that."},
        {"role": "user", "content": "then tell me a joke"},
    ]
    assert guard.check(turns).rule is None
    assert guard.check(turns[:1]).blocked


@pytest.mark.parametrize(
    "around",
    [
        lambda turn: [{"role": "user", "content": "an unsafe start"}, {"role": "assistant", "content": "Shall I?"}, turn],
        lambda turn: [turn, {"role": "assistant", "content": "Sure, here is an unsafe"}],
        lambda turn: [turn, {"role": "system", "content": "an unsafe instruction"}],
        lambda turn: [
            {"role": "user", "content": [{"type": "text", "text": "go on"}, {"type": "image_url", "image_url": {"url": "x"}}]}
        ],
    ],
)
def test_an_allowed_prompt_does_not_speak_for_what_stands_around_it(around: object) -> None:
    guard = MockGuard(lambda text: True, rules=Rules(allow=["go on"]))
    turn = {"role": "user", "content": "go on"}
    assert guard.check([turn]).allowed
    assert guard.check([{"role": "system", "content": "You are kind."}, turn]).allowed
    assert guard.check(around(turn)).blocked  # type: ignore[operator]


def test_an_allowed_answer_is_allowed_whatever_was_asked() -> None:
    guard = MockGuard(lambda text: True, target="response", rules=Rules(allow=["I can't help with that."]))
    asked = [{"role": "user", "content": HARM}, {"role": "assistant", "content": "I can't help with that."}]
    assert guard.check(asked).allowed
    asked[1]["content"] += " But see here."
    assert guard.check(asked).blocked


# -- doors --------------------------------------------------------------------------------------------------------------------


async def test_rules_hold_in_async_calls_and_with_a_time_out() -> None:
    guard = flagging(rules=Rules(allow=[HARM], block=["pipe bomb"]))
    for timeout in (None, 30.0):
        guard.timeout = timeout
        assert guard.check(HARM).allowed
        assert (await guard.acheck("a pipe bomb")).blocked
        assert [verdict.blocked for verdict in await guard.acheck_batch([HARM, "pipe bomb", CALM])] == [False, True, False]
    with pytest.raises(PromptBlocked):
        await guard.aenforce("a pipe bomb")


def test_a_stream_stops_at_a_blocked_phrase() -> None:
    moderator = StreamModerator(flagging(target="response", rules=Rules(block=["pipe bomb"])), on_block="raise")
    stream = moderator.stream(iter(["All is well. ", "Now take a pipe ", "bomb. ", "And go."]))
    assert next(stream) == "All is well. "
    with pytest.raises(ResponseBlocked) as caught:
        list(stream)
    assert caught.value.verdict.rule == RuleMatch(kind="block", entry=0)


# -- setting, saving, copying -------------------------------------------------------------------------------------------------


def test_rules_can_be_set_and_cleared_on_a_guard_that_serves() -> None:
    guard = flagging()
    assert guard.check("a pipe bomb").allowed
    guard.rules = Rules(block=["pipe bomb"])
    assert guard.check("a pipe bomb").blocked
    guard.rules = None
    assert guard.check("a pipe bomb").allowed
    with pytest.raises(ConfigurationError, match="rules is list"):
        guard.rules = ["pipe bomb"]  # type: ignore[assignment]


def test_rules_are_saved_with_the_guard_and_can_be_changed_there(mock_guard: Guard, tmp_path: Path) -> None:
    mock_guard.rules = Rules(allow={"mine": HARM}, block=["pipe bomb", re.compile("A[BC]+", re.IGNORECASE)])
    path = mock_guard.save_pretrained(tmp_path / "guard")
    loaded = Guard.from_pretrained(path, encoder=MockEncoder())
    assert loaded.rules == mock_guard.rules
    assert loaded.check(HARM).rule == RuleMatch(kind="allow", entry="mine")
    assert loaded.check("xabcx").rule == RuleMatch(kind="block", entry=1)
    loaded.rules = None
    again = Guard.from_pretrained(loaded.save_pretrained(tmp_path / "again"), encoder=MockEncoder())
    assert again.check(HARM).flagged
    assert [change.kind for change in bundles.load(tmp_path / "again").manifest.lineage[-1].changes] == ["rules"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"regex": "(a"}, "block entry 1"),
        ({"regex": "a*"}, "block entry 1"),
        ({"phrase": " "}, "block entry 1"),
        ({}, "block entry 1"),
        ({"phrase": "x", "regex": "x"}, "block entry 1"),
        ({"name": "mine", "regex": "["}, "block entry mine"),
        ({"phrase": 3}, "rules"),
        ({"phrase": "x", "secret": "x"}, "rules"),
    ],
)
def test_impossible_rules_of_a_bundle_are_refused_and_named(
    mock_guard: Guard, tmp_path: Path, entry: dict[str, object], says: str
) -> None:
    path = mock_guard.save_pretrained(tmp_path / "guard")
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["rules"] = {"block": [{"phrase": "fine"}, entry]}
    (path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleCorruptError, match=says):
        bundles.load(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"allow": "good morning"}, "allow is str"),
        ({"block": re.compile("x")}, "block is Pattern"),
        ({"block": 3}, "block is int"),
        ({"allow": ["fine", ""]}, "allow entry 1 is blank"),
        ({"allow": ["\u200b"]}, "allow entry 0 is blank"),
        ({"block": ["fine", None]}, "block entry 1 is NoneType"),
        ({"block": [re.compile(b"x")]}, "block entry 0 is Pattern"),
        ({"block": {"mine": re.compile("x*")}}, "block entry mine matches the empty text"),
        ({"allow": [re.compile(".*")]}, "allow entry 0 matches the empty text"),
        ({"block": {"": "x"}}, "name"),
        ({"block": {1: "x"}}, "name"),
    ],
)
def test_impossible_rules_are_refused_and_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Rules(**options)  # type: ignore[arg-type]


def test_rules_show_no_entry_and_can_be_compared_and_copied() -> None:
    rules = Rules(allow=["secret phrase"], block=[re.compile("secret expression")])
    assert "secret" not in repr(rules)
    assert repr(rules) == "Rules(1 allowed, 1 blocked)"
    assert pickle.loads(pickle.dumps(rules)) == rules
    assert rules != Rules(allow=["secret phrase"])
    assert len({rules, Rules(allow=["secret phrase"], block=[re.compile("secret expression")])}) == 1
    guard = flagging(rules=rules)
    assert "secret" not in repr(guard)


def test_a_calibration_is_of_the_model_whatever_the_rules_say(mock_guard: Guard) -> None:
    benign = [f"harmless question number {index}" for index in range(400)]
    plain = mock_guard.calibrate(benign, max_fpr=0.05).calibration
    mock_guard.rules = Rules(block=["question"], allow=benign[:100])
    assert mock_guard.calibrate(benign, max_fpr=0.05).calibration == plain
    assert mock_guard.check(benign[0]).blocked
