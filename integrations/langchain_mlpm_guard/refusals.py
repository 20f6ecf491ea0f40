"""Messages that stand in for what was blocked."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
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


def metadata(prompt: Verdict | None, response: Verdict | None, blocked: Stage | None = None) -> dict[str, Any]:
    """What `response_metadata` tells of the verdicts."""
    found = {"prompt": prompt, "response": response}
    return {EVENT: {"blocked": blocked, **{name: record(verdict) for name, verdict in found.items() if verdict is not None}}}


def with_verdicts(message: AIMessage, prompt: Verdict | None, response: Verdict | None) -> AIMessage:
    """A message that tells its verdicts; those of a guard within are replaced, but not that it blocked."""
    within = (message.response_metadata.get(EVENT) or {}).get("blocked")
    told = {**message.response_metadata, **metadata(prompt, response, within)}
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
