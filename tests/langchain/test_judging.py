"""A guard behind a gate: what the gate overrides of it, and what tells it from another guard."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_mlpm_guard import PromptBlockedError, PromptGate
from langchain_mlpm_guard.judging import Judge, identity

from mlpm_guard import Action, CategoryPolicy, Review, Rules
from mlpm_guard.testing import MockGuard
from tests.topics import categorised, on


def scored(**options: Any) -> MockGuard:
    """A guard whose score stands in the text, with categories by their words."""
    return MockGuard(
        lambda text: float(text.split()[-1]),
        novelty=lambda text: 0.99 if "strange" in text else 0.1,
        categories={"drugs": lambda text: "pills" in text, "legal": lambda text: "lawsuit" in text},
        **options,
    )


REVIEWED = {"review": Review(score=0.3, novelty=0.9)}
CATEGORISED = {"policy": {"drugs": "review", "legal": CategoryPolicy("review", 0.5)}}
RULED = {"rules": Rules(allow=["fine 0.7"], block=["never"])}


@pytest.mark.parametrize("overridden", [{"threshold": 0.2}, {"threshold": 0.8}, {"threshold": 0.0}, {"mode": "monitor"}])
@pytest.mark.parametrize("own", [{}, REVIEWED, CATEGORISED, RULED, {**REVIEWED, **CATEGORISED, **RULED}, {"on_error": "allow"}])
@pytest.mark.parametrize("mode", ["enforce", "monitor"])
@pytest.mark.parametrize("batch", [False, True])
def test_a_gate_with_a_threshold_or_mode_of_its_own_judges_as_a_guard_that_was_set_so(
    overridden: dict[str, Any], own: dict[str, Any], mode: Any, batch: bool
) -> None:
    texts = [f"{word} {score}" for word in ("calm", "strange", "pills", "lawsuit", "never") for score in (0.1, 0.4, 0.6, 0.9)]
    texts += ["fine 0.7", " "]
    gate = Judge(scored(mode=mode, **own), overridden.get("threshold"), overridden.get("mode"))
    expected = scored(**{"mode": mode, **own, **overridden})
    conversations = [[{"role": "user", "content": text}] for text in texts]
    found = gate.check(conversations) if batch else [gate.check([each])[0] for each in conversations]
    assert found == [expected.check(each) for each in conversations]


def test_a_gate_that_is_stricter_or_laxer_keeps_what_is_to_be_reviewed() -> None:
    guard = scored(review=Review(score=0.3))
    for threshold, score in ((0.8, 0.6), (0.45, 0.4)):
        gate = PromptGate(guard=guard, threshold=threshold, on_review="block")
        with pytest.raises(PromptBlockedError) as caught:
            gate.invoke(f"calm {score}")
        assert (caught.value.verdict.action, caught.value.verdict.flagged) == (Action.REVIEW, False)
        assert PromptGate(guard=guard, threshold=threshold).invoke(f"calm {score}") == f"calm {score}"
        assert gate.invoke("calm 0.1") == "calm 0.1"
    assert PromptGate(guard=guard, mode="monitor", on_review="block").invoke("calm 0.4") == "calm 0.4"


@pytest.mark.parametrize(
    ("own", "text", "threshold", "mode", "action"),
    [
        (REVIEWED, "calm 0.4", 0.45, "enforce", "review"),
        (REVIEWED, "calm 0.4", 0.2, "enforce", "block"),
        (REVIEWED, "calm 0.4", 0.45, "monitor", "allow"),
        (CATEGORISED, "lawsuit 0.1", 0.2, "enforce", "review"),
        (CATEGORISED, "lawsuit 0.1", 0.05, "enforce", "block"),
        (CATEGORISED, "pills 0.7", 0.6, "enforce", "review"),
        (CATEGORISED, "pills 0.7", 0.6, "monitor", "allow"),
        (RULED, "fine 0.7", 0.0, "enforce", "allow"),
        (RULED, "never 0.1", 1.0, "enforce", "block"),
        ({}, "calm 0.6", 0.7, "enforce", "allow"),
        ({}, " ", 0.7, "enforce", "block"),
        ({"on_error": "allow"}, " ", 0.7, "enforce", "allow"),
    ],
)
def test_a_guard_of_which_only_verdicts_are_known_is_never_taken_for_laxer_than_it_is(
    own: dict[str, Any], text: str, threshold: float, mode: Any, action: str
) -> None:
    inner = scored(**own)

    class Standin:
        on_error = inner.on_error

        def check(self, conversation: Any) -> Any:
            return inner.check(conversation)

    (verdict,) = Judge(Standin(), threshold, mode).check([[{"role": "user", "content": text}]])
    assert (verdict.threshold, verdict.mode, verdict.action) == (threshold, mode, action)


# -- what an answer in a cache depends on -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"rules": Rules(block=["calm"])},
        {"review": Review(score=0.3)},
        {"category_policy": {"drugs": "block"}},
        {"threshold": 0.4},
        {"on_error": "allow"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_is_part_of_the_key_of_a_cache(change: dict[str, Any]) -> None:
    guard = scored()
    before = dict(identity(guard))
    assert dict(identity(guard)) == before
    for name, value in change.items():
        setattr(guard, name, value)
    after = dict(identity(guard))
    assert after != before
    assert json.loads(json.dumps(after)) == after
    assert "calm" not in json.dumps(after)


def test_a_guard_that_learns_is_another_one_to_a_cache() -> None:
    guard = categorised()
    names = [identity(guard)["guard"], identity(guard)["guard"], identity(categorised())["guard"]]
    guard.add_category("legal", on("legal", 10, unsafe=False))
    names.append(identity(guard)["guard"])
    guard.partial_fit(on("drugs", 3, start=900), [1] * 3, progress=False)
    names.append(identity(guard)["guard"])
    assert names[0] == names[1]
    assert len(set(names[1:])) == 4
