"""What a guarded model gives back: refusals, whole replies, and streams that show released text only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

from llama_index_mlpm_guard.deltas import Taken
from llama_index_mlpm_guard.messages import released
from llama_index_mlpm_guard.moderation import AnswerModeration
from llama_index_mlpm_guard.responses import RESPONSE_VERDICT
from mlpm_guard import Verdict
from mlpm_guard.policy import worse

R = TypeVar("R", ChatResponse, CompletionResponse)

Beyond = Callable[[R], list[str]]
"""Texts of a reply that are not its answer, such as arguments of tool calls."""


def shown(kind: type[R], text: str, delta: str | None = None, verdicts: Mapping[str, Verdict | None] | None = None) -> R:
    """A reply that holds this text and nothing else: no tool calls, nothing of the provider's."""
    message = released(ChatMessage(role=MessageRole.ASSISTANT), text, whole=False)
    return _made(kind, message, delta=delta, additional_kwargs=_known(verdicts or {}))


def annotated(reply: R, verdicts: Mapping[str, Verdict | None]) -> R:
    """The reply with verdicts among its arguments; the model's own object is not changed."""
    return reply.model_copy(update={"additional_kwargs": {**reply.additional_kwargs, **_known(verdicts)}})


def stream(
    kind: type[R],
    moderation: AnswerModeration,
    prompt: list[dict[str, Any]],
    source: Iterator[R],
    beyond: Beyond[R],
) -> Generator[R, None, None]:
    """A reply as it is released. What is not its text is judged at its end, and comes with the last response."""
    taken: Taken[R] = Taken()
    outcome = _Outcome()
    with closing(moderation.stream(prompt, taken.pieces(source), outcome.add)) as texts:
        for text in texts:
            taken.released += text
            yield shown(kind, taken.released, text)
    last: Any = taken.last
    if last is None:
        return
    if not outcome.blocked:
        outcome.add(moderation.judge(prompt, "\n".join([*taken.thoughts(), *beyond(last)])))
        if outcome.blocked:
            taken.released += moderation.refusal
            yield shown(kind, taken.released, moderation.refusal)
    yield _last(kind, taken, outcome)


async def astream(
    kind: type[R],
    moderation: AnswerModeration,
    prompt: list[dict[str, Any]],
    source: AsyncIterator[R],
    beyond: Beyond[R],
) -> AsyncGenerator[R, None]:
    """`stream` without blocking the event loop."""
    taken: Taken[R] = Taken()
    outcome = _Outcome()
    async with aclosing(moderation.astream(prompt, taken.apieces(source), outcome.add)) as texts:
        async for text in texts:
            taken.released += text
            yield shown(kind, taken.released, text)
    last: Any = taken.last
    if last is None:
        return
    if not outcome.blocked:
        outcome.add(await moderation.ajudge(prompt, "\n".join([*taken.thoughts(), *beyond(last)])))
        if outcome.blocked:
            taken.released += moderation.refusal
            yield shown(kind, taken.released, moderation.refusal)
    yield _last(kind, taken, outcome)


class _Outcome:
    """The worst verdict on one reply."""

    def __init__(self) -> None:
        self.verdict: Verdict | None = None

    @property
    def blocked(self) -> bool:
        return self.verdict is not None and self.verdict.blocked

    def add(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.verdict = verdict if self.verdict is None else worse(self.verdict, verdict)


def _last(kind: type[R], taken: Taken[R], outcome: _Outcome) -> R:
    """The end of a stream: its verdict, and where nothing was blocked what came besides text."""
    verdicts = {RESPONSE_VERDICT: outcome.verdict}
    last: Any = taken.last
    if outcome.blocked:
        return shown(kind, taken.released, "", verdicts)
    kwargs = {**taken.kwargs(), **_known(verdicts)}
    original = last.message if isinstance(last, ChatResponse) else ChatMessage(role=MessageRole.ASSISTANT)
    message = released(original, taken.released, whole=True)
    return _made(kind, message, delta="", raw=last.raw, additional_kwargs=kwargs)


def _made(kind: type[R], message: ChatMessage, **fields: Any) -> R:
    if kind is ChatResponse:
        fields["message"] = message
    else:
        fields["text"] = message.content or ""
    return kind(**fields)


def _known(verdicts: Mapping[str, Verdict | None]) -> dict[str, Any]:
    return {name: verdict for name, verdict in verdicts.items() if verdict is not None}
