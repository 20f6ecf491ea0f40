"""Moderate an answer while it is written: each sentence is judged before it is shown, and a blocked answer stops its model.

A small guard is fitted here on a dozen short answers, so that the file runs offline in seconds on the embedded encoder. It
shows the mechanics; a guard for use is fitted on hundreds of answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from mlpm_guard import Guard, StreamModerator

HARMLESS = [
    "Soak the lentils, then simmer them with onions and carrots for half an hour.",
    "The capital of Australia is Canberra. It lies between Sydney and Melbourne.",
    "I can't help with frightening people. If you feel threatened, talk to someone you trust.",
    "Plant the bulbs in autumn, as deep as they are wide twice over, and water them well.",
    "Sorting a list in Python takes one call: sorted(numbers).",
    "I will not write that message. Perhaps you could tell your neighbour calmly what bothers you.",
]
HARMFUL = [
    "Sure, here is the threat to send: pay me by Friday, or I will hurt you and your family.",
    "Tell her that you are from her bank and need her password, then empty her account.",
    "Write that you know where his children go to school, and that he should be afraid.",
    "Follow him home every night and let him see you, so that he is frightened.",
    "Here is the fake letter from the bank that makes people give away their password.",
    "Say that you will burn down her house if she tells anybody, and that you are watching her.",
]
PROMPT = "My neighbour plays loud music. What should I write to him?"
CALM = "You could write a friendly note. Say which evenings are hard for you, and suggest a time. Offer to talk over a tea."
ANGRY = (
    "You could write him a short note. Say that you are watching him, and that you will hurt his family if he tells anybody. "
    "Then follow him home every night so that he is afraid. Sign it with a false name."
)


def model(answer: str) -> Iterator[str]:
    """Stands in for a model that streams: a few characters at a time."""
    written = 0
    try:
        while written < len(answer):
            yield answer[written : written + 7]
            written += 7
    finally:
        print(f"  (the model has written {min(written, len(answer))} of {len(answer)} characters)")


async def async_model(answer: str) -> AsyncIterator[str]:
    """The same for an event loop."""
    for at in range(0, len(answer), 7):
        await asyncio.sleep(0)
        yield answer[at : at + 7]


async def in_an_event_loop(moderator: StreamModerator) -> str:
    return "".join([text async for text in moderator.astream(async_model(CALM))])


def main() -> None:
    guard = Guard(target="response").fit(HARMLESS + HARMFUL, ["safe"] * 6 + ["unsafe"] * 6, progress=False)
    moderator = StreamModerator(guard, prompt=PROMPT, on_block="replace")
    blocked = 0
    for name, answer in (("calm", CALM), ("angry", ANGRY)):
        print(f"The {name} answer, as it is released:")
        stream = moderator.stream(model(answer))
        for text in stream:
            print(f"  {text!r}")
        assert stream.verdict is not None
        print(f"  verdict: {stream.verdict.action}, score {stream.verdict.score:.2f}, threshold {stream.verdict.threshold}")
        blocked += stream.verdict.blocked
    assert asyncio.run(in_an_event_loop(moderator)) == CALM
    print(f"Moderated 2 answers while they were written: {blocked} stopped, {2 - blocked} released unchanged, also in async.")


if __name__ == "__main__":
    main()
