"""What a fit costs beyond encoding its prompts all at once, and whether its memory grows with their number."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

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
    fitted, encoded = _times(1_000 if arguments.quick else 4_000, 2 if arguments.quick else 7)
    grown = [two / one for one, two in zip(small, large, strict=True)]
    figures = [
        figure("fit", [each.wall for each in fitted], "s"),
        figure("encoding alone", [each.wall for each in encoded], "s"),
        figure("fit / encoding alone", ratios(fitted, encoded), "ratio", at_most=1.05),
        figure("fit / encoding alone, processor time", cpu_ratios(fitted, encoded), "ratio"),
        figure(f"peak memory, {few} prompts", small, "MiB"),
        figure(f"peak memory, {many} prompts", large, "MiB"),
        figure(
            f"peak memory, {many} / {few} prompts",
            [two / one for one, two in zip(small, large, strict=True)],
            "ratio",
            at_most=1.1,
        ),
    ]
    return report("fit", figures, quick=arguments.quick)


def _times(count: int, rounds: int) -> tuple[list[Timing], list[Timing]]:
    from mlpm_guard import Guard
    from mlpm_guard.encoders.embedded import EmbeddedEncoder

    encoder = EmbeddedEncoder().load()

    def fit() -> None:
        Guard(encoder).fit(prompts(count, 5, 60), _labels(count), progress=False)

    def encode() -> None:
        encoder.encode(list(prompts(count, 5, 60)))

    # The first fit of a process imports scikit-learn.
    Guard(encoder).fit(prompts(256, 5, 60), _labels(256), progress=False)
    return interleaved([(fit, encode)] * rounds)


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
