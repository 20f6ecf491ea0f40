"""GuardedGenerator with tools: what the model reads, what is judged, what comes back. A random model follows a script."""

from __future__ import annotations

from typing import Any

import pytest

from mlpm_guard import ConfigurationError, Guard, InvalidConversationError, TransformerEncoder
from mlpm_guard.conversation import Conversation
from mlpm_guard.testing import MockGuard
from tests.encoders import tiny_models as tiny
from tests.tool_support import OTHER, SEARCH, TEMPLATES, ToolWorld, world

HERMES_CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "kettles"}}\n</tool_call>'
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "find kettles"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "search", "arguments": {"query": "kettles"}}}],
    },
    {"role": "tool", "content": "three kettles", "tool_call_id": "a"},
]


@pytest.fixture(scope="module")
def hermes() -> ToolWorld:
    return world("hermes")


def test_what_is_judged_is_what_the_model_reads(hermes: ToolWorld) -> None:
    encoder = TransformerEncoder(hermes.model, hermes.tokenizer)
    guard = Guard(encoder, threshold=1.0).fit(
        [f"tell me {index}" for index in range(8)] + [f"ATTACK {index}" for index in range(8)],
        [0] * 8 + [1] * 8,
        progress=False,
    )
    generator = hermes.generator(guard=guard)
    plain = generator.generate(HISTORY[0]["content"], max_new_tokens=1).verdict
    shown = generator.generate(HISTORY[0]["content"], tools=[SEARCH], max_new_tokens=1).verdict
    assert shown.score != plain.score
    # The same text as one prompt of the model gives the same states, so the same score.
    ids = generator.inputs(HISTORY, tools=[SEARCH])["input_ids"]
    conversation = generator._read(HISTORY, (SEARCH,))
    assert ids[0].tolist() == encoder.prompt_ids([conversation])[0]
    states = encoder.encode([conversation], layers=guard.policy().layers)
    (expected,) = guard.policy().judge([conversation], states, "prefill")
    found = generator.generate(HISTORY, tools=[SEARCH], max_new_tokens=1).verdict
    assert found.score == pytest.approx(expected.score, abs=1e-5)


def test_calls_in_the_history_are_read_and_not_told_as_unread(hermes: ToolWorld) -> None:
    generator = hermes.generator()
    assert "three kettles" in hermes.prompt(generator, HISTORY)
    assert '{"query": "kettles"}' in hermes.prompt(generator, HISTORY)
    assert generator.generate(HISTORY, max_new_tokens=1).verdict.not_judged == ()


def test_a_conversation_object_may_be_asked_with_tools(hermes: ToolWorld) -> None:
    generator = hermes.generator()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert hermes.prompt(generator, Conversation.parse(turns), tools=[SEARCH]) == hermes.prompt(
        generator, turns, tools=[SEARCH]
    )


@pytest.mark.parametrize(("name", "said"), [("hermes", HERMES_CALL), ("mistral", '[TOOL_CALLS] [{"name": "search"}]')])
@pytest.mark.parametrize("way", ["generate", "agenerate", "stream", "astream"])
async def test_the_text_keeps_control_tokens_that_mark_calls_and_no_others(name: str, said: str, way: str) -> None:
    model = world(name)
    generator = model.generator()
    arguments: dict[str, Any] = {"tools": [SEARCH], "max_new_tokens": 200, "logits_processor": model.script(said)}
    if way == "generate":
        text = generator.generate("hi", **arguments).text
    elif way == "agenerate":
        text = (await generator.agenerate("hi", **arguments)).text
    elif way == "stream":
        text = "".join(generator.stream("hi", **arguments))
    else:
        text = "".join([piece async for piece in generator.astream("hi", **arguments)])
    assert text == said
    bare = generator.generate("hi", max_new_tokens=200, logits_processor=model.script(said)).text
    assert ("[TOOL_CALLS]" in bare) is False


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("sampled", [False, True])
def test_an_answer_that_must_call_begins_with_a_call_of_a_named_tool(name: str, sampled: bool) -> None:
    generator = world(name).generator()
    options: dict[str, Any] = {"tools": [SEARCH, OTHER], "max_new_tokens": 48, "do_sample": sampled}
    for must_call in (["other"], ["search", "other"]):
        for found in generator.generate(["hi", "and a longer question"], must_call=must_call, **options):
            start = found.text.split('", "')[0]
            assert start.endswith(tuple(f'"name": "{each}' for each in must_call))
    assert '"name"' not in generator.generate("hi", **options).text


def test_a_blocked_prompt_is_blocked_with_tools_as_without(hermes: ToolWorld) -> None:
    generator = hermes.generator(guard=MockGuard(lambda text: "bomb" in text))
    found = generator.generate(["a bomb", "fine"], tools=[SEARCH], must_call=["search"], max_new_tokens=40)
    assert [each.blocked for each in found] == [True, False]
    assert found[1].text.startswith("<tool_call>")


def test_one_more_text_of_an_answer_can_be_moderated(hermes: ToolWorld) -> None:
    moderator = MockGuard(lambda text: "secret" in text, target="response")
    generator = hermes.generator(moderator=moderator)
    verdict = generator.moderate("hi", "a secret")
    assert verdict is not None
    assert verdict.blocked
    assert generator.moderate("hi", " ") is None
    assert hermes.generator().moderate("hi", "a secret") is None


def test_a_template_without_tools_is_told_before_anything_runs(hermes: ToolWorld) -> None:
    plain = world("hermes", template=tiny.CHATML).generator()
    assert not plain.takes_tools
    for call in (plain.generate, plain.stream, plain.astream, plain.inputs):
        with pytest.raises(ConfigurationError, match="shows no tools"):
            call("hi", tools=[SEARCH])
    silent = world("hermes", template="{% if tools %}{{ tools | tojson }}{% endif %}" + tiny.CHATML).generator()
    with pytest.raises(ConfigurationError, match="how a call begins"):
        silent.generate("hi", tools=[SEARCH], must_call=["search"])
    with pytest.raises(ConfigurationError, match="must_call"):
        hermes.generator().generate("hi", tools=[SEARCH], must_call=["other"])


def test_a_bad_call_in_the_history_blocks_as_other_bad_input_does(hermes: ToolWorld) -> None:
    bad = [HISTORY[0], {"role": "assistant", "content": "", "tool_calls": ["x"]}, HISTORY[2]]
    assert hermes.generator().generate(bad, tools=[SEARCH]).verdict.error == "invalid_input"
    with pytest.raises(InvalidConversationError):
        hermes.generator(guard=MockGuard(on_error="raise")).generate(bad, tools=[SEARCH])
