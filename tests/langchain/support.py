"""What the LangChain tests share: a model that plays a script and counts, a handler that keeps all it hears, guards."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

from mlpm_guard.testing import MockGuard

SECRET = "secret"
CALM = "A fine day. The sun is out. All is well."
ANGRY = "A fine day. The secret code is 1234. There is more to say. And more."
HELLO = "hello"
BOMB = "how do I build a bomb"
REFUSAL = "I can't help with that."


class ScriptedModel(BaseChatModel):
    """Plays answers in order, the last one for ever. Notes what it is asked, what it wrote, and whether it was closed early."""

    answers: list[Any] = Field(default_factory=lambda: [CALM])
    calls: list[list[BaseMessage]] = Field(default_factory=list)
    written: list[str] = Field(default_factory=list)
    closed: list[bool] = Field(default_factory=list)
    seen: list[dict[str, Any]] = Field(default_factory=list)
    ran_async: list[bool] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _next(self, messages: list[BaseMessage], **kwargs: Any) -> AIMessage:
        answer = self.answers[min(len(self.calls), len(self.answers) - 1)]
        self.calls.append(list(messages))
        self.seen.append(kwargs)
        if isinstance(answer, Exception):
            raise answer
        return answer.model_copy() if isinstance(answer, AIMessage) else AIMessage(answer)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        message = self._next(messages, stop=stop, **kwargs)
        self.written.append(message.text)
        return ChatResult(generations=[ChatGeneration(message=message)], llm_output={"model_name": "scripted"})

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        message = self._next(messages, stop=stop, **kwargs)
        whole = False
        try:
            for word in re.findall(r"\S+\s*", message.text):
                self.written.append(word)
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=word))
                if run_manager:
                    run_manager.on_llm_new_token(word, chunk=chunk)
                yield chunk
            for index, call in enumerate(message.tool_calls):
                text = json.dumps(call["args"])
                for at in range(0, len(text), 5):
                    first = at == 0
                    piece = tool_call_chunk(
                        name=call["name"] if first else None,
                        args=text[at : at + 5],
                        id=call["id"] if first else None,
                        index=index,
                    )
                    yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[piece]))
            yield ChatGenerationChunk(
                message=AIMessageChunk(
                    content="",
                    additional_kwargs=message.additional_kwargs,
                    usage_metadata=message.usage_metadata,
                    chunk_position="last",
                ),
                generation_info={"model_name": "scripted"},
            )
            whole = True
        finally:
            self.closed.append(not whole)

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.ran_async.append(True)
        return self._generate(messages, stop=stop, **kwargs)

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.ran_async.append(True)
        for chunk in self._stream(messages, stop=stop, **kwargs):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=[getattr(tool, "name", tool) for tool in tools], **kwargs)


class Ear(BaseCallbackHandler):
    """Keeps all that callbacks tell of outputs, tokens, errors and events; what went in is kept apart."""

    run_inline = True

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.events: list[tuple[str, Any]] = []
        self.starts: list[str] = []

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        self.heard.append(f"token {token!r} {chunk!r}")

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.heard.append(f"llm_end {response!r}")

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.heard.append(f"llm_error {error!r} {error} {kwargs.get('response')!r}")

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.heard.append(f"chain_end {outputs!r} {kwargs.get('inputs')!r}")

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.heard.append(f"chain_error {error!r} {error}")

    def on_tool_end(self, output: Any, **kwargs: Any) -> None:
        self.heard.append(f"tool_end {output!r}")

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.heard.append(f"retriever_end {documents!r}")

    def on_stream_event(self, event: Any, **kwargs: Any) -> None:
        self.heard.append(f"stream_event {event!r}")

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append((name, data))
        self.heard.append(f"event {name} {data!r}")

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.starts.append(f"chat_model {serialized!r} {messages!r} {kwargs.get('name')}")

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.starts.append(f"chain {inputs!r} {kwargs.get('name')}")


def prompt_guard(**options: Any) -> MockGuard:
    """Flags prompts that name a bomb."""
    return MockGuard(lambda text: "bomb" in text, **options)


def response_guard(**options: Any) -> MockGuard:
    """Flags answers that say "secret"."""
    return MockGuard(lambda text: SECRET in text, target="response", **options)


async def events(runnable: Any, value: Any, config: Any, version: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [event async for event in runnable.astream_events(value, config=config, version=version)]


async def log(runnable: Any, value: Any, config: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [patch async for patch in runnable.astream_log(value, config=config)]


async def v3(runnable: Any, value: Any, config: Any) -> list[Any]:
    """What the third version of event streams gives: events, and the message put together from them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = await runnable.astream_events(value, config=config, version="v3")
        return [[event async for event in stream], await stream.output]


async def collect(stream: Any) -> list[Any]:
    return [each async for each in stream]


async def _value(value: Any) -> Any:
    return value


WAYS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "invoke": lambda r, x, c: _value([r.invoke(x, c)]),
    "ainvoke": lambda r, x, c: r.ainvoke(x, c),
    "batch": lambda r, x, c: _value(r.batch([x, x], c)),
    "abatch": lambda r, x, c: r.abatch([x, x], c),
    "batch_as_completed": lambda r, x, c: _value(list(r.batch_as_completed([x], c))),
    "stream": lambda r, x, c: _value(list(r.stream(x, c))),
    "astream": lambda r, x, c: collect(r.astream(x, c)),
    "transform": lambda r, x, c: _value(list(r.transform(iter([x]), c))),
    "astream_events v2": lambda r, x, c: events(r, x, c, "v2"),
    "astream_log": lambda r, x, c: log(r, x, c),
}
"""Every way in which LangChain runs a runnable; each gives all that its consumer sees."""


def outputs_of(event_list: list[Any]) -> str:
    """What events say, inputs left out."""
    found = []
    for event in event_list:
        data = event.get("data", {}) if isinstance(event, dict) else event
        found.append(repr({key: value for key, value in data.items() if key != "input"} if isinstance(data, dict) else data))
    return "\n".join(found)
