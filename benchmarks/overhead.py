"""What a guard costs inside the model that answers: plain `generate` against `GuardedGenerator.generate`.

By default on a random Llama of about 100 million parameters on the CPU; `--preset llama-8b --device cuda` for a large one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from _bench import Figure, figure, interleaved, options, ratios, report

_ROUNDS = {"cpu": 25, "cuda": 40}


def main() -> int:
    """Measure and report."""
    from _models import PRESETS

    parser = options(__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="llama-100m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, help="pairs of calls for each figure")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    lengths = preset.lengths[:1] if arguments.quick else preset.lengths
    kind = arguments.device.partition(":")[0]
    rounds = arguments.rounds or (5 if arguments.quick else _ROUNDS.get(kind, 15))
    figures = _figures(preset, arguments.device, lengths, rounds)
    name = "overhead" if arguments.preset == "llama-100m" and kind == "cpu" else f"overhead-{arguments.preset}-{kind}"
    return report(name, figures, quick=arguments.quick, preset=arguments.preset, **_device(arguments.device))


def _device(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return {"device": name, "threads": torch.get_num_threads()}


def _figures(preset: Any, device: str, lengths: tuple[int, ...], rounds: int) -> list[Figure]:
    from _models import load

    subject = load(preset, device)
    synchronise = _synchronise(device)
    figures = _memory_figures(subject, device, max(lengths), preset.targets.get("memory"))

    def call(work: Callable[..., object], prompts: list[str], count: int) -> Callable[[], None]:
        def run() -> None:
            work(prompts, max_new_tokens=count, min_new_tokens=count)
            synchronise()

        return run

    for batch in preset.batches:
        for length in lengths:
            prompts = [subject.prompt(length)] * batch
            for count in preset.new_tokens:
                plain, guarded = call(subject.plain, prompts, count), call(subject.guarded, prompts, count)
                same = {"max_new_tokens": count, "min_new_tokens": count}
                if subject.plain(prompts, **same) != subject.guarded(prompts, **same):
                    raise SystemExit("the guarded answer is not the plain one; there is nothing to compare")
                one, two = interleaved([(guarded, plain)] * rounds)
                where = f"batch {batch}, {length} prompt tokens, {count} new"
                bound = preset.targets.get("first token" if count == 1 else "time", preset.targets.get("time"))
                figures.append(figure(f"plain, {where}", [each.wall for each in two], "s"))
                figures.append(figure(f"guarded / plain, {where}", ratios(one, two), "ratio", at_most=bound))
            subject.guard.mode = "enforce"
            plain, flagged = call(subject.plain, prompts, 1), call(subject.guarded, prompts, 32)
            flagged()
            one, two = interleaved([(flagged, plain)] * rounds)
            figures.append(
                figure(
                    f"flagged prompt / plain prefill, batch {batch}, {length} tokens",
                    ratios(one, two),
                    "ratio",
                    at_most=preset.targets.get("flagged"),
                )
            )
            subject.guard.mode = "monitor"
    return [*figures, _half_way(subject, max(lengths), rounds, synchronise)]


def _half_way(subject: Any, length: int, rounds: int, synchronise: Callable[[], None]) -> Figure:
    """Stand-alone scoring by the lower half of the layers, against a forward pass through all of them."""
    from mlpm_guard.conversation import Conversation

    encoder = subject.guard.encoder
    conversation = Conversation.parse(subject.prompt(length))
    depth = len(encoder.layers)

    def half() -> None:
        encoder.encode([conversation], layers=range(1, depth // 2 + 1))
        synchronise()

    def whole() -> None:
        encoder.encode([conversation])
        synchronise()

    half()
    whole()
    one, two = interleaved([(half, whole)] * rounds)
    return figure(f"states up to layer {depth // 2} / all {depth}, {length} tokens", ratios(one, two), "ratio", at_most=0.6)


def _synchronise(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _memory_figures(subject: Any, device: str, length: int, bound: float | None) -> list[Figure]:
    """Peak memory of tensors over what model and guard occupy at rest."""
    plain, guarded = (_peak(work, device, [subject.prompt(length)]) for work in (subject.plain, subject.guarded))
    return [
        figure(f"memory over weights, plain, {length} tokens", [plain], "MiB"),
        figure(f"memory over weights, guarded / plain, {length} tokens", [guarded / plain], "ratio", at_most=bound),
    ]


def _peak(work: Callable[..., object], device: str, prompts: list[str]) -> float:
    """Peak memory of tensors in MiB of one call, from what torch allocates: the process's size is mostly the heap's noise."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    work(prompts, max_new_tokens=4)  # what is allocated once, for good
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(prompts, max_new_tokens=4)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work(prompts, max_new_tokens=4)
    results: Any = profiled.profiler
    now = peak = 0
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


if __name__ == "__main__":
    sys.exit(main())
