"""The third outcome at every gate: passed on as it is, unless a gate is told to block it."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_mlpm_guard import (
    GuardedLLM,
    GuardedQueryEngine,
    GuardedRetriever,
    GuardPostprocessor,
    GuardQueryTransform,
    PromptBlockedError,
    guard_index,
)

from mlpm_guard import Action, ConfigurationError, Guard, Review, Rules
from mlpm_guard.testing import MockGuard
from tests.llama_index.support import CALM, CountingRetriever, ScriptedLLM, index, observed

DOUBTFUL = "a doubtful question"
ASKED = [ChatMessage(role="user", content=DOUBTFUL)]


def doubting(**options: Any) -> MockGuard:
    """Has what is doubtful reviewed."""
    return MockGuard(lambda text: 0.4 if "doubtful" in text else 0.1, review=Review(score=0.3), **options)


def answers_doubtfully() -> ScriptedLLM:
    return ScriptedLLM(answers=["Well. This is doubtful. The end."])


def test_a_query_to_review_is_retrieved_for_unless_the_gate_blocks_it() -> None:
    inner = CountingRetriever(index().as_retriever())
    with observed() as observer:
        assert GuardedRetriever(inner, guard=doubting()).retrieve(DOUBTFUL)
    assert [event.verdict.action for event in observer.decisions] == [Action.REVIEW]
    with observed() as observer, pytest.raises(PromptBlockedError) as caught:
        GuardedRetriever(inner, guard=doubting(), on_review="block").retrieve(DOUBTFUL)
    assert inner.queries == [DOUBTFUL]
    assert [event.blocked for event in observer.decisions] == [True]
    assert (caught.value.verdict.action, caught.value.verdict.flagged) == (Action.BLOCK, False)


async def test_a_query_to_review_is_retrieved_for_unless_the_gate_blocks_it_async() -> None:
    inner = CountingRetriever(index().as_retriever())
    assert await GuardedRetriever(inner, guard=doubting()).aretrieve(DOUBTFUL)
    assert await GuardedRetriever(inner, guard=doubting(), on_review="block", on_block="empty").aretrieve(DOUBTFUL) == []
    assert inner.queries == [DOUBTFUL]


def test_gates_that_share_a_verdict_do_with_a_review_what_each_was_told() -> None:
    guard, query = doubting(), QueryBundle(DOUBTFUL)
    passing, blocking = GuardQueryTransform(guard=guard), GuardQueryTransform(guard=guard, on_review="block")
    assert passing.run(query) is query
    with pytest.raises(PromptBlockedError):
        blocking.run(query)
    assert passing.run(query) is query
    assert guard.calls == [1]


@pytest.mark.parametrize("change", [{"rules": Rules(block=["doubtful"])}, {"review": None}, {"threshold": 0.2}])
def test_a_verdict_that_was_kept_is_not_used_for_a_guard_that_has_changed(change: dict[str, Any]) -> None:
    guard, query = doubting(), QueryBundle(DOUBTFUL)
    gate = GuardQueryTransform(guard=guard, on_review="block")
    with pytest.raises(PromptBlockedError):
        gate.run(query)
    for name, value in change.items():
        setattr(guard, name, value)
    if "review" in change:
        assert gate.run(query) is query
    else:
        with pytest.raises(PromptBlockedError) as caught:
            gate.run(query)
        assert caught.value.verdict.flagged


def test_a_verdict_of_a_guard_that_has_learned_since_is_judged_again() -> None:
    from mlpm_guard.testing import MockEncoder

    texts = [*(f"calm text {i}" for i in range(12)), *(f"unsafe text {i}" for i in range(12))]
    encoder = MockEncoder()
    guard, query = Guard(encoder).fit(texts, [0] * 12 + [1] * 12, progress=False), QueryBundle("a calm text")
    gate = GuardQueryTransform(guard=guard)
    gate.run(query)
    asked = len(encoder.batches)
    gate.run(query)
    assert len(encoder.batches) == asked
    guard.measure_novelty()
    gate.run(query)
    assert len(encoder.batches) > asked


@pytest.mark.parametrize("on_review", ["pass", "block"])
def test_an_engine_answers_or_refuses_what_is_to_be_reviewed(on_review: Any) -> None:
    llm = ScriptedLLM(answers=[CALM])
    engine = GuardedQueryEngine(index().as_query_engine(llm=llm), guard=doubting(), on_review=on_review)
    response = engine.query(DOUBTFUL)
    assert (str(response) == CALM) == (on_review == "pass")
    assert len(llm.calls) == (1 if on_review == "pass" else 0)
    assert response.metadata is not None
    assert response.metadata["prompt_verdict"].action is (Action.REVIEW if on_review == "pass" else Action.BLOCK)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("on_review", ["pass", "block"])
def test_an_engine_releases_or_withholds_an_answer_that_is_to_be_reviewed(on_review: Any, streaming: bool) -> None:
    inner = index().as_query_engine(llm=answers_doubtfully(), streaming=streaming)
    moderator = doubting(target="response")
    engine = GuardedQueryEngine(inner, guard=MockGuard(), moderator=moderator, on_review=on_review)
    response: Any = engine.query("what is blue")
    text = "".join(response.response_gen) if streaming else str(response)
    assert ("doubtful" in text) == (on_review == "pass")


@pytest.mark.parametrize("on_review", ["pass", "block"])
async def test_a_model_answers_or_refuses_what_is_to_be_reviewed(on_review: Any) -> None:
    llm = ScriptedLLM(answers=[CALM])
    guarded = GuardedLLM(llm, guard=doubting(), on_review=on_review)
    replies = [guarded.chat(ASKED).message.content, (await guarded.achat(ASKED)).message.content]
    assert all((reply == CALM) == (on_review == "pass") for reply in replies)
    assert len(llm.calls) == (2 if on_review == "pass" else 0)


@pytest.mark.parametrize("on_review", ["pass", "block"])
def test_a_model_releases_or_withholds_an_answer_that_is_to_be_reviewed(on_review: Any) -> None:
    guarded = GuardedLLM(answers_doubtfully(), moderator=doubting(target="response"), on_review=on_review)
    whole = guarded.chat(ASKED).message.content or ""
    streamed = "".join(part.delta or "" for part in guarded.stream_chat(ASKED))
    assert ("doubtful" in whole) == ("doubtful" in streamed) == (on_review == "pass")


@pytest.mark.parametrize(("action", "kept"), [("drop", 1), ("redact", 2), ("flag", 2)])
async def test_a_node_to_review_is_kept_unless_the_postprocessor_blocks_it(action: Any, kept: int) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("a doubtful fact", "a plain fact")]
    assert GuardPostprocessor(guard=doubting(), action=action).postprocess_nodes(nodes) == nodes
    blocking = GuardPostprocessor(guard=doubting(), action=action, on_review="block")
    for found in (blocking.postprocess_nodes(nodes), await blocking.apostprocess_nodes(nodes)):
        assert len(found) == kept
        assert found != nodes


def test_an_index_takes_it_for_all_its_doors() -> None:
    guarded = guard_index(index("a doubtful fact", "a plain fact"), guard=doubting(), on_review="block")
    with pytest.raises(PromptBlockedError):
        guarded.as_retriever().retrieve(DOUBTFUL)
    llm = ScriptedLLM(answers=[CALM])
    engine = guarded.as_query_engine(llm=llm)
    assert str(engine.query(DOUBTFUL)) != CALM
    response = engine.query("plain")
    assert [node.text for node in response.source_nodes] == ["a plain fact"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: GuardedRetriever(index().as_retriever(), guard=doubting(), on_review="ask"),  # type: ignore[arg-type]
        lambda: GuardQueryTransform(guard=doubting(), on_review="ask"),  # type: ignore[arg-type]
        lambda: GuardPostprocessor(guard=doubting(), on_review="ask"),  # type: ignore[arg-type]
        lambda: GuardedLLM(ScriptedLLM(), guard=doubting(), on_review="ask"),  # type: ignore[arg-type]
        lambda: guard_index(index(), guard=doubting(), on_review="ask"),  # type: ignore[arg-type]
        lambda: GuardedQueryEngine(index().as_query_engine(llm=ScriptedLLM()), guard=doubting(), on_review="ask"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_value_is_named(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="on_review"):
        make()
