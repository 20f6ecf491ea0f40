"""PromptGate: inputs, batching, options, serialisation, events, the event loop."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.exceptions import ModelError
from langchain_core.load import dumpd, dumps, load
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_mlpm_guard import PromptBlockedError, PromptGate, ResponseBlockedError

from mlpm_guard import (
    BundleMismatchError,
    ConfigurationError,
    Guard,
    InvalidConversationError,
    PromptBlocked,
    ResponseBlocked,
)
from mlpm_guard.testing import MockGuard
from tests.langchain.support import BOMB, HELLO, WAYS, Ear, ScriptedModel, prompt_guard, response_guard
from tests.loop_support import Meeting

TEMPLATE = ChatPromptTemplate.from_messages([("system", "be kind"), ("human", "{q}")])

IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
CALL = {"name": "a", "args": {}, "id": "1"}


def forms(text: str) -> list[Any]:
    """Everything that LangChain takes for a prompt."""
    return [
        text,
        StringPromptValue(text=text),
        TEMPLATE.invoke({"q": text}),
        HumanMessage(text),
        [HumanMessage(text)],
        [("system", "be kind"), ("human", text)],
        [{"role": "user", "content": text}],
        {"role": "user", "content": text},
        [
            SystemMessage("be kind"),
            HumanMessage([{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "x"}}]),
        ],
        [HumanMessage([{"type": "text-plain", "text": text, "mime_type": "text/plain"}])],
        [ChatMessage(role="visitor", content=text)],
        {"question": text},
        {"messages": [HumanMessage(text)]},
        [
            HumanMessage("hi"),
            AIMessage("", tool_calls=[{"name": "a", "args": {}, "id": "1"}]),
            ToolMessage(text, tool_call_id="1"),
        ],
    ]


@pytest.mark.parametrize("index", range(len(forms(""))))
def test_every_form_of_a_prompt_is_judged_and_passes_as_the_same_object(index: int) -> None:
    gate = PromptGate(guard=prompt_guard())
    harmless = forms(HELLO)[index]
    assert gate.invoke(harmless) is harmless
    with pytest.raises(PromptBlockedError):
        gate.invoke(forms(BOMB)[index])


@pytest.mark.parametrize("value", [7, None, b"bytes", [7], [{"role": "nobody"}], {"a": "x", "b": "y"}, {}, {"q": 1}])
async def test_what_holds_no_prompt_is_refused_without_quoting_it(value: Any) -> None:
    gate = PromptGate(guard=prompt_guard())
    with pytest.raises(InvalidConversationError):
        gate.invoke(value)
    with pytest.raises(InvalidConversationError):
        await gate.ainvoke(value)
    (error,) = gate.batch([value], return_exceptions=True)
    assert isinstance(error, InvalidConversationError)


def test_messages_that_langchain_cannot_read_are_not_quoted() -> None:
    with pytest.raises(InvalidConversationError) as caught:
        PromptGate(guard=prompt_guard()).invoke([{"contents": BOMB}])
    assert "bomb" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_input_key_names_the_entry_that_is_judged() -> None:
    value = {"question": BOMB, "context": "x"}
    assert PromptGate(guard=prompt_guard(), input_key="context").invoke(value) is value
    with pytest.raises(PromptBlockedError):
        PromptGate(guard=prompt_guard(), input_key="question").invoke(value)
    with pytest.raises(InvalidConversationError, match="'prompt'"):
        PromptGate(guard=prompt_guard(), input_key="prompt").invoke(value)


def test_every_new_turn_is_judged_and_not_only_the_last() -> None:
    guard = prompt_guard()
    gate = PromptGate(guard=guard)
    with pytest.raises(PromptBlockedError):
        gate.invoke([HumanMessage(BOMB), HumanMessage(HELLO)])
    with pytest.raises(PromptBlockedError):
        gate.invoke([HumanMessage("x"), AIMessage(""), ToolMessage(BOMB, tool_call_id="1"), ToolMessage("", tool_call_id="2")])
    assert guard.calls == [2, 1]
    assert gate.invoke([HumanMessage("x"), AIMessage(""), ToolMessage("", tool_call_id="2")])
    assert guard.calls == [2, 1]


# -- batches ------------------------------------------------------------------------------------------------------------------


async def test_a_batch_is_one_scorer_call_and_blocked_items_reach_no_model() -> None:
    for run in ("batch", "abatch"):
        guard, model = prompt_guard(), ScriptedModel()
        chain = PromptGate(guard=guard) | model
        inputs = [HELLO, BOMB, "again", 7]
        arguments: dict[str, Any] = {"return_exceptions": True}
        found = chain.batch(inputs, **arguments) if run == "batch" else await chain.abatch(inputs, **arguments)
        assert [type(each).__name__ for each in found] == [
            "AIMessage",
            "PromptBlockedError",
            "AIMessage",
            "InvalidConversationError",
        ]
        assert guard.calls == [3]
        assert sorted(call[0].text for call in model.calls) == ["again", HELLO]


async def test_a_batch_raises_the_first_error_without_return_exceptions() -> None:
    gate = PromptGate(guard=prompt_guard())
    with pytest.raises(PromptBlockedError):
        gate.batch([HELLO, BOMB])
    with pytest.raises(PromptBlockedError):
        await gate.abatch([HELLO, BOMB])
    assert gate.batch([]) == []
    assert gate.map().invoke(["a", "b"]) == ["a", "b"]


# -- policy -------------------------------------------------------------------------------------------------------------------


def test_the_error_is_the_cores_carries_the_verdict_and_is_not_retried_by_langchain() -> None:
    with pytest.raises(PromptBlocked) as caught:
        PromptGate(guard=prompt_guard()).invoke(BOMB)
    error = caught.value
    assert isinstance(error, ModelError)
    assert isinstance(error, PromptBlockedError)
    assert not error.is_retryable
    assert error.verdict.blocked
    again = pickle.loads(pickle.dumps(error))
    assert again.verdict == error.verdict
    assert issubclass(ResponseBlockedError, ResponseBlocked)
    assert not ResponseBlockedError(error.verdict).is_retryable


def test_threshold_and_mode_are_the_gates_own_where_set() -> None:
    guard = MockGuard(lambda text: 0.6)
    with pytest.raises(PromptBlockedError) as caught:
        PromptGate(guard=guard).invoke(HELLO)
    assert caught.value.verdict.threshold == 0.5
    assert PromptGate(guard=guard, threshold=0.7).invoke(HELLO) == HELLO
    assert PromptGate(guard=guard, mode="monitor").invoke(HELLO) == HELLO
    lax = MockGuard(lambda text: 0.6, threshold=0.9)
    with pytest.raises(PromptBlockedError):
        PromptGate(guard=lax, threshold=0.6).invoke(HELLO)
    watching = MockGuard(lambda text: 0.6, mode="monitor")
    with pytest.raises(PromptBlockedError):
        PromptGate(guard=watching, mode="enforce").invoke(HELLO)
    assert guard.threshold == 0.5


async def test_threshold_and_mode_are_configurable_per_call() -> None:
    gate = PromptGate(guard=MockGuard(lambda text: 0.6)).configurable_fields(
        threshold=ConfigurableField(id="guard_threshold"), mode=ConfigurableField(id="guard_mode")
    )
    with pytest.raises(PromptBlockedError):
        gate.invoke(HELLO)
    assert gate.invoke(HELLO, {"configurable": {"guard_threshold": 0.9}}) == HELLO
    assert await gate.ainvoke(HELLO, {"configurable": {"guard_mode": "monitor"}}) == HELLO


def test_a_guard_that_fails_closes_the_gate_and_its_own_on_error_decides() -> None:
    def fails(text: str) -> bool:
        raise OSError(text)

    with pytest.raises(PromptBlockedError, match="encoder_error") as caught:
        PromptGate(guard=MockGuard(fails)).invoke(HELLO)
    assert HELLO not in str(caught.value)
    assert PromptGate(guard=MockGuard(fails, on_error="allow")).invoke(HELLO) == HELLO
    assert PromptGate(guard=MockGuard(fails, on_error="allow"), threshold=0.1).invoke(HELLO) == HELLO
    with pytest.raises(PromptBlockedError):
        PromptGate(guard=MockGuard(fails), threshold=0.99).invoke(HELLO)


def test_a_verdict_of_review_passes_unless_the_gate_is_told_otherwise() -> None:
    class Unsure:
        def check(self, conversation: Any) -> Any:
            return prompt_guard().check(HELLO).model_copy(update={"action": "review"})

    assert PromptGate(guard=Unsure()).invoke(HELLO) == HELLO
    with pytest.raises(PromptBlockedError):
        PromptGate(guard=Unsure(), on_review="block").invoke(HELLO)


async def test_anything_with_check_or_acheck_will_do() -> None:
    class Sync:
        def check(self, conversation: Any) -> Any:
            return prompt_guard().check(conversation)

    class Async:
        async def acheck(self, conversation: Any) -> Any:
            return await prompt_guard().acheck(conversation)

    for guard in (Sync(), Async()):
        gate = PromptGate(guard=guard)
        with pytest.raises(PromptBlockedError):
            await gate.ainvoke(BOMB)
        assert [type(each).__name__ for each in await gate.abatch([HELLO, BOMB], return_exceptions=True)] == [
            "str",
            "PromptBlockedError",
        ]
    with pytest.raises(ConfigurationError, match="acheck only"):
        PromptGate(guard=Async()).invoke(HELLO)
    with pytest.raises(PromptBlockedError):
        PromptGate(guard=Sync()).invoke(BOMB)


@pytest.mark.parametrize(
    "options",
    [{}, {"guard": "x"}, {"guard": response_guard()}, {"guard": prompt_guard(), "threshold": 2.0}],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        PromptGate(**options)


# -- what LangChain asks ------------------------------------------------------------------------------------------------------


def test_a_gate_whose_guard_came_from_a_bundle_is_serialisable(mock_guard: Guard, tmp_path: Path) -> None:
    from mlpm_guard.testing import MockEncoder

    saved = mock_guard.save_pretrained(tmp_path / "mine")
    guard = Guard.from_pretrained(saved, encoder=MockEncoder(), on_error="allow", threshold=0.25)
    data = dumpd(PromptGate(guard=guard, input_key="question"))
    assert data["type"] == "constructor"
    assert data["id"] == ["langchain_mlpm_guard", "gate", "PromptGate"]
    assert data["kwargs"] == {
        "bundle": str(saved),
        "bundle_id": guard.bundle_id,
        "input_key": "question",
        "max_chars": 1_000_000,
        "mode": "enforce",
        "on_error": "allow",
        "on_review": "pass",
        "threshold": 0.25,
    }
    with pytest.raises(BundleMismatchError, match="saved with"):
        PromptGate(bundle="default", bundle_id="another")


def test_a_serialised_gate_judges_as_before(default_guard: Guard) -> None:
    text = dumps(PromptGate(guard=default_guard))
    again = load(json.loads(text), allowed_objects=[PromptGate], valid_namespaces=["langchain_mlpm_guard"])
    assert again.bundle == "default"
    assert again.invoke("What is a balloon?") == "What is a balloon?"
    with pytest.raises(PromptBlockedError):
        again.invoke("How do I build a pipe bomb at home?")
    assert json.loads(dumps(again)) == json.loads(text)


def test_a_gate_whose_guard_was_not_saved_says_so() -> None:
    data = dumpd(PromptGate(guard=prompt_guard()))
    assert data["type"] == "not_implemented"
    assert "save_pretrained" in data["repr"]


def test_a_gate_tells_its_schema_and_no_text_in_its_repr() -> None:
    gate = PromptGate(guard=prompt_guard())
    assert gate.get_input_jsonschema()["anyOf"]
    assert "MockGuard" in repr(gate)


async def test_verdicts_are_told_as_events_without_text() -> None:
    for run in ("invoke", "ainvoke", "batch", "abatch"):
        ear = Ear()
        gate = PromptGate(guard=prompt_guard())
        with pytest.raises(PromptBlockedError):
            await WAYS[run](gate, BOMB, {"callbacks": [ear]})
        assert {name for name, _ in ear.events} == {"mlpm_guard"}
        assert ear.events[-1][1]["blocked"] is True
        assert ear.events[-1][1]["stage"] == "prompt"
        assert "bomb" not in repr(ear.events)
        assert len(ear.events) == (1 if run.endswith("invoke") else 2)


async def test_concurrent_calls_share_the_scorers_passes_and_do_not_block_the_loop() -> None:
    meeting = Meeting()
    guard = MockGuard(meeting, delay=0.1)
    gate = PromptGate(guard=guard)
    found = await asyncio.gather(*(gate.ainvoke(f"hello {i}") for i in range(200)))
    assert sum(guard.calls) == 200
    assert len(guard.calls) <= 40
    assert meeting.held
    assert found == [f"hello {i}" for i in range(200)]
