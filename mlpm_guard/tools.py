"""What a chat template is told of tools beside roles and texts: their schemas, calls in the history, and whom results answer.

Plain data in OpenAI's shape. Knows no tokenizer and no model; no `repr` here shows text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlpm_guard.errors import ConfigurationError, InvalidConversationError


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools of one conversation.

    Attributes:
        tools: schemas, `{"type": "function", "function": {"name": ..., "parameters": ...}}`.
        turns: for every message what it has beside role and content: `tool_calls`, or `tool_call_id` and `name`.
        must_call: names of the tools with a call of which the answer has to begin; empty leaves it free.
    """

    tools: tuple[Mapping[str, Any], ...] = field(repr=False)
    turns: tuple[Mapping[str, Any], ...] = field(repr=False)
    must_call: tuple[str, ...] = ()

    @classmethod
    def read(cls, conversation: object, tools: Sequence[Mapping[str, Any]], must_call: Sequence[str] = ()) -> ToolUse | None:
        """What a conversation and its tools say, or None where they say nothing.

        Args:
            conversation: a string, or a list of messages in OpenAI's shape.
            tools: checked schemas; see `checked`.
            must_call: names of tools; see `checked`.

        Raises:
            InvalidConversationError: a call in the history has a bad shape.
        """
        messages = (None,) if isinstance(conversation, str) or not isinstance(conversation, Sequence) else conversation
        turns = tuple(_beside(index, message) for index, message in enumerate(messages))
        return cls(tuple(tools), turns, tuple(must_call)) if tools or any(turns) else None


def checked(tools: object, must_call: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
    """Tool schemas as a tuple.

    Raises:
        ConfigurationError: they have a bad shape, or a tool that must be called is not among them.
    """
    if tools is None:
        tools = ()
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ConfigurationError(f"tools is {type(tools).__name__}: a list of schemas in OpenAI's shape")
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ConfigurationError(f'tools[{index}]: a schema {{"type": "function", "function": {{"name": ..., ...}}}}')
        names.append(function["name"])
    if isinstance(must_call, str) or any(name not in names for name in must_call):
        raise ConfigurationError(f"must_call: a list of names of tools; there are {len(names)} tools, and not all are named so")
    return tuple(tools)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text in it changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {mapped(key, change): mapped(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [mapped(each, change) for each in value]
    return value


def _beside(index: int, message: object) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        return {}
    if message.get("role") == "tool":
        return {key: message[key] for key in ("tool_call_id", "name") if isinstance(message.get(key), str)}
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    if not calls:
        return {}
    if isinstance(calls, (str, bytes, Mapping)) or not isinstance(calls, Sequence):
        raise InvalidConversationError(f"tool_calls of message {index} is {type(calls).__name__}, not a list of calls")
    return {"tool_calls": [_call(index, call) for call in calls]}


def _call(index: int, call: object) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidConversationError(f"message {index} has a tool call without a function that has a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI's API has them as JSON in a string; chat templates want the object.
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        raise InvalidConversationError(f"message {index} has a tool call whose arguments are not an object")
    found = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return {"id": call["id"], **found} if isinstance(call.get("id"), str) else found
