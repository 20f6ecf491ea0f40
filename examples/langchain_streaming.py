"""A streaming LangChain model whose answer turns harmful: it is cut mid-way, and nothing harmful leaves, not even in events.

The response guard is fitted here on a dozen short answers, as in moderate_a_stream.py; it shows the mechanics.
"""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_mlpm_guard import ModeratedChatModel
from moderate_a_stream import ANGRY, CALM, HARMFUL, HARMLESS, PROMPT

from mlpm_guard import Guard

WRITTEN: list[str] = []


class Writer(GenericFakeChatModel):
    """LangChain's fake model, which notes what it writes."""

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        for chunk in super()._stream(*args, **kwargs):
            WRITTEN.append(chunk.text)
            yield chunk


async def events(model: ModeratedChatModel) -> str:
    """All text that event streams tell of an answer."""
    found = [event async for event in model.astream_events(PROMPT, version="v2")]
    return "".join(repr(event["data"]) for event in found if event["event"] != "on_chat_model_start")


def main() -> None:
    moderator = Guard(target="response").fit(HARMLESS + HARMFUL, ["safe"] * 6 + ["unsafe"] * 6, progress=False)
    cut = 0
    for name, answer in (("calm", CALM), ("angry", ANGRY)):
        WRITTEN.clear()
        inner = Writer(messages=iter([AIMessage(answer), AIMessage(answer)]))
        model = ModeratedChatModel(model=inner, guard=Guard.from_pretrained(), moderator=moderator)
        print(f"The {name} answer, as it is released:")
        whole = None
        for chunk in model.stream(PROMPT):
            if chunk.text:
                print(f"  {chunk.text!r}")
            whole = chunk if whole is None else whole + chunk
        cut += whole.text != answer
        print(f"  finish_reason: {whole.response_metadata.get('finish_reason', 'stop')}")
        print(f"  (the model has written {len(''.join(WRITTEN))} of {len(answer)} characters)")
        print(f"  anything harmful in its events: {'hurt' in asyncio.run(events(model))}")
    print(f"Streamed 2 answers: {cut} was cut short, {2 - cut} came whole.")


if __name__ == "__main__":
    main()
