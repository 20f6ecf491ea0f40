"""How a chat template shows tools: whether it does at all, in which shapes of history, and how it begins a call.

Everything is found out by rendering. Knows no tokens and no model.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from mlpm_guard.conversation import Conversation
from mlpm_guard.errors import InvalidConversationError
from mlpm_guard.tools import mapped

Apply: TypeAlias = Callable[[list[dict[str, Any]], "Sequence[Mapping[str, Any]]"], str]
"""Renders messages and tools; raises InvalidConversationError where the template refuses them."""

_NAME, _KEY, _TEXT = "probe_tool", "probe_argument", "\ue000\ue001"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": _TEXT,
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": _TEXT}}},
    },
}
_ASKS: dict[str, Any] = {"role": "user", "content": _TEXT}
_CALLS: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "probe1234", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _TEXT}}}],
}
_RESULT: dict[str, Any] = {"role": "tool", "name": _NAME, "tool_call_id": "probe1234", "content": _TEXT}


class ToolTemplate:
    """A chat template with tools.

    Args:
        apply: renders with it.

    Attributes:
        takes_tools: whether what it writes depends on the tools.
        literals: what it writes around names and texts.
    """

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self.literals: list[str] = []
        plain, asked, called = (self._probe(*each) for each in (([_ASKS], ()), ([_ASKS], (_TOOL,)), (_HISTORY, (_TOOL,))))
        self.takes_tools = asked is not None and asked != plain and _NAME in asked
        self._beginning: tuple[str, str] | None = None
        if self.takes_tools and asked is not None and called is not None:
            self._beginning = _beginning(asked, called)

    def render(self, conversation: Conversation, neutralise: Callable[[str], str]) -> str:
        """A conversation with its tools as one string.

        Raises:
            InvalidConversationError: the template refuses it in every shape that is known to mean the same.
        """
        use = conversation.tool_use
        assert use is not None
        tools = [mapped(tool, neutralise) for tool in use.tools]
        messages = [
            {"role": message.role, "content": neutralise(message.content), **mapped(beside, neutralise)}
            for message, beside in zip(conversation.messages, use.turns, strict=True)
        ]
        for shaped in (messages, short_ids := [_short_ids(each) for each in messages]):
            with contextlib.suppress(InvalidConversationError):
                return self._apply(shaped, tools)
        return self._apply(_joined(short_ids), tools)

    def call_start(self, name: str) -> str | None:
        """How the template begins a call of a tool, up to its arguments; None where that cannot be told."""
        return None if self._beginning is None else f"{self._beginning[0]}{name}{self._beginning[1]}"

    def _probe(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str | None:
        try:
            rendered = self._apply(messages, tools)
        except InvalidConversationError:
            return None
        self.literals += rendered.split(_TEXT)
        return rendered


_HISTORY = [_ASKS, _CALLS, _RESULT]


def _beginning(asked: str, called: str) -> tuple[str, str] | None:
    """What stands before a call's name, and between it and the arguments."""
    if not called.startswith(asked):
        return None
    before, name, rest = called[len(asked) :].partition(_NAME)
    between, brace, arguments = rest.partition("{")
    if not name or not brace or not before.strip() or _KEY not in arguments or _KEY in before + between:
        return None
    return before, between.rstrip()


def _short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """The message with ids of nine letters and digits, which is all that Mistral's templates take."""
    found = dict(message)
    if "tool_call_id" in found:
        found["tool_call_id"] = _short(found["tool_call_id"])
    if "tool_calls" in found:
        found["tool_calls"] = [{**call, "id": _short(call.get("id", ""))} for call in found["tool_calls"]]
    return found


def _short(name: str) -> str:
    return name if len(name) == 9 and name.isalnum() else hashlib.sha256(name.encode()).hexdigest()[:9]


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with user turns that follow one another as one turn."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if found and message["role"] == found[-1]["role"] == "user":
            found[-1] = {"role": "user", "content": f"{found[-1]['content']}\n\n{message['content']}"}
        else:
            found.append(message)
    return found
