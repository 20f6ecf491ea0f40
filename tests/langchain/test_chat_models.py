"""ModeratedChatModel: it stays the chat model that it wraps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_mlpm_guard import GuardBypassWarning, ModeratedChatModel, PromptBlockedError, ResponseBlockedError, guard_chain
from langchain_mlpm_guard.refusals import HAS_REFUSAL_BLOCK
from pydantic import BaseModel

from mlpm_guard import ConfigurationError, InvalidConversationError, Verdict
from mlpm_guard.testing import MockGuard
from tests.langchain.support import (
    ANGRY,
    BOMB,
    CALM,
    HELLO,
    REFUSAL,
    SECRET,
    WAYS,
    Ear,
    ScriptedModel,
    prompt_guard,
    response_guard,
)
from tests.langchain.test_standard import ObligingModel
from tests.loop_support import Meeting

USAGE: Any = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


def moderated(model: Any, **options: Any) -> ModeratedChatModel:
    return ModeratedChatModel(model=model, guard=prompt_guard(), moderator=response_guard(), **options)


class Joke(BaseModel):
    """A joke."""

    setup: str


@tool
def search(query: str) -> str:
    """Search."""
    return query


async def streamed(model: Any, way: str, value: Any = HELLO) -> AIMessageChunk:
    chunks = await WAYS[way](model, value, {})
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


# -- blocked ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["stream", "astream", "invoke", "ainvoke"])
async def test_a_blocked_answer_is_a_refusal_in_the_standard_form(way: str) -> None:
    model = moderated(ScriptedModel(answers=[AIMessage(ANGRY, usage_metadata=USAGE, additional_kwargs={"more": "secret"})]))
    if "stream" in way:
        message: Any = await streamed(model, way)
        assert message.text == "A fine day. " + REFUSAL
    else:
        message = await model.ainvoke(HELLO) if way == "ainvoke" else model.invoke(HELLO)
        assert message.text == REFUSAL
        assert message.usage_metadata["total_tokens"] == 7
    assert message.response_metadata["finish_reason"] == "content_filter"
    assert message.tool_calls == []
    assert SECRET not in repr(message)
    told = message.response_metadata["mlpm_guard"]
    assert told["blocked"] == "response"
    assert Verdict.model_validate(told["response"]).blocked
    assert any(block["type"] == "refusal" for block in message.content_blocks) is HAS_REFUSAL_BLOCK


def test_a_blocked_prompt_costs_no_tokens() -> None:
    message = moderated(ScriptedModel()).invoke(BOMB)
    assert message.text == REFUSAL
    assert message.usage_metadata["total_tokens"] == 0
    assert message.response_metadata["mlpm_guard"]["blocked"] == "prompt"


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_on_block_raise_raises(way: str) -> None:
    with pytest.raises(PromptBlockedError):
        await WAYS[way](moderated(ScriptedModel(), on_block="raise"), BOMB, {})
    with pytest.raises(ResponseBlockedError) as caught:
        await WAYS[way](moderated(ScriptedModel(answers=[ANGRY]), on_block="raise"), HELLO, {})
    assert SECRET not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "astream_events v2"])
@pytest.mark.parametrize(
    "answer",
    [
        AIMessage("", tool_calls=[{"name": "search", "args": {"query": "the secret plan"}, "id": "1"}]),
        AIMessage("", tool_calls=[{"name": "search", "args": {"query": {"deep": ["secret"]}}, "id": "1"}]),
        AIMessage("", tool_calls=[{"name": "search", "args": {"the secret plan": 1}, "id": "1"}]),
        AIMessage("fine", additional_kwargs={"reasoning_content": "the secret plan"}),
        AIMessage("", additional_kwargs={"function_call": {"name": "a", "arguments": '{"x": "secret"}'}}),
    ],
)
async def test_what_stands_beside_the_text_is_judged_too(answer: AIMessage, way: str) -> None:
    ear = Ear()
    seen = repr(await WAYS[way](moderated(ScriptedModel(answers=[answer])), HELLO, {"callbacks": [ear]}))
    assert REFUSAL in seen
    assert SECRET not in seen
    assert SECRET not in "\n".join(ear.heard)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "reasoning", "reasoning": "the secret plan"},
        {"type": "thinking", "thinking": "the secret plan", "signature": "x"},
        {"type": "tool_use", "id": "1", "name": "a", "input": {"q": "secret"}},
        {"type": "text", "text": "fine", "annotations": [{"cited_text": "secret"}]},
        {"type": "refusal", "refusal": "no secret"},
    ],
)
def test_content_blocks_are_judged_whatever_their_type(block: dict[str, Any]) -> None:
    answer = AIMessage([{"type": "text", "text": "well. "}, block])
    model = ScriptedModel(answers=[answer])
    model.disable_streaming = True
    assert SECRET not in repr(moderated(model).invoke(HELLO))
    assert SECRET not in repr(list(moderated(model).stream(HELLO)))
    assert guard_chain(model, moderator=response_guard()).invoke(HELLO).text == REFUSAL


def test_log_probabilities_which_repeat_the_answer_go_with_it() -> None:
    answer = AIMessage(ANGRY, response_metadata={"logprobs": {"content": [{"token": "secret"}]}})
    assert SECRET not in repr(moderated(ScriptedModel(answers=[answer])).invoke(HELLO))


# -- passed -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_a_harmless_stream_adds_up_to_what_the_model_said(way: str) -> None:
    calls = [{"name": "search", "args": {"query": "weather in Kraków"}, "id": "1"}]
    answer = AIMessage(CALM, tool_calls=calls, usage_metadata=USAGE, additional_kwargs={"more": "fine"})
    model = ScriptedModel(answers=[answer])
    plain, guarded = await streamed(ScriptedModel(answers=[answer]), way), await streamed(moderated(model), way)
    assert guarded.text == plain.text == CALM
    assert guarded.tool_calls == plain.tool_calls
    assert guarded.usage_metadata == plain.usage_metadata == USAGE
    assert guarded.additional_kwargs == plain.additional_kwargs
    assert guarded.response_metadata["model_name"] == "scripted"
    assert guarded.chunk_position == "last"


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_harmless_answer_is_the_models_own(way: str) -> None:
    answer = AIMessage(CALM, usage_metadata=USAGE, id="mine")
    run = moderated(ScriptedModel(answers=[answer]))
    found = await run.ainvoke(HELLO) if way == "ainvoke" else run.invoke(HELLO)
    assert (found.text, found.usage_metadata, found.id) == (CALM, USAGE, "mine")
    assert found.response_metadata["model_name"] == "scripted"
    assert found.response_metadata["mlpm_guard"]["blocked"] is None


async def test_stop_arguments_and_bindings_reach_the_model() -> None:
    model = ScriptedModel()
    guarded = moderated(model.bind(seed=1, top_p=0.5))
    guarded.invoke(HELLO, stop=["x"], seed=2)
    await guarded.ainvoke(HELLO, stop=["x"])
    list(guarded.stream(HELLO, stop=["x"]))
    await WAYS["astream"](guarded.bind(stop=["y"]), HELLO, {})
    assert [(seen["stop"], seen["seed"], seen["top_p"]) for seen in model.seen] == [
        (["x"], 2, 0.5),
        (["x"], 1, 0.5),
        (["x"], 1, 0.5),
        (["y"], 1, 0.5),
    ]


def test_tools_are_bound_as_the_model_binds_them() -> None:
    model = ScriptedModel()
    bound = moderated(model).bind_tools([search], strict=True)
    bound.invoke(HELLO)
    assert model.seen[0]["tools"] == ["search"]
    assert model.seen[0]["strict"] is True
    assert ObligingModel().bind_tools([search]).invoke(HELLO).tool_calls[0]["name"] == "search"
    assert moderated(ObligingModel()).bind_tools([search]).invoke(HELLO).tool_calls[0]["name"] == "search"


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_structured_output_comes_parsed_and_a_blocked_one_not_at_all(way: str) -> None:
    guarded = moderated(ObligingModel()).with_structured_output(Joke)
    found = await WAYS[way](guarded, HELLO, {})
    assert isinstance(found[-1] if isinstance(found, list) else found, Joke)
    bad = AIMessage("", tool_calls=[{"name": "Joke", "args": {"setup": "the secret"}, "id": "1"}])
    for include_raw in (False, True):
        try:
            blocked = repr(
                await WAYS[way](
                    moderated(ScriptedModel(answers=[bad])).with_structured_output(Joke, include_raw=include_raw), HELLO, {}
                )
            )
        except Exception as error:
            # From langchain-core 1.7.5 on, parsers raise on a refusal.
            blocked = f"{type(error).__name__} {error}"
            assert "Refusal" in blocked
        assert SECRET not in blocked


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_a_chain_with_structured_output_is_guarded_as_data(way: str) -> None:
    for text, blocked in (("the secret", True), ("why", False)):
        answer = AIMessage("", tool_calls=[{"name": "Joke", "args": {"setup": text}, "id": "1"}])
        chain = ScriptedModel(answers=[answer]).with_structured_output(Joke)
        refused = Joke(setup="no joke")
        for refusal in (refused, lambda verdict: Joke(setup="no joke")):
            found = await WAYS[way](guard_chain(chain, moderator=response_guard(), refusal=refusal), HELLO, {})
            last = found[-1] if isinstance(found, list) else found
            assert last == (refused if blocked else Joke(setup="why"))


@pytest.mark.parametrize("way", ["stream", "astream", "invoke"])
async def test_json_that_streams_is_judged_whole(way: str) -> None:
    answer = AIMessage('{"plan": "the sec' + 'ret plan"}')
    chain = ScriptedModel(answers=[answer]) | JsonOutputParser()
    seen = repr(await WAYS[way](guard_chain(chain, moderator=response_guard(), refusal={}), HELLO, {}))
    assert "plan" not in seen


def test_the_profile_token_counts_and_tracing_names_are_the_models() -> None:
    model = ObligingModel(profile={"max_input_tokens": 7})
    guarded = moderated(model)
    assert guarded.profile == {"max_input_tokens": 7}
    assert guarded._get_ls_params() == model._get_ls_params()
    assert guarded._llm_type == "moderated-obliging"


def test_the_inner_rate_limiter_still_limits() -> None:
    asked = []

    class Counting(InMemoryRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            asked.append(blocking)
            return True

    guarded = moderated(ScriptedModel(rate_limiter=Counting()))
    for _ in range(3):
        guarded.invoke(HELLO)
    assert asked == [True] * 3


async def test_only_one_side_may_be_guarded() -> None:
    for way in ("invoke", "ainvoke", "stream", "astream"):
        only_prompts = ModeratedChatModel(model=ScriptedModel(answers=[ANGRY]), guard=prompt_guard())
        assert SECRET in repr(await WAYS[way](only_prompts, HELLO, {}))
        only_answers = ModeratedChatModel(model=ScriptedModel(), moderator=response_guard())
        assert "well." in repr(await WAYS[way](only_answers, BOMB, {}))


def test_tool_results_on_their_way_to_the_model_are_judged_as_prompts() -> None:
    model = ScriptedModel()
    call = AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])
    asked = [HumanMessage(HELLO), call, ToolMessage(BOMB, tool_call_id="1")]
    assert moderated(model).invoke(asked).text == REFUSAL
    assert model.calls == []


async def test_async_calls_use_the_models_async_methods_and_leave_the_loop_free() -> None:
    model = ScriptedModel()
    asked, answered = Meeting(), Meeting()
    guarded = ModeratedChatModel(model=model, guard=MockGuard(asked), moderator=MockGuard(answered, target="response"))
    await asyncio.gather(guarded.ainvoke(HELLO), WAYS["astream"](guarded, HELLO, {}))
    assert len(model.ran_async) == 2
    assert asked.held
    assert answered.held


async def test_a_cancelled_stream_closes_the_model() -> None:
    model = ScriptedModel(answers=[CALM * 50])
    guarded = moderated(model)
    stream = guarded.astream(HELLO)
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0.05)
    assert model.closed == [True]
    sync = guarded.stream(HELLO)
    next(sync)
    sync.close()
    assert model.closed == [True, True]


def test_a_cached_failure_of_the_guard_is_told_apart_by_the_key_of_the_cache() -> None:
    one, other = MockGuard(lambda text: True), MockGuard(lambda text: False)
    keys = {
        ModeratedChatModel(model=ScriptedModel(), guard=guard)._get_llm_string()
        for guard in (one, other, prompt_guard(threshold=0.4), prompt_guard(mode="monitor"))
    }
    assert len(keys) == 4
    same = ScriptedModel()
    assert (
        ModeratedChatModel(model=same, guard=one)._get_llm_string()
        == ModeratedChatModel(model=same, guard=one)._get_llm_string()
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guard": response_guard()},
        {"moderator": prompt_guard()},
        {"moderator": response_guard(), "stream_options": {"hold_back": -1}},
        {"moderator": response_guard(), "stream_options": {"prompt": "x"}},
        {"moderator": response_guard(), "stream_options": {"no_such": 1}},
        {"moderator": response_guard(), "refusal": ""},
        {"moderator": response_guard(), "model": RunnableLambda(str)},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ModeratedChatModel(**{"model": ScriptedModel(), **options})


def test_a_chain_whose_output_type_does_not_tell_needs_a_refusal() -> None:
    with pytest.raises(ConfigurationError, match="refusal="):
        guard_chain(ScriptedModel() | JsonOutputParser(), moderator=response_guard())
    with pytest.raises(ConfigurationError, match="guard="):
        guard_chain(ScriptedModel())
    with pytest.raises(InvalidConversationError, match="object"):
        guard_chain(RunnableLambda(lambda _: object()), moderator=response_guard(), refusal="no").invoke(HELLO)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("answer", [CALM, ANGRY])
async def test_a_guarded_model_within_another_tells_one_verdict_and_what_it_blocked(answer: str, way: str) -> None:
    inner = moderated(ScriptedModel(answers=[answer]))
    for outer in (moderated(inner), ModeratedChatModel(model=inner, guard=prompt_guard())):
        message: Any = await streamed(outer, way) if "stream" in way else (await WAYS[way](outer, HELLO, {}))
        message = message[0] if isinstance(message, list) else message
        told = message.response_metadata["mlpm_guard"]
        assert Verdict.model_validate(told["prompt"]).allowed
        if "stream" not in way:
            assert told["blocked"] == (None if answer == CALM else "response")
        assert SECRET not in repr(message)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_refusal_because_a_guard_failed_is_not_cached(way: str, own: bool) -> None:
    kept, failing = InMemoryCache(), [True]

    def flag(text: str) -> bool:
        if failing[0]:
            raise OSError
        return False

    if not own:
        set_llm_cache(kept)
    try:
        model = ScriptedModel(cache=kept if own else None)
        guarded = ModeratedChatModel(model=model, moderator=MockGuard(flag, target="response"))
        chain = guard_chain(guarded, guard=prompt_guard())
        for runnable in (guarded, chain):
            failing[0] = True
            assert REFUSAL in repr(await WAYS[way](runnable, HELLO, {}))
            assert kept._cache == {}
        failing[0] = False
        assert CALM in repr(await WAYS[way](chain, HELLO, {}))
        assert CALM in repr(kept._cache)
        calls = len(model.calls)
        assert CALM in repr(await WAYS[way](guarded, HELLO, {}))
        assert len(model.calls) == calls
    finally:
        set_llm_cache(None)


def test_a_model_with_callbacks_of_its_own_is_warned_of() -> None:
    with pytest.warns(GuardBypassWarning, match="callbacks"):
        guard_chain(ScriptedModel(callbacks=[Ear()]), moderator=response_guard())
    ear = Ear()
    moderated(ScriptedModel(answers=[ANGRY], callbacks=[ear])).invoke(HELLO)
    assert ear.heard == []
