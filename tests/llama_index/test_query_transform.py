"""GuardQueryTransform: blocked queries retrieve nothing, or are rewritten; one verdict a query."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from llama_index.core.query_engine import RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.schema import QueryBundle
from llama_index_mlpm_guard import GuardQueryTransform, PromptBlockedError

from mlpm_guard import ConfigurationError, PromptBlocked
from mlpm_guard.testing import MockGuard
from tests.llama_index.support import BLOCKED_QUERY, CountingRetriever, ScriptedLLM, index, moderator, observed, prompt_guard


def engine(transform: GuardQueryTransform) -> tuple[TransformQueryEngine, CountingRetriever, ScriptedLLM]:
    retriever, llm = CountingRetriever(index().as_retriever()), ScriptedLLM()
    return TransformQueryEngine(RetrieverQueryEngine.from_args(retriever, llm=llm), transform), retriever, llm


async def ask(queries: TransformQueryEngine, how: str, query: Any) -> Any:
    return queries.query(query) if how == "query" else await queries.aquery(query)


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_blocked_query_raises_before_anything_is_retrieved(how: str) -> None:
    queries, retriever, llm = engine(GuardQueryTransform(guard=prompt_guard()))
    with pytest.raises(PromptBlockedError, match="score") as caught:
        await ask(queries, how, BLOCKED_QUERY)
    assert isinstance(caught.value, PromptBlocked)
    assert caught.value.verdict.blocked
    assert "bomb" not in str(caught.value) + repr(caught.value)
    assert (retriever.queries, llm.calls) == ([], [])


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_harmless_query_is_answered_as_without_the_transform(how: str) -> None:
    queries, retriever, llm = engine(GuardQueryTransform(guard=prompt_guard()))
    assert str(await ask(queries, how, "is the sky blue")) == llm.answers[0]
    assert retriever.queries == ["is the sky blue"]


@pytest.mark.parametrize("how", ["query", "aquery"])
async def test_a_blocked_query_is_rewritten_where_a_replacement_is_given(how: str) -> None:
    queries, retriever, _ = engine(GuardQueryTransform(guard=prompt_guard(), replacement="what is allowed here"))
    await ask(queries, how, QueryBundle(BLOCKED_QUERY, custom_embedding_strs=[BLOCKED_QUERY]))
    assert retriever.queries == ["what is allowed here"]


def test_the_rewritten_query_keeps_nothing_of_the_blocked_one() -> None:
    transform = GuardQueryTransform(guard=prompt_guard(), replacement="what is allowed here")
    rewritten = transform.run(QueryBundle(BLOCKED_QUERY, custom_embedding_strs=["bomb"], embedding=[1.0], image_path="b.png"))
    assert rewritten == QueryBundle("what is allowed here", custom_embedding_strs=["what is allowed here"])


def test_every_text_that_is_embedded_is_judged_in_one_scorer_call() -> None:
    guard = prompt_guard()
    transform = GuardQueryTransform(guard=guard)
    with pytest.raises(PromptBlockedError):
        transform.run(QueryBundle("harmless", custom_embedding_strs=["harmless", "a hypothetical answer", "bomb parts"]))
    assert guard.calls == [3]
    with pytest.raises(PromptBlockedError):
        transform.run(QueryBundle("bomb", custom_embedding_strs=["harmless"]))


def test_retrieve_and_synthesize_on_one_query_ask_the_guard_once() -> None:
    guard = prompt_guard()
    queries, _, llm = engine(GuardQueryTransform(guard=guard))
    query = QueryBundle("is the sky blue")
    with observed() as events:
        response = queries.synthesize(query, queries.retrieve(query))
    assert str(response) == llm.answers[0]
    assert len(guard.calls) == 1
    assert len(events.decisions) == 1


def test_a_query_that_was_changed_is_judged_again() -> None:
    transform = GuardQueryTransform(guard=prompt_guard())
    query = transform.run(QueryBundle("harmless"))
    query.query_str = BLOCKED_QUERY
    with pytest.raises(PromptBlockedError):
        transform.run(query)


def test_a_query_is_judged_again_once_the_guard_was_changed() -> None:
    guard = MockGuard(lambda _: 0.4)
    transform = GuardQueryTransform(guard=guard)
    query = transform.run(QueryBundle("harmless"))
    guard.threshold = 0.3
    with pytest.raises(PromptBlockedError):
        transform.run(query)


def test_a_verdict_that_failed_is_not_kept() -> None:
    failing = [True]

    def flag(_text: str) -> bool:
        if failing.pop() if failing else False:
            raise RuntimeError
        return False

    transform = GuardQueryTransform(guard=MockGuard(flag))
    query = QueryBundle("harmless")
    with pytest.raises(PromptBlockedError, match="could not be judged"):
        transform.run(query)
    assert transform.run(query) is query


def test_two_transforms_do_not_share_verdicts() -> None:
    query = QueryBundle(BLOCKED_QUERY)
    GuardQueryTransform(guard=MockGuard()).run(query)
    with pytest.raises(PromptBlockedError):
        GuardQueryTransform(guard=prompt_guard()).run(query)


def test_a_judged_query_can_be_copied_and_pickled_and_leaves_the_verdict_behind() -> None:
    guard = prompt_guard()
    transform = GuardQueryTransform(guard=guard)
    query = transform.run(QueryBundle("harmless"))
    for twin in (pickle.loads(pickle.dumps(query)), copy.deepcopy(query)):
        assert twin == query
        transform.run(twin)
    assert len(guard.calls) == 3


def test_monitor_mode_lets_a_flagged_query_pass_and_reports_it() -> None:
    transform = GuardQueryTransform(guard=prompt_guard(mode="monitor"))
    with observed() as events:
        transform.run(BLOCKED_QUERY)
    (decision,) = events.decisions
    assert decision.verdict.flagged
    assert not decision.blocked
    assert (decision.stage, decision.component) == ("query", "GuardQueryTransform")


def test_an_empty_query_fails_closed() -> None:
    with pytest.raises(PromptBlockedError, match="empty_input"):
        GuardQueryTransform(guard=prompt_guard()).run("")


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigurationError, match="guard is str"):
        GuardQueryTransform(guard="default")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="moderator="):
        GuardQueryTransform(guard=moderator())
    with pytest.raises(ConfigurationError, match="replacement"):
        GuardQueryTransform(guard=prompt_guard(), replacement=" ")
