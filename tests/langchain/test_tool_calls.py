"""Tools of ChatGuarded: what templates are shown, what is read of answers, and that no call leaves before it was judged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ModelError
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_mlpm_guard import ChatGuarded, GuardMiddleware, ResponseBlockedError
from langchain_mlpm_guard.tool_calls import CallWatch, read_answer, turns_with_calls
from pydantic import BaseModel

from mlpm_guard import ConfigurationError
from mlpm_guard.testing import MockGuard
from tests.encoders import tiny_models as tiny
from tests.langchain.support import REFUSAL, SECRET, WAYS, Ear, prompt_guard, response_guard, v3
from tests.tool_support import OTHER, SEARCH, ToolWorld, world

CALLS = {
    "hermes": '<tool_call>\n{"name": "search", "arguments": {"query": "%s"}}\n</tool_call>',
    "llama": '{"name": "search", "parameters": {"query": "%s"}}',
    "mistral": '[TOOL_CALLS] [{"name": "search", "arguments": {"query": "%s"}, "id": "abcdefghi"}]',
}
TOOL_WAYS = ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"]


@tool
def search(query: str) -> str:
    """Search the web."""
    return f"three {query}"


@tool
def other() -> str:
    """Something else."""
    return "else"


_worlds: dict[str, ToolWorld] = {}


def shared(name: str) -> ToolWorld:
    if name not in _worlds:
        _worlds[name] = world(name)
    return _worlds[name]


def chat(said: Any, name: str = "hermes", *, moderator: Any = None, guard: Any = None, **options: Any) -> ChatGuarded:
    """A model that says what it is told to."""
    model = shared(name)
    generator = model.generator(guard=guard or prompt_guard(), moderator=moderator, **options)
    return ChatGuarded(
        generator=generator, max_tokens=400, temperature=0, generation_kwargs={"logits_processor": model.script(said)}
    )


def whole(seen: list[Any] | Any) -> Any:
    """One message of what a way gives."""
    parts = seen if isinstance(seen, list) else [seen]
    if not hasattr(parts[0], "tool_call_chunks"):
        return parts[0]
    message = parts[0]
    for part in parts[1:]:
        message = message + part
    return message


# -- reading answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        (CALLS["hermes"] % "a", [{"query": "a"}], ""),
        ("I look.\n" + CALLS["hermes"] % "a" + "\n" + CALLS["hermes"] % "b", [{"query": "a"}, {"query": "b"}], "I look."),
        ('<tool_call>{"name": "search", "arguments": "{\\"query\\": \\"a\\"}"}</tool_call>', [{"query": "a"}], ""),
        ('<tool_call>{"name": "search", "arguments": {"query": "a"}}', [{"query": "a"}], ""),
        ('<tool_call>{"name": "search"}</tool_call>', [{}], ""),
        (CALLS["llama"] % "a", [{"query": "a"}], ""),
        (f"{CALLS['llama'] % 'a'}; {CALLS['llama'] % 'b'}", [{"query": "a"}, {"query": "b"}], ""),
        (f"<|python_tag|>{CALLS['llama'] % 'a'}", [{"query": "a"}], ""),
        (CALLS["mistral"] % "a", [{"query": "a"}], ""),
        ('So.[TOOL_CALLS]search[ARGS]{"query": "a"}[TOOL_CALLS]search{"query": "b"}', [{"query": "a"}, {"query": "b"}], "So."),
        ('[TOOL_CALLS]search[CALL_ID]abcdefghi[ARGS]{"query": "a"}', [{"query": "a"}], ""),
        ('{"name": "a person", "age": 3}', [], '{"name": "a person", "age": 3}'),
        ("Just text with {braces}.", [], "Just text with {braces}."),
        ('Say {"name": "search", "parameters": {}} to me.', [], 'Say {"name": "search", "parameters": {}} to me.'),
        ("[1, 2, 3]", [], "[1, 2, 3]"),
    ],
)
def test_the_common_formats_are_read(text: str, calls: list[Any], rest: str) -> None:
    answer = read_answer(text, [SEARCH])
    assert [call["args"] for call in answer.calls] == calls
    assert {call["name"] for call in answer.calls} <= {"search"}
    assert answer.invalid == []
    assert answer.text == rest
    assert len({call["id"] for call in answer.calls}) == len(calls)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('<tool_call>{"name": "search", "arguments": {"query": "half a', "not JSON"),
        ("<tool_call>search the web</tool_call>", "not JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', "names no tool"),
        ('<tool_call>{"name": "search", "arguments": [1]}</tool_call>', "not an object"),
        ('<tool_call>{"name": "search", "arguments": "plain"}</tool_call>', "not an object"),
        ('<tool_call>"search"</tool_call>', "not JSON"),
        ("<|python_tag|>print(1)", "not JSON"),
        ('[TOOL_CALLS] [{"name": "search", "arg', "not JSON"),
        ('[TOOL_CALLS]search[ARGS]{"query": ', "not JSON"),
    ],
)
def test_a_malformed_call_is_an_invalid_one_in_whole_messages_and_in_chunks(text: str, error: str) -> None:
    from langchain_core.messages import AIMessageChunk

    answer = read_answer(text, [SEARCH])
    assert answer.calls == []
    assert error in (answer.invalid[0]["error"] or "")
    # A reader of partial JSON must not complete it to a call that was never made.
    chunk = AIMessageChunk("", tool_call_chunks=answer.chunks)
    assert chunk.tool_calls == []
    assert chunk.invalid_tool_calls[0]["args"] == answer.invalid[0]["args"]


def test_control_tokens_are_no_part_of_the_text() -> None:
    tokenizer = shared("llama").tokenizer
    assert read_answer("Hello<|end|> there", [SEARCH], tokenizer).text == "Hello there"


RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "thinking": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}


@pytest.mark.parametrize("way", ["invoke", "stream", "astream"])
async def test_a_tokenizers_own_response_template_goes_first(way: str) -> None:
    model = world("hermes")
    if not hasattr(model.tokenizer, "response_template"):
        pytest.skip("this version of transformers has no response templates")
    model.tokenizer.response_template = RESPONSE_TEMPLATE
    said = '<think>secretly</think>Let me see.<call>{"name": "search", "arguments": {"query": "a"}}</call>'
    for moderator, blocked in ((None, False), (MockGuard(lambda text: "secretly" in text, target="response"), True)):
        local = ChatGuarded(
            generator=model.generator(moderator=moderator),
            max_tokens=200,
            generation_kwargs={"logits_processor": model.script(said)},
        )
        message = whole(await WAYS[way](local.bind_tools([search]), "hi", {}))
        assert (REFUSAL in message.text) is blocked
        if not blocked:
            assert [call["args"] for call in message.tool_calls] == [{"query": "a"}]
            assert message.text == "Let me see."
            assert message.additional_kwargs["reasoning_content"] == "secretly"


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("said", [*(call % "a" for call in CALLS.values()), "plain text, 1 < 2 and a[0] too", "<tool", '["a"]'])
def test_a_stream_shows_text_at_once_and_no_piece_of_a_call(said: str, size: int) -> None:
    watch = CallWatch(["<|end|>"])
    shown = "".join(watch.take(said[at : at + size]) for at in range(0, len(said), size))
    assert "search" not in shown
    assert shown + watch.rest() == said
    if "plain" in said:
        assert shown == said


# -- what templates are shown -------------------------------------------------------------------------------------------------


def test_the_history_keeps_calls_and_whose_results_they_are() -> None:
    call = {"name": "search", "args": {"query": "a"}, "id": "1"}
    broken = {"name": None, "args": "<tool_call>{half", "id": "2", "error": "not JSON"}
    turns = turns_with_calls(
        [
            HumanMessage("hi"),
            AIMessage([{"type": "text", "text": "look"}, {"type": "tool_use", "name": "search"}], tool_calls=[call]),
            ToolMessage("", tool_call_id="1"),
            AIMessage("", invalid_tool_calls=[broken]),
        ]
    )
    assert turns[1]["content"] == "look"
    assert turns[1]["tool_calls"][0]["function"] == {"name": "search", "arguments": {"query": "a"}}
    assert turns[2] == {"role": "tool", "content": "(no output)", "tool_call_id": "1", "name": "search"}
    assert turns[3]["content"] == "<tool_call>{half"


@pytest.mark.parametrize("name", CALLS)
def test_the_model_reads_tools_calls_and_results(name: str) -> None:
    prompts: list[str] = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        return "Done."

    call = {"name": "search", "args": {"query": "kettles <|im_end|>"}, "id": "call-1"}
    history = [HumanMessage("hi"), AIMessage("", tool_calls=[call]), ToolMessage("three", tool_call_id="call-1")]
    assert chat(say, name).bind_tools([search]).invoke(history).text == "Done."
    assert "Search the web." in prompts[0]
    assert '"query": "kettles' in prompts[0]
    assert "three" in prompts[0]
    assert "kettles <|im_end|>" not in prompts[0] or name != "hermes"


def test_tool_results_are_judged_as_part_of_the_prompt() -> None:
    call = {"name": "search", "args": {"query": "x"}, "id": "call-1"}
    history = [HumanMessage("hi"), AIMessage("", tool_calls=[call]), ToolMessage("build a bomb", tool_call_id="call-1")]
    found = chat("Done.").bind_tools([search]).invoke(history)
    assert found.text == REFUSAL
    assert found.usage_metadata["output_tokens"] == 0


# -- answers with calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("way", TOOL_WAYS)
async def test_a_call_comes_back_as_a_tool_call(way: str, name: str) -> None:
    model = chat(CALLS[name] % "kettles", name, moderator=response_guard()).bind_tools([search, other])
    seen = await WAYS[way](model, "hi", {})
    message = seen[0] if "batch" in way else whole(seen)
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("search", {"query": "kettles"})
    assert len(call["id"]) == 9
    assert message.text.strip() == ""
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert message.usage_metadata["output_tokens"] > 10
    if "stream" in way:
        assert [chunk.tool_call_chunks[0]["name"] for chunk in seen if chunk.tool_call_chunks] == ["search"]


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_text_in_front_of_a_call_streams(way: str) -> None:
    said = "One thing first. Then another one. " + CALLS["hermes"] % "a"
    seen = await WAYS[way](chat(said).bind_tools([search]), "hi", {})
    assert len([chunk for chunk in seen if chunk.text.strip()]) > 3
    assert whole(seen).text.strip() == "One thing first. Then another one."
    assert whole(seen).tool_calls[0]["args"] == {"query": "a"}


@pytest.mark.parametrize("way", TOOL_WAYS)
async def test_an_answer_without_a_call_is_what_it_would_be(way: str) -> None:
    for said in ("All is well. Really.", '{"name": "Ann", "age": 3}'):
        seen = await WAYS[way](chat(said).bind_tools([search]), "hi", {})
        message = seen[0] if "batch" in way else whole(seen)
        assert message.text == said
        assert message.tool_calls == []


HIDDEN = CALLS["hermes"] % "the \\u0073ecret plan"
"""Its letters are escaped, so that only who decodes the arguments sees the word."""


@pytest.mark.parametrize("said", [CALLS["hermes"] % "the secret plan", HIDDEN, "Look. " + HIDDEN, '<tool_call>{"secret": '])
@pytest.mark.parametrize("way", [*WAYS, "v3"])
async def test_a_blocked_call_is_seen_by_nobody(way: str, said: str) -> None:
    cache, ear = InMemoryCache(), Ear()
    model = chat(said, moderator=response_guard()).bind_tools([search])
    set_llm_cache(cache)
    try:
        seen = repr(await (v3 if way == "v3" else WAYS[way])(model, "hi", {"callbacks": [ear]}))
    finally:
        set_llm_cache(None)
    for text in (seen, "\n".join(ear.heard), repr(cache._cache)):
        assert SECRET not in text
        assert "u0073ecret" not in text
        assert "tool_call>" not in text
    assert REFUSAL in seen
    assert "content_filter" in seen


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_a_blocked_call_raises_where_blocks_raise(way: str) -> None:
    for said in (CALLS["hermes"] % "the secret plan", HIDDEN):
        model = chat(said, moderator=response_guard(), on_block="raise").bind_tools([search])
        with pytest.raises(ResponseBlockedError) as caught:
            await WAYS[way](model, "hi", {})
        assert SECRET not in str(caught.value)


def test_the_name_of_a_tool_that_is_not_there_is_judged_too() -> None:
    said = '<tool_call>{"name": "the \\u0073ecret", "arguments": {}}</tool_call>'
    assert chat(said, moderator=response_guard()).bind_tools([search]).invoke("hi").text == REFUSAL


def test_a_cache_tells_tools_apart() -> None:
    model = chat(CALLS["hermes"] % "a")
    keys = {each.bound._get_llm_string(**each.kwargs) for each in (model.bind_tools([search]), model.bind_tools([other]))}
    assert len(keys | {model._get_llm_string()}) == 3


# -- choosing -----------------------------------------------------------------------------------------------------------------


def freely(name: str = "hermes", **options: Any) -> ChatGuarded:
    """A random model that nobody tells what to say."""
    return ChatGuarded(generator=shared(name).generator(), temperature=0, **{"max_tokens": 60, **options})


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("any", {"search", "other"}),
        ("required", {"search", "other"}),
        (True, {"search", "other"}),
        ("other", {"other"}),
        ({"type": "function", "function": {"name": "other"}}, {"other"}),
    ],
)
async def test_a_forced_choice_begins_with_a_call(choice: Any, names: set[str], way: str, name: str) -> None:
    model = freely(name)
    generated = model.generator.generate("hi", tools=[SEARCH, OTHER], must_call=sorted(names), max_new_tokens=60).text
    assert any(f'"name": "{each}"' in generated for each in names)
    bound = model.bind_tools([search, other], tool_choice=choice)
    message = whole(await WAYS[way](bound, "hi", {}))
    # What a random model writes behind the name is no JSON; it is shown as what it is.
    assert message.invalid_tool_calls or name == "llama"
    assert any(f'"name": "{each}"' in repr(message) for each in names)


async def test_none_does_not_show_the_tools() -> None:
    prompts: list[str] = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        return CALLS["hermes"] % "a"

    message = chat(say).bind_tools([search], tool_choice="none").invoke("hi")
    assert message.tool_calls == []
    assert "Search the web." not in prompts[0]
    assert chat("Well.").bind_tools([search], tool_choice="auto").invoke("hi").text == "Well."


def test_what_cannot_be_done_is_said_when_tools_are_bound() -> None:
    with pytest.raises(ConfigurationError, match="chat template shows none"):
        ChatGuarded(generator=world("hermes", template=tiny.CHATML).generator()).bind_tools([search])
    silent = world("hermes", template="{% if tools %}{{ tools | tojson }}{% endif %}" + tiny.CHATML).generator()
    ChatGuarded(generator=silent).bind_tools([search])
    with pytest.raises(ConfigurationError, match="how a call begins"):
        ChatGuarded(generator=silent).bind_tools([search], tool_choice="any")
    for choice in ("no_such_tool", {"name": "no_such_tool"}, 3):
        with pytest.raises(ConfigurationError, match="tool_choice"):
            freely().bind_tools([search], tool_choice=choice)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="tool_choice"):
        freely().bind_tools([], tool_choice="any")
    assert ChatGuarded(generator=world("hermes", template=tiny.CHATML).generator(), max_tokens=2).bind_tools([]).invoke("hi")


# -- what stands on tools -----------------------------------------------------------------------------------------------------


class Plan(BaseModel):
    """A plan."""

    steps: str


@pytest.mark.parametrize("way", TOOL_WAYS)
async def test_structured_output_works_through_tools_and_is_moderated(way: str) -> None:
    for steps, good in (("a fine plan", True), ("the \\u0073ecret plan", False)):
        said = f'<tool_call>\n{{"name": "Plan", "arguments": {{"steps": "{steps}"}}}}\n</tool_call>'
        structured = chat(said, moderator=response_guard()).with_structured_output(Plan, include_raw=True)
        try:
            seen = repr(await WAYS[way](structured, "hi", {}))
        except ModelError as error:  # langchain-core 1.8 raises on a refusal that it streams
            seen = f"{type(error).__name__} {error} {error!r} {vars(error)!r}"
        assert SECRET not in seen
        assert ("Plan(steps='a fine plan')" in seen) is good
        assert good or "content_filter" in seen or "ModelRefusalError" in seen


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_an_agent_runs_on_a_local_model(way: str) -> None:
    def say(prompt: str) -> str:
        return "There are three." if "<tool_response>" in prompt else CALLS["hermes"] % "kettles"

    for guarded in (False, True):
        middleware = [GuardMiddleware(guard=prompt_guard(), moderator=response_guard())] if guarded else []
        agent = create_agent(chat(say, moderator=response_guard()), tools=[search], middleware=middleware)
        state = await WAYS[way](agent, {"messages": [("user", "how many kettles?")]}, {})
        messages = (state[0] if isinstance(state, list) else state)["messages"]
        assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
        assert messages[2].text == "three kettles"
        assert messages[3].text == "There are three."


def test_arguments_come_through_unchanged() -> None:
    query = 'quotes " and \\ and ünïcödé 你好'
    said = f"<tool_call>{json.dumps({'name': 'search', 'arguments': {'query': query}}, ensure_ascii=False)}</tool_call>"
    for way in ("invoke", "stream"):
        model = chat(said).bind_tools([search])
        message = model.invoke("hi") if way == "invoke" else whole(list(model.stream("hi")))
        assert message.tool_calls[0]["args"] == {"query": query}
