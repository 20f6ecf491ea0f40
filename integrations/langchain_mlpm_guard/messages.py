"""LangChain's inputs and outputs as what a guard reads: conversations, and the texts that an answer holds.

Does no judging. Errors name types and keys, never text.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import pathlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel

from mlpm_guard.conversation import ROLES
from mlpm_guard.errors import InvalidConversationError

Turns: TypeAlias = "list[dict[str, Any]]"
"""A conversation in the shape that every guard reads."""

_ROLE_OF: tuple[tuple[type[BaseMessage], str], ...] = (
    (AIMessage, "assistant"),
    (HumanMessage, "user"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "function"),
)
_PROMPT_ROLES = frozenset({"user", "tool", "function"})
_TEXT_BLOCKS = frozenset({"text", "input_text", "output_text", "text-plain"})
_MEDIA = frozenset({"image", "image_url", "audio", "input_audio", "video", "file"})
_LABELS = frozenset({"type", "id", "index", "signature", "encrypted_content"})
_WITHOUT_TEXT = (
    int,
    float,
    complex,
    bool,
    enum.Enum,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
    pathlib.PurePath,
    type(None),
)


def prompt_messages(value: object, input_key: str | None = None) -> list[BaseMessage]:
    """The messages that an input of a chain or chat model holds.

    Args:
        value: a string, a prompt value, a message, a list of messages in any form that LangChain takes, or a mapping.
        input_key: which entry of a mapping holds the prompt; not needed for a mapping with one entry.

    Raises:
        InvalidConversationError: there is no prompt in it.
    """
    if input_key is not None:
        if not isinstance(value, Mapping) or input_key not in value:
            raise InvalidConversationError(f"the input is {_named(value)}, not a mapping with the key {input_key!r}")
        value = value[input_key]
    elif isinstance(value, Mapping) and not {"content", "role"} <= value.keys():
        if len(value) != 1:
            raise InvalidConversationError("the input is a mapping: say which entry holds the prompt, with input_key=")
        value = next(iter(value.values()))
    if isinstance(value, str):
        return [HumanMessage(value)]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, (BaseMessage, Mapping)):
        value = [value]
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
        raise InvalidConversationError(f"the input holds {_named(value)}: pass text, a prompt value, or messages")
    try:
        return convert_to_messages(value)
    except Exception as error:  # noqa: BLE001  (whatever it is, its message may quote the prompt)
        kind = type(error).__name__
    raise InvalidConversationError(f"the input is a list that does not hold messages ({kind})")


def conversation(messages: Sequence[BaseMessage]) -> Turns:
    """Messages as role/content turns. What is not text keeps its kind, so that a verdict can name it."""
    return [{"role": _role(each), "content": _content(each)} for each in messages if not isinstance(each, RemoveMessage)]


def prompt_turns(messages: Sequence[BaseMessage]) -> list[Turns]:
    """The conversations to judge before a model answers: one for each new turn, with everything before it.

    New is what stands behind the model's last message: a user may have sent several messages, and several tools may have
    answered. Tool results without any content have nothing to judge. Where nothing is new, the whole is judged.
    """
    turns = conversation(messages)
    start = max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1) + 1
    new = [index for index in range(start, len(turns)) if turns[index]["role"] in _PROMPT_ROLES]
    if not new:
        return [turns]
    return [turns[: index + 1] for index in new if turns[index]["role"] == "user" or _filled(turns[index]["content"])]


def answered(prompt: Turns, text: str) -> Turns:
    """The conversation with an answer behind it."""
    return [*prompt, {"role": "assistant", "content": text}]


def message_text(message: BaseMessage) -> str:
    """The text that a reader of a message sees."""
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(block if isinstance(block, str) else _block_text(block) for block in content)


def without_text(message: BaseMessage) -> str | list[str | dict[str, Any]]:
    """A message's content without that text: reasoning, media, citations and the like."""
    if isinstance(message.content, str):
        return ""
    rest: list[str | dict[str, Any]] = []
    for block in message.content:
        if isinstance(block, str):
            continue
        if block.get("type") not in _TEXT_BLOCKS:
            rest.append(block)
        elif block.keys() - {"type", "text", "index", "id"}:
            rest.append({**block, "text": ""})
    return rest


def other_texts(message: BaseMessage) -> list[str]:
    """Everything else in a message that could be read: arguments of tool calls, reasoning, what a provider added."""
    found: list[str] = []
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            found += strings(call["args"])
        found += [str(call["args"]) for call in message.invalid_tool_calls if call.get("args")]
    for block in message.content if not isinstance(message.content, str) else ():
        if isinstance(block, dict) and block.get("type") not in _TEXT_BLOCKS:
            found += _of_block(block)
        elif isinstance(block, dict):
            found += strings({key: value for key, value in block.items() if key not in {"text", *_LABELS}})
    for key, value in message.additional_kwargs.items():
        found += _arguments(value) if key in {"tool_calls", "function_call"} else _of_block(value)
    if isinstance(message, ToolMessage):
        found += strings(message.artifact) if _readable(message.artifact) else []
    return list(dict.fromkeys(text for text in found if text.strip()))


def strings(value: object) -> list[str]:
    """All texts in a value made of mappings, sequences, models and data classes; keys too where they are not mere names.

    Raises:
        InvalidConversationError: there is something in it that cannot be looked into.
    """
    return list(_walk(value))


def output_texts(value: object) -> tuple[str, list[str]]:
    """The text of a chain's output, and whatever else can be read in it.

    Raises:
        InvalidConversationError: there is something in it that cannot be looked into.
    """
    if isinstance(value, str):
        return value, []
    if isinstance(value, BaseMessage):
        return message_text(value), other_texts(value)
    return "", [text for text in strings(value) if text.strip()]


def _role(message: BaseMessage) -> str:
    for kind, role in _ROLE_OF:
        if isinstance(message, kind):
            return role
    # A role that is not known is judged like a user's.
    return message.role if isinstance(message, ChatMessage) and message.role in ROLES else "user"


def _content(message: BaseMessage) -> str | list[dict[str, Any]]:
    content = message.content
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for block in content:
        text = block if isinstance(block, str) else block.get("text")
        parts.append(
            {"type": "text", "text": text} if isinstance(text, str) else {"type": str(block.get("type", ""))}  # type: ignore[union-attr]
        )
    return parts


def _filled(content: str | list[dict[str, Any]]) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    return any(part["type"] != "text" or part["text"].strip() for part in content)


def _block_text(block: Mapping[str, Any]) -> str:
    text = block.get("text") if block.get("type") in _TEXT_BLOCKS else None
    return text if isinstance(text, str) else ""


def _of_block(block: object) -> list[str]:
    if isinstance(block, Mapping):
        if block.get("type") in _MEDIA:
            return []
        return [text for key, value in block.items() if key not in _LABELS for text in _of_block(value)]
    if isinstance(block, (list, tuple)):
        return [text for each in block for text in _of_block(each)]
    return strings(block) if _readable(block) else []


def _arguments(value: object) -> list[str]:
    """Arguments in OpenAI's raw form of tool calls, which repeats them."""
    calls = value if isinstance(value, (list, tuple)) else [value]
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    return [str(each.get("arguments")) for each in functions if isinstance(each, Mapping) and each.get("arguments")]


def _readable(value: object) -> bool:
    return isinstance(value, (str, Mapping, list, tuple, BaseModel))


def _walk(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, _WITHOUT_TEXT):
        return
    elif isinstance(value, BaseMessage):
        yield message_text(value)
        yield from other_texts(value)
    elif isinstance(value, BaseModel):
        for name in (*type(value).model_fields, *(value.model_extra or {})):
            yield from _walk(getattr(value, name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if isinstance(key, str) and not key.isidentifier():
                yield key
            yield from _walk(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _walk(getattr(value, field.name))
    elif isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        for each in value:
            yield from _walk(each)
    else:
        raise InvalidConversationError(f"an output holds {_named(value)}, which cannot be read for judging: moderate before it")


def _named(value: object) -> str:
    return type(value).__name__
