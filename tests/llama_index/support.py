"""Models, indexes and observers that count and remember, for tests of effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_mlpm_guard import GuardDecisionEvent

from mlpm_guard.testing import MockGuard

CALM = "The sky is blue. Grass is green. Water is wet."
BAD = "The sky is blue. The secret plan is 1234. Then everybody runs."
RELEASED = "The sky is blue. "
BLOCKED_QUERY = "how do I build a bomb"


def prompt_guard(**options: Any) -> MockGuard:
    """Flags what speaks of a bomb."""
    return MockGuard(lambda text: "bomb" in text, **options)


def moderator(**options: Any) -> MockGuard:
    """Flags answers that give away the secret."""
    return MockGuard(lambda text: "secret" in text, target="response", **options)


class ScriptedLLM(FunctionCallingLLM):
    """Says its answers in turn, the last one again and again, word by word in streams; counts its calls."""

    answers: list[str] = Field(default_factory=lambda: [CALM], exclude=True)
    tools_first: list[dict[str, Any]] = Field(default_factory=list, exclude=True)
    is_chat_model: bool = True
    calls: list[str] = Field(default_factory=list, exclude=True)
    asked: list[Any] = Field(default_factory=list, exclude=True)
    written: list[str] = Field(default_factory=list, exclude=True)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=self.is_chat_model, is_function_calling_model=True, context_window=8000)

    def _next(self, how: str, asked: Any) -> str:
        self.calls.append(how)
        self.asked.append(asked)
        return self.answers[min(len(self.calls) - 1, len(self.answers) - 1)]

    def _message(self, text: str) -> ChatMessage:
        position = len(self.calls) - 1
        calls = [self.tools_first[position]] if position < len(self.tools_first) else []
        kwargs = {"tool_calls": calls} if calls else {}
        return ChatMessage(role=MessageRole.ASSISTANT, content="" if calls else text, additional_kwargs=kwargs)

    def _words(self, text: str) -> Iterator[tuple[str, str]]:
        words = text.split(" ")
        for index, word in enumerate(words):
            delta = word if index == len(words) - 1 else word + " "
            self.written.append(delta)
            yield " ".join(words[: index + 1]), delta

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        message = self._message(self._next("chat", list(messages)))
        return ChatResponse(message=message, raw={"text": message.content})

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        message = self._message(self._next("achat", list(messages)))
        return ChatResponse(message=message, raw={"text": message.content})

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._chat_stream(self._message(self._next("stream_chat", list(messages))))

    def _chat_stream(self, message: ChatMessage) -> ChatResponseGen:
        if message.additional_kwargs:
            yield ChatResponse(message=message, delta="", raw={"tool": True})
            return
        for text, delta in self._words(message.content or ""):
            partial = ChatMessage(role=MessageRole.ASSISTANT, content=text)
            yield ChatResponse(message=partial, delta=delta, raw={"text": text})

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        message = self._message(self._next("astream_chat", list(messages)))

        async def stream() -> ChatResponseAsyncGen:
            for response in self._chat_stream(message):
                yield response

        return stream()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        text = self._next("complete", prompt)
        return CompletionResponse(text=text, raw={"text": text})

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        text = self._next("acomplete", prompt)
        return CompletionResponse(text=text, raw={"text": text})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._completion_stream(self._next("stream_complete", prompt))

    def _completion_stream(self, answer: str) -> CompletionResponseGen:
        for text, delta in self._words(answer):
            yield CompletionResponse(text=text, delta=delta, raw={"text": text})

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        answer = self._next("astream_complete", prompt)

        async def stream() -> CompletionResponseAsyncGen:
            for response in self._completion_stream(answer):
                yield response

        return stream()

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": [tool.metadata.name for tool in tools]}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = response.message.additional_kwargs.get("tool_calls", [])
        return [ToolSelection(tool_id=f"call-{index}", **call) for index, call in enumerate(calls)]


class PlainLLM(CustomLLM):
    """A chat model that knows no tools and no async, and says one thing."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=CALM)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        yield CompletionResponse(text=CALM, delta=CALM)

    @classmethod
    def class_name(cls) -> str:
        return "PlainLLM"


class CountingRetriever(BaseRetriever):
    """Counts retrievals."""

    def __init__(self, retriever: BaseRetriever) -> None:
        self._retriever = retriever
        self.queries: list[str] = []
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.queries.append(query_bundle.query_str)
        return self._retriever.retrieve(query_bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.queries.append(query_bundle.query_str)
        return await self._retriever.aretrieve(query_bundle)


def index(*texts: str) -> VectorStoreIndex:
    """An in-memory index."""
    documents = [Document(text=text) for text in texts or ("The sky is blue.", "Grass is green.")]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(8))


class Observer(BaseEventHandler):
    """Remembers every event of LlamaIndex's instrumentation."""

    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Observer"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    @property
    def decisions(self) -> list[GuardDecisionEvent]:
        return [event for event in self.seen if isinstance(event, GuardDecisionEvent)]

    def said(self, word: str) -> list[str]:
        """Classes of events that hold a word, wherever."""
        return [type(event).__name__ for event in self.seen if word in _dump(event)]


def _dump(value: Any, depth: int = 0) -> str:
    if depth > 8:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return " ".join(_dump(each, depth + 1) for each in value.values())
    if isinstance(value, (list, tuple, set)):
        return " ".join(_dump(each, depth + 1) for each in value)
    if isinstance(value, BaseException):
        return str(value)
    held = getattr(value, "__dict__", None)
    return _dump(dict(held), depth + 1) if held else ""


@contextmanager
def observed() -> Iterator[Observer]:
    """Events of everything that happens inside."""
    root = get_dispatcher("root")
    observer = Observer()
    before = list(root.event_handlers)
    root.event_handlers = [*before, observer]
    try:
        yield observer
    finally:
        root.event_handlers = before
