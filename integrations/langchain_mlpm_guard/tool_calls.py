"""Tool calls between LangChain's messages and a chat template: the history as templates want it, and a model's text as calls.

Reads the formats that models write most: Hermes and Qwen, Llama 3, Mistral; a tokenizer's own response template goes first.
Does no judging.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, RemoveMessage, ToolMessage
from langchain_core.messages.tool import ToolCall, ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk

from langchain_mlpm_guard.messages import Turns, conversation, message_text

MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
"""What stands in front of a call."""

NO_OUTPUT = "(no output)"
"""What the model reads where a tool returned nothing: a turn without text is not judged."""

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.\-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(?=\{)")
_DECODER = json.JSONDecoder()


@dataclass
class Answer:
    """What a model's text says.

    Attributes:
        text: what is no call.
        calls: well-formed calls, in order.
        invalid: what was meant as a call and cannot be read as one.
        reasoning: what the tokenizer's response template tells apart as reasoning.
    """

    text: str
    calls: list[ToolCall] = field(default_factory=list)
    invalid: list[InvalidToolCall] = field(default_factory=list)
    reasoning: str = ""

    @property
    def chunks(self) -> list[ToolCallChunk]:
        """All calls as chunks, each of them whole."""
        found: list[tuple[str | None, str | None, str | None]] = [
            (call["name"], json.dumps(call["args"], ensure_ascii=False), call["id"]) for call in self.calls
        ]
        found += [(call["name"], call["args"], call["id"]) for call in self.invalid]
        return [tool_call_chunk(name=name, args=args, id=id_, index=at) for at, (name, args, id_) in enumerate(found)]


def turns_with_calls(messages: Sequence[BaseMessage]) -> Turns:
    """Messages as turns that keep the calls of tools, and tell of each result whose it is."""
    kept = [message for message in messages if not isinstance(message, RemoveMessage)]
    names = {call["id"]: call["name"] for message in kept if isinstance(message, AIMessage) for call in message.tool_calls}
    turns: Turns = []
    for turn, message in zip(conversation(kept), kept, strict=True):
        if isinstance(message, ToolMessage):
            text = turn["content"] if not isinstance(turn["content"], str) or turn["content"].strip() else NO_OUTPUT
            beside = {"tool_call_id": message.tool_call_id, "name": message.name or names.get(message.tool_call_id)}
            turns.append({"role": "tool", "content": text or NO_OUTPUT, **{key: each for key, each in beside.items() if each}})
        elif isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
            # A call that could not be read is shown as the model wrote it.
            raw = [str(call["args"]) for call in message.invalid_tool_calls if call["args"]]
            turn = {"role": "assistant", "content": "\n".join(part for part in (message_text(message), *raw) if part)}
            if message.tool_calls:
                turn["tool_calls"] = [_in_history(call) for call in message.tool_calls]
            turns.append(turn)
        else:
            turns.append(turn)
    return turns


def read_answer(text: str, tools: Sequence[Mapping[str, Any]], tokenizer: Any = None, prefix: str = "") -> Answer:
    """A model's text, control tokens included, as text and calls.

    Args:
        text: of the answer.
        tools: the schemas that the model was shown.
        tokenizer: of the model; its response template is used where it has one and this version of transformers reads it.
        prefix: the prompt, which a response template may need.
    """
    answer = _by_response_template(text, tools, tokenizer, prefix)
    if answer is None:
        answer = _by_format(text, [str(tool["function"]["name"]) for tool in tools])
    for token in control_tokens(tokenizer):
        answer.text = answer.text.replace(token, "")
    return answer


class CallWatch:
    """Lets the text of a stream go until a call may begin; the rest waits until it can be read whole.

    Args:
        dropped: control tokens that are no part of the text.
        held: hold everything, as the beginning of a call cannot be told.
    """

    def __init__(self, dropped: Sequence[str] = (), *, held: bool = False) -> None:
        self._dropped = [token for token in dropped if token not in MARKERS]
        self._longest = max(map(len, (*MARKERS, *self._dropped)))
        self._held = ""
        self._gone = ""
        self._calling = held

    def take(self, text: str) -> str:
        """What of the text so far is no call."""
        self._held += text
        if not self._gone and self._held.lstrip()[:1] in {"{", "["}:
            # Llama 3 writes calls as bare JSON, and nothing else.
            self._calling = True
        if self._calling or not self._held.strip():
            return ""
        for token in self._dropped:
            self._held = self._held.replace(token, "")
        found = [at for marker in MARKERS if (at := self._held.find(marker)) >= 0]
        if found:
            self._calling = True
            return self._go(min(found))
        return self._go(len(self._held) - self._open())

    def rest(self) -> str:
        """What has not left."""
        return self._held

    def _open(self) -> int:
        """Length of an end that may be the beginning of a marker."""
        marks = (*MARKERS, *self._dropped)
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(mark.startswith(self._held[-size:]) for mark in marks):
                return size
        return 0

    def _go(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        self._gone += text
        return text


def _in_history(call: ToolCall) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
    return {"id": call["id"], **found} if call["id"] else found


def _by_format(text: str, names: Sequence[str]) -> Answer:
    if "<tool_call>" in text:
        before, _, rest = text.partition("<tool_call>")
        answer = Answer(before.strip())
        for found in _HERMES.finditer("<tool_call>" + rest):
            _add(answer, found[1], "<tool_call>")
        return answer
    if "[TOOL_CALLS]" in text:
        before, *rests = text.split("[TOOL_CALLS]")
        answer = Answer(before.strip())
        for rest in rests:
            _add_named(answer, rest)
        return answer
    if "<|python_tag|>" in text:
        before, _, rest = text.partition("<|python_tag|>")
        answer = Answer(before.strip())
        _add(answer, rest, "<|python_tag|>")
        return answer
    # Without a marker, only JSON that names a tool is a call: a user may have asked for JSON.
    values = _json_values(text)
    if values and all(isinstance(each, Mapping) and each.get("name") in names for each in values):
        answer = Answer("")
        for each in values:
            _add_value(answer, each, json.dumps(each), "")
        if not answer.invalid:
            return answer
    return Answer(text)


def _add(answer: Answer, body: str, marker: str) -> None:
    values = _json_values(body)
    if values is None:
        answer.invalid.append(_unread(marker + body, "the call is not JSON"))
    for value in values or ():
        _add_value(answer, value, body, marker)


def _add_named(answer: Answer, body: str) -> None:
    """Mistral's two forms: a list of calls, or a name and its arguments."""
    named = _NAMED.match(body)
    if named is None:
        _add(answer, body, "[TOOL_CALLS]")
        return
    try:
        arguments, _ = _DECODER.raw_decode(body, named.end())
    except ValueError:
        answer.invalid.append(_unread("[TOOL_CALLS]" + body, "the arguments are not JSON"))
        return
    _add_value(answer, {"name": named[1], "arguments": arguments, "id": named[2]}, body, "[TOOL_CALLS]")


def _add_value(answer: Answer, value: Any, raw: str, marker: str) -> None:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        answer.invalid.append(_unread(marker + raw, "the call names no tool"))
        return
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        answer.invalid.append(_unread(marker + raw, "the arguments are not an object", name))
        return
    known = value.get("id") or value.get("tool_call_id")
    answer.calls.append(tool_call(name=name, args=arguments, id=known if isinstance(known, str) else _new_id()))


def _unread(raw: str, error: str, name: str | None = None) -> InvalidToolCall:
    # Behind its marker no reader takes half a call for a whole one, as readers of partial JSON would.
    return invalid_tool_call(name=name, args=raw, id=_new_id(), error=error)


def _new_id() -> str:
    """Nine letters and digits, which every template takes."""
    return uuid.uuid4().hex[:9]


def _json_values(text: str) -> list[Any] | None:
    """JSON values one after another, with `;` or blanks between them; a list is what it holds. None where it is not JSON."""
    found: list[Any] = []
    at = 0
    while rest := text[at:].lstrip(" \t\r\n;"):
        at = len(text) - len(rest)
        if rest[0] not in "{[":
            return None
        try:
            value, at = _DECODER.raw_decode(text, at)
        except ValueError:
            return None
        found += value if isinstance(value, list) else [value]
    return found or None


def _by_response_template(text: str, tools: Sequence[Mapping[str, Any]], tokenizer: Any, prefix: str) -> Answer | None:
    """By transformers' own parsing; None where the tokenizer does not say how, or the answer does not follow it."""
    if not has_response_template(tokenizer):
        return None
    try:
        if getattr(tokenizer, "response_template", None) is not None:
            message = tokenizer.parse_response(text, prefix=prefix, tools=[dict(tool) for tool in tools])
        else:
            message = tokenizer.parse_response(text)
    except Exception:  # noqa: BLE001  (an answer that does not follow the template is read by its format)
        return None
    if not isinstance(message, Mapping):
        return None
    content, calls = message.get("content"), message.get("tool_calls")
    answer = Answer(content.strip() if isinstance(content, str) else "")
    for key in ("reasoning_content", "thinking", "reasoning"):
        if not answer.reasoning and isinstance(message.get(key), str):
            answer.reasoning = message[key]
    for call in calls if isinstance(calls, (list, tuple)) else ():
        _add_value(answer, call, str(call), "<tool_call>")
    return answer


def control_tokens(tokenizer: Any) -> list[str]:
    """Texts of a tokenizer's control tokens."""
    known = getattr(tokenizer, "added_tokens_decoder", {})
    return [str(token) for token in known.values() if token.special]


def has_response_template(tokenizer: Any) -> bool:
    """Whether a tokenizer tells how its model's answers are read, in a way that this version of transformers knows."""
    known = (getattr(tokenizer, name, None) for name in ("response_template", "response_schema"))
    return callable(getattr(tokenizer, "parse_response", None)) and any(each is not None for each in known)
