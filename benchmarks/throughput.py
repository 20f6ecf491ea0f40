"""Many short prompts through `Guard.check_batch`, against the bare encoder in ideal length-sorted batches."""

from __future__ import annotations

import statistics
import sys

from _bench import cpu_ratios, figure, interleaved, options, ratios, report
from _prompts import prompts


def main() -> int:
    """Measure and report."""
    arguments = options(__doc__).parse_args()
    from _embedded import BATCH_TOKENS, load

    pair = load()
    texts = list(prompts(512 if arguments.quick else 2048, 5, 60))
    pieces = [verdict.windows for verdict in pair.guard.check_batch(texts)]  # also the warm-up
    pair.sorted_batches(texts[:256])
    rounds = 3 if arguments.quick else 5
    guarded, bare = interleaved([(lambda: pair.guard.check_batch(texts), lambda: pair.sorted_batches(texts))] * rounds)
    lengths = [len(row) for row in pair.tokenizer(texts)["input_ids"]]
    figures = [
        figure("Guard.check_batch", [len(texts) / each.wall for each in guarded], "prompts/s"),
        figure("bare encoder in sorted batches", [len(texts) / each.wall for each in bare], "prompts/s"),
        figure("Guard.check_batch / bare", ratios(bare, guarded), "ratio", at_least=0.95),
        figure("Guard.check_batch / bare, processor time", cpu_ratios(bare, guarded), "ratio"),
        figure("pieces per prompt (mean)", [statistics.fmean(pieces)], "pieces"),
        figure("tokens per prompt", [float(each) for each in lengths], "tokens"),
    ]
    return report("throughput", figures, quick=arguments.quick, prompts=len(texts), batch_tokens=BATCH_TOKENS, layers="all")


if __name__ == "__main__":
    sys.exit(main())
