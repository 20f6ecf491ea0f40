"""LlamaIndex messages as a guard reads them: text for judging, and nothing that was refused before. Judges nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, TextBlock

_ASSISTANT = frozenset({MessageRole.ASSISTANT, MessageRole.CHATBOT, MessageRole.MODEL})
_TOOL = frozenset({MessageRole.TOOL, MessageRole.FUNCTION})
_SILENT = frozenset({"cache", "thinking"})


def as_conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Role/content messages for a guard. Parts that are not text are named; tool results without text are left out."""
    return [_as_mapping(message) for message in messages if message.role not in _TOOL or (message.content or "").strip()]


def last_user_turn(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """What is being answered, for a guard that judges answers; empty where no user has spoken."""
    for message in reversed(messages):
        if message.role is MessageRole.USER:
            return [_as_mapping(message)]
    return []


def without_refused(messages: Sequence[ChatMessage], refusal: str) -> list[ChatMessage]:
    """The messages without earlier turns of the user that were refused, and without those refusals.

    Memories keep what the user said also where it was blocked; a model must not see it, and later turns must not be judged by
    it.
    """
    kept: list[ChatMessage] = []
    for message in messages:
        refused = message.role in _ASSISTANT and (message.content or "").strip() == refusal.strip()
        if refused and kept and kept[-1].role is MessageRole.USER:
            kept.pop()
        else:
            kept.append(message)
    return kept


def released(message: ChatMessage, text: str, *, whole: bool) -> ChatMessage:
    """An assistant's message that shows only this text; with `whole` also the other parts of the original."""
    blocks: list[Any] = [TextBlock(text=text)] if text else []
    if not whole:
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
    blocks += [block for block in message.blocks if not isinstance(block, TextBlock)]
    return ChatMessage(role=message.role, blocks=blocks, additional_kwargs=dict(message.additional_kwargs))


def thoughts(response: ChatResponse) -> list[str]:
    """Texts of a response besides its answer: what a reasoning model thought."""
    blocks = [getattr(block, "content", None) for block in response.message.blocks if _kind(block) == "thinking"]
    kept = [block for block in blocks if isinstance(block, str)]
    for kwargs in (response.message.additional_kwargs, response.additional_kwargs):
        kept += [value for name, value in kwargs.items() if isinstance(value, str) and ("think" in name or "reason" in name)]
    return kept


def strings(value: object) -> Iterable[str]:
    """All texts inside a tool call's arguments."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        for each in value:
            yield from strings(each)


def _as_mapping(message: ChatMessage) -> dict[str, Any]:
    role = MessageRole.ASSISTANT if message.role in _ASSISTANT else message.role
    parts = [part for block in message.blocks for part in _parts(block)]
    calls = {"tool_calls": True} if message.additional_kwargs.get("tool_calls") else {}
    return {"role": role.value, "content": parts, **calls}


def _parts(block: Any) -> Iterable[dict[str, Any]]:
    kind = _kind(block)
    if isinstance(block, TextBlock):
        yield {"type": "text", "text": block.text}
    elif kind == "citable":
        for each in block.content:
            yield from _parts(each)
    elif kind not in _SILENT:
        yield {"type": kind}


def _kind(block: object) -> str:
    return str(getattr(block, "block_type", "unknown"))
