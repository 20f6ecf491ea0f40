"""One short prompt through `Guard.check`, against the bare encoder's forward pass with its tokenisation."""

from __future__ import annotations

import sys

from _bench import cpu_ratios, figure, interleaved, options, ratios, report

TEXTS = (
    "What is the capital of France and how many people live there today?",
    "Please help me write a short birthday message for my grandmother who loves gardening and cats.",
    "How do I convert a list of strings into one string in Python without a loop?",
    "Give me a recipe for a simple tomato soup that two people can cook in half an hour.",
    "Why does the moon look larger when it is close to the horizon?",
    "Translate this sentence into Spanish: the train to the coast leaves at nine in the morning.",
    "Could you recommend three quiet places for a weekend walk near a lake?",
    "Explain to a ten year old what an interest rate is and why banks pay one.",
)


def main() -> int:
    """Measure and report."""
    arguments = options(__doc__).parse_args()
    from _embedded import load

    pair = load()
    texts = [TEXTS[index % len(TEXTS)] for index in range(60 if arguments.quick else 400)]
    for text in TEXTS * 3:
        pair.guard.check(text)
        pair.one(text)
    pairs = [(lambda text=text: pair.guard.check(text), lambda text=text: pair.one(text)) for text in texts]
    guarded, bare = interleaved(pairs)
    figures = [
        figure("Guard.check", [1e3 * each.wall for each in guarded], "ms"),
        figure("bare encoder", [1e3 * each.wall for each in bare], "ms"),
        figure("Guard.check / bare", ratios(guarded, bare), "ratio", at_most=1.15),
        figure("Guard.check / bare, processor time", cpu_ratios(guarded, bare), "ratio"),
    ]
    tokens = [len(pair.tokenizer(text)["input_ids"]) for text in TEXTS]
    return report("latency", figures, quick=arguments.quick, tokens=f"{min(tokens)} to {max(tokens)}", layers="all")


if __name__ == "__main__":
    sys.exit(main())
