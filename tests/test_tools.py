"""What is read of tools beside roles and texts."""

from __future__ import annotations

import pytest

from mlpm_guard import ConfigurationError, InvalidConversationError
from mlpm_guard.conversation import Conversation
from mlpm_guard.tools import ToolUse, checked, mapped
from tests.tool_support import OTHER, SEARCH

CALL = {"id": "call-1", "type": "function", "function": {"name": "search", "arguments": '{"query": "kettles"}'}}


def test_calls_keep_their_arguments_as_objects_and_results_their_names() -> None:
    use = ToolUse.read(
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "found", "tool_call_id": "call-1", "name": "search"},
        ],
        [SEARCH],
    )
    assert use is not None
    assert use.turns[0] == {}
    assert use.turns[1]["tool_calls"][0]["function"] == {"name": "search", "arguments": {"query": "kettles"}}
    assert use.turns[2] == {"tool_call_id": "call-1", "name": "search"}
    assert "kettles" not in repr(use)


def test_a_conversation_without_tools_and_calls_has_no_tool_use() -> None:
    assert ToolUse.read([{"role": "user", "content": "hi"}], ()) is None
    assert ToolUse.read("hi", ()) is None
    use = ToolUse.read("hi", [SEARCH], ["search"])
    assert use is not None
    assert (use.turns, use.must_call) == (({},), ("search",))


def test_tools_are_no_part_of_what_makes_conversations_equal() -> None:
    plain = Conversation.parse("hi")
    assert Conversation(plain.messages, ToolUse.read("hi", [SEARCH])) == plain
    assert Conversation.parse(Conversation(plain.messages, ToolUse.read("hi", [SEARCH]))).tool_use is not None


@pytest.mark.parametrize(
    "calls",
    [
        "search",
        {"name": "search"},
        [{"function": {"name": 3}}],
        ["x"],
        [{"function": {"name": "search", "arguments": "secret"}}],
    ],
)
def test_a_call_of_a_bad_shape_is_named_without_its_text(calls: object) -> None:
    with pytest.raises(InvalidConversationError, match="message 0") as caught:
        ToolUse.read([{"role": "assistant", "content": "", "tool_calls": calls}], ())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("tools", "must_call"),
    [("search", ()), (SEARCH, ()), ([{}], ()), ([{"function": {}}], ()), ([SEARCH], ["other"]), ([SEARCH], "search"), (3, ())],
)
def test_bad_tools_are_named(tools: object, must_call: object) -> None:
    with pytest.raises(ConfigurationError, match=r"tools|must_call"):
        checked(tools, must_call)  # type: ignore[arg-type]


def test_good_tools_pass() -> None:
    assert checked(None, ()) == ()
    assert checked([SEARCH, OTHER], ["other"]) == (SEARCH, OTHER)


def test_every_text_in_plain_data_is_changed_and_nothing_else() -> None:
    assert mapped({"a": ["b", 1, None, ("c",)]}, str.upper) == {"A": ["B", 1, None, ["C"]]}
