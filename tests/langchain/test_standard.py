"""LangChain's own standard suites for chat models and retrievers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_mlpm_guard import ChatGuarded, GuardedRetriever, ModeratedChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from tests.langchain.support import prompt_guard, response_guard
from tests.tool_support import ToolWorld, world

USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


class ObligingModel(BaseChatModel):
    """Calls whatever tool is bound, with arguments that fit; otherwise says a sentence."""

    model_name: str = "obliging"
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None

    @property
    def _llm_type(self) -> str:
        return "obliging"

    def _answer(self, messages: Any, tools: Any = None, tool_choice: Any = None, **_: Any) -> AIMessage:
        name = self.model_name
        if not tools or messages[-1].type == "tool":
            return AIMessage("Twelve trees.", usage_metadata=USAGE, response_metadata={"model_name": name})
        function = tools[0]["function"]
        args = {key: _fitting(spec) for key, spec in function["parameters"].get("properties", {}).items()}
        call = {"name": function["name"], "args": args, "id": "1"}
        return AIMessage("", tool_calls=[call], usage_metadata=USAGE, response_metadata={"model_name": name})

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, **kwargs))])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        answer = self._answer(messages, **kwargs)
        for word in answer.text.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word + " "))
        calls = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
            for index, call in enumerate(answer.tool_calls)
        ]
        told = {"model_name": self.model_name}
        last = AIMessageChunk(content="", tool_call_chunks=calls, usage_metadata=USAGE, response_metadata=told)
        yield ChatGenerationChunk(message=last)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **kwargs)


def _fitting(spec: dict[str, Any]) -> Any:
    kind = spec.get("type") or next((each.get("type") for each in spec.get("anyOf", [])), "string")
    return {"integer": 3, "number": 3.0, "boolean": True, "array": [], "object": {}}.get(kind, "some text, 你好, こんにちは")


class Moderated(ModeratedChatModel):
    """Made as the suites make models: from a model's usual parameters."""

    def __init__(self, **params: Any) -> None:
        inner = ObligingModel(**{key: value for key, value in params.items() if key in ObligingModel.model_fields})
        super().__init__(model=inner, guard=prompt_guard(), moderator=response_guard())


class OfModerated:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Moderated

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model_name": "obliging"}


class TestModeratedUnit(OfModerated, ChatModelUnitTests):
    pass


class TestModeratedIntegration(OfModerated, ChatModelIntegrationTests):
    pass


_world: list[ToolWorld] = []


def obliging(prompt: str) -> str:
    """A call of the first tool that the prompt shows, with arguments that fit; a sentence where none is asked for."""
    _, _, shown = prompt.partition("<tools>")
    if not shown or prompt.endswith("</tool_response><|im_end|>\n<|im_start|>assistant\n"):
        return "Twelve trees."
    function = json.JSONDecoder().raw_decode(shown.lstrip())[0]["function"]
    args = {key: _fitting(spec) for key, spec in function["parameters"].get("properties", {}).items()}
    call = json.dumps({"name": function["name"], "arguments": args}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


class Local(ChatGuarded):
    """A tiny random model that follows a script; its guard flags nothing, and its moderator is a mock."""

    def __init__(self, **params: Any) -> None:
        if not _world:
            _world.append(world("hermes"))
        generator = _world[0].generator(moderator=response_guard())
        script = {"logits_processor": _world[0].script(obliging)}
        super().__init__(generator=generator, generation_kwargs=script, **{**params, "max_tokens": 400})


class OfLocal:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Local

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny"}


class TestLocalUnit(OfLocal, ChatModelUnitTests):
    pass


class TestLocalIntegration(OfLocal, ChatModelIntegrationTests):
    pass


class Shelf(BaseRetriever):
    k: int = 3

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [Document(page_content=f"page {index}") for index in range(k or self.k)]


class Guarded(GuardedRetriever):
    def __init__(self, k: int = 3) -> None:
        super().__init__(Shelf(k=k), guard=prompt_guard())


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return Guarded

    @property
    def retriever_query_example(self) -> str:
        return "a page"
