"""What a fit costs beyond encoding its prompts, and whether its memory grows with their number.

The bound is on a fit over a run of its own that encodes all prompts at once, and also on a fit over what its own calls of the
encoder and its tokenizer took. On a shared machine neighbouring runs of the same code differ by up to a third, so that the
first scatters; the second meets any drift alike, but would not see work that the fit's batches waste.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from _bench import Timing, cpu_ratios, figure, interleaved, options, ratios, report
from _prompts import prompts


def main() -> int:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--child", type=int, help="fit that many prompts and print the peak memory (used by the benchmark)")
    arguments = parser.parse_args()
    if arguments.child:
        print(_peak(arguments.child))
        return 0
    few, many = (2_000, 8_000) if arguments.quick else (4_000, 40_000)
    # A child's peak starts at its parent's size: the children run before this process loads a model.
    small, large = ([_peak_of_child(count) / 1024 for _ in range(1 if arguments.quick else 3)] for count in (few, many))
    fitted, encoded, inside = _times(1_000 if arguments.quick else 4_000, 2 if arguments.quick else 7)
    within = [each.wall / part for each, part in zip(fitted, inside, strict=True)]
    grown = [two / one for one, two in zip(small, large, strict=True)]
    figures = [
        figure("fit", [each.wall for each in fitted], "s"),
        figure("encoding alone", [each.wall for each in encoded], "s"),
        figure("fit / encoding within it", within, "ratio", at_most=1.05),
        figure("fit / encoding alone", ratios(fitted, encoded), "ratio", at_most=1.05),
        figure("fit / encoding alone, processor time", cpu_ratios(fitted, encoded), "ratio"),
        figure(f"peak memory, {few} prompts", small, "MiB"),
        figure(f"peak memory, {many} prompts", large, "MiB"),
        figure(f"peak memory, {many} / {few} prompts", grown, "ratio", at_most=1.1),
    ]
    return report("fit", figures, quick=arguments.quick)


def _times(count: int, rounds: int) -> tuple[list[Timing], list[Timing], list[float]]:
    """Times of fits, times of encoding the same prompts at once, and of every fit the share that it spent on encoding."""
    import time

    from mlpm_guard import Guard
    from mlpm_guard.encoders.embedded import EmbeddedEncoder

    class Timed(EmbeddedEncoder):
        seconds = 0.0

        def prompt_ids(self, conversations: Any) -> Any:
            return self._timed(super().prompt_ids, conversations)

        def encode(self, conversations: Any, **options: Any) -> Any:
            return self._timed(super().encode, conversations, **options)

        def _timed(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = call(*arguments, **options)
            self.seconds += time.perf_counter() - start
            return found

    encoder = Timed().load()
    texts, labels = list(prompts(count, 5, 60)), list(_labels(count))
    inside: list[float] = []

    def fit() -> None:
        encoder.seconds = 0.0
        Guard(encoder).fit(texts, labels, progress=False)
        inside.append(encoder.seconds)

    def encode() -> None:
        encoder.encode(texts)

    # The first fit of a process imports scikit-learn.
    Guard(encoder).fit(texts[:256], labels[:256], progress=False)
    fitted, encoded = interleaved([(fit, encode)] * rounds)
    return fitted, encoded, inside


def _labels(count: int) -> Iterator[int]:
    return (index % 2 for index in range(count))


def _peak_of_child(count: int) -> int:
    command = [sys.executable, __file__, "--child", str(count)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak(count: int) -> int:
    """Peak resident memory in KiB of a fit on a stream of very short prompts."""
    from mlpm_guard import Guard

    Guard().fit(prompts(count, 5, 9), _labels(count), progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


if __name__ == "__main__":
    sys.exit(main())
