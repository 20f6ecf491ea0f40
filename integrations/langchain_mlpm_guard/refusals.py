"""Messages that stand in for what was blocked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages import content as blocks
from langchain_core.messages.ai import UsageMetadata

from langchain_mlpm_guard.judging import EVENT, Stage, record
from mlpm_guard.verdict import Verdict

HAS_REFUSAL_BLOCK = hasattr(blocks, "RefusalContentBlock")
"""Whether this langchain-core knows a content block for refusals."""

REMOVED = "[removed by mlpm-guard]"
"""What stands where text was taken out of something that stays."""


def refusal_message(
    text: str,
    verdict: Verdict,
    stage: Stage,
    *,
    usage: UsageMetadata | None = None,
    id: str | None = None,  # noqa: A002
) -> AIMessage:
    """The refusal as a message: no tool calls, nothing of what was blocked but the number of its tokens."""
    return AIMessage(**_fields(text, verdict, stage, usage), id=id)


def refusal_chunk(
    text: str,
    verdict: Verdict,
    stage: Stage,
    *,
    usage: UsageMetadata | None = None,
    id: str | None = None,  # noqa: A002
) -> AIMessageChunk:
    """The refusal as the last chunk of a stream."""
    return AIMessageChunk(**_fields(text, verdict, stage, usage), id=id, chunk_position="last")


def emptied(message: BaseMessage) -> BaseMessage:
    """What stands in a blocked message's place, under its id, so that it is replaced."""
    if isinstance(message, ToolMessage):
        return ToolMessage(content=REMOVED, tool_call_id=message.tool_call_id, id=message.id, status="error")
    return HumanMessage(content=REMOVED, id=message.id)


def without_blocked(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """A history in which prompts that were blocked in earlier turns are empty.

    Whoever keeps a conversation keeps the blocked prompt with its refusal. The refusal tells what it is, so that the model is
    not shown in the next turn what it was not shown in this one.
    """
    kept = list(messages)
    start = 0
    for index, message in enumerate(messages):
        if not isinstance(message, AIMessage):
            continue
        if blocked_stage(message) == "prompt":
            turn = kept[start:index]
            kept[start:index] = [emptied(each) if isinstance(each, (HumanMessage, ToolMessage)) else each for each in turn]
        start = index + 1
    return kept


def blocked_stage(message: BaseMessage) -> Stage | None:
    """What of its turn was blocked, if a guard told so in a message."""
    told = message.response_metadata.get(EVENT)
    return told.get("blocked") if isinstance(told, dict) else None


def metadata(prompt: Verdict | None, response: Verdict | None, blocked: Stage | None = None) -> dict[str, Any]:
    """What `response_metadata` tells of the verdicts."""
    found = {"prompt": prompt, "response": response}
    return {EVENT: {"blocked": blocked, **{name: record(verdict) for name, verdict in found.items() if verdict is not None}}}


def with_verdicts(message: AIMessage, prompt: Verdict | None, response: Verdict | None) -> AIMessage:
    """A message that tells its verdicts; those of a guard within are replaced, but not that it blocked."""
    told = {**message.response_metadata, **metadata(prompt, response, blocked_stage(message))}
    return message.model_copy(update={"response_metadata": told})


def _fields(text: str, verdict: Verdict, stage: Stage, usage: UsageMetadata | None) -> dict[str, Any]:
    content: str | list[dict[str, Any]] = text
    if HAS_REFUSAL_BLOCK:
        extras = {"stage": stage, "category": verdict.category, "score": verdict.score}
        content = [{"type": "text", "text": text}, {"type": "refusal", "refusal": text, "extras": extras}]
    known = {"prompt": verdict} if stage == "prompt" else {"response": verdict}
    return {
        "content": content,
        "usage_metadata": usage,
        "response_metadata": {
            "finish_reason": "content_filter",
            **metadata(known.get("prompt"), known.get("response"), stage),
        },
    }
