"""What a guard costs inside the model that answers: plain `generate` against `GuardedGenerator.generate`.

By default on a random Llama of about 100 million parameters on the CPU; `--preset llama-8b --device cuda` for a large one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import Figure, figure, interleaved, options, ratios, report

_ROUNDS = {"cpu": 15, "cuda": 40}
_STATM_PAGE = 4096


def main() -> int:
    """Measure and report."""
    from _models import PRESETS

    parser = options(__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="llama-100m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, help="pairs of calls for each figure")
    parser.add_argument(
        "--child", choices=("plain", "guarded"), help="used by the benchmark: print the peak memory of one call"
    )
    parser.add_argument("--tokens", type=int, default=512, help="prompt length of --child")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    if arguments.child:
        print(_peak(preset, arguments.device, arguments.child, arguments.tokens))
        return 0
    lengths = preset.lengths[:1] if arguments.quick else preset.lengths
    kind = arguments.device.partition(":")[0]
    rounds = arguments.rounds or (5 if arguments.quick else _ROUNDS.get(kind, 15))
    figures = _memory_figures(arguments, preset, max(lengths))
    figures += _time_figures(preset, arguments.device, lengths, rounds)
    name = "overhead" if arguments.preset == "llama-100m" and kind == "cpu" else f"overhead-{arguments.preset}-{kind}"
    return report(name, figures, quick=arguments.quick, preset=arguments.preset, **_device(arguments.device))


def _device(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return {"device": name, "threads": torch.get_num_threads()}


def _time_figures(preset: Any, device: str, lengths: tuple[int, ...], rounds: int) -> list[Figure]:
    from _models import load

    subject = load(preset, device)
    synchronise = _synchronise(device)
    figures: list[Figure] = []

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


def _memory_figures(arguments: Any, preset: Any, length: int) -> list[Figure]:
    """Peak memory over weights, each from a process of its own."""
    runs = 1 if arguments.quick else 3
    peaks: dict[str, list[float]] = {"plain": [], "guarded": []}
    for _ in range(runs):
        for kind, found in peaks.items():
            command = [sys.executable, __file__, "--preset", arguments.preset, "--device", arguments.device]
            command += ["--child", kind, "--tokens", str(length)]
            found.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    found = [one / two for one, two in zip(peaks["guarded"], peaks["plain"], strict=True)]
    return [
        figure(f"memory over weights, plain, {length} tokens", peaks["plain"], "MiB"),
        figure(
            f"memory over weights, guarded / plain, {length} tokens",
            found,
            "ratio",
            at_most=preset.targets.get("memory"),
        ),
    ]


def _peak(preset: Any, device: str, kind: str, length: int) -> float:
    """Peak memory in MiB of one call, above what model and guard occupy at rest."""
    import torch
    from _models import load

    subject = load(preset, device)
    work = subject.plain if kind == "plain" else subject.guarded
    work([subject.prompt(16)], max_new_tokens=2)  # what is allocated once, for good
    prompts = [subject.prompt(length)]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(prompts, max_new_tokens=4)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status = Path("/proc/self/clear_refs")
    if not status.exists():
        raise SystemExit("the peak memory of one call can only be read on Linux, or on a GPU")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * _STATM_PAGE
    status.write_text("5")
    work(prompts, max_new_tokens=4)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return (peak - before) / 2**20


if __name__ == "__main__":
    sys.exit(main())
