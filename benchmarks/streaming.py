"""Moderating an answer while it is written: cost per token of answers of 100 to 2,000 tokens, on the embedded encoder."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from _bench import Timing, cpu_ratios, figure, interleaved, options, ratios, report
from _prompts import padding, prompts

LENGTHS = (100, 500, 1000, 2000)
PROMPT = "Please explain to my class how a small village library works and who pays for it."


def answer(tokens: int, seed: int, tokenizer: Any) -> list[str]:
    """Chunks of an answer of so many tokens (up to one more): sentences of 6 to 11 words in paragraphs, token by token."""
    generator = random.Random(seed)
    pieces = padding(tokens, seed=seed).split(" ")
    words = [piece + ("\n\n" if piece.endswith(".") and generator.random() < 0.15 else " ") for piece in pieces]
    counts = [len(ids) for ids in tokenizer([word.strip() for word in words], add_special_tokens=False)["input_ids"]]
    kept = total = 0
    while total < tokens:
        total += counts[kept]
        kept += 1
    return words[:kept]


def main() -> int:
    """Measure and report."""
    arguments = options(__doc__).parse_args()
    from _embedded import load

    from mlpm_guard import Guard, StreamModerator

    pair = load()
    # In monitor mode nothing is stopped, whatever this guard, which learned from noise, says.
    guard = Guard(pair.encoder, target="response", mode="monitor")
    guard.fit(prompts(32, 5, 20), [index % 2 for index in range(32)], progress=False)
    moderator = StreamModerator(guard, prompt=PROMPT)

    def moderated(chunks: list[str]) -> Callable[[], object]:
        return lambda: sum(map(len, moderator.stream(chunks)))

    def repeated(works: list[Callable[[], object]]) -> Callable[[], object]:
        return lambda: [work() for work in works]

    rounds = 3 if arguments.quick else 9
    for seed in range(3):
        moderated(answer(500, seed, pair.tokenizer))()
    figures = []
    per_token: dict[int, list[Timing]] = {}
    for length in LENGTHS:
        # As many tokens on both sides, in answers of 100 and in answers of the length.
        pairs = []
        for turn in range(rounds):
            short = [moderated(answer(100, 1000 * turn + part, pair.tokenizer)) for part in range(length // 100)]
            pairs.append((moderated(answer(length, 1000 * turn, pair.tokenizer)), repeated(short)))
        long_times, short_times = interleaved(pairs)
        per_token[length] = long_times
        figures.append(figure(f"{length:,} tokens, cost per token", [1e3 * each.wall / length for each in long_times], "ms"))
        if length > 100:
            bound = 1.2 if length == LENGTHS[-1] else None
            name = f"cost per token, {length:,} tokens / 100"
            figures.append(figure(name, ratios(long_times, short_times), "ratio", at_most=bound))
            figures.append(figure(f"{name}, processor time", cpu_ratios(long_times, short_times), "ratio"))
    chunks = [answer(500, seed, pair.tokenizer) for seed in range(rounds)]
    whole = ["".join(each) for each in chunks]
    question = {"role": "user", "content": PROMPT}
    streamed, checked = interleaved(
        [
            (moderated(each), lambda text=text: guard.check([question, {"role": "assistant", "content": text}]))
            for each, text in zip(chunks, whole, strict=True)
        ]
    )
    figures.append(figure("500 tokens, streamed / judged once when finished", ratios(streamed, checked), "ratio"))
    return report("streaming", figures, quick=arguments.quick, judged="sentence by sentence, 200 characters of context")


if __name__ == "__main__":
    sys.exit(main())
