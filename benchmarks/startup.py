"""What a program pays that imports the library, and a person who types the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from _bench import Figure, figure, options, report, timed

_IMPORT = "import mlpm_guard"
_GUARD = "from mlpm_guard import Guard"
_HEAVY = ("torch", "transformers", "sklearn", "scipy")
_FREE_OF_TORCH = f"import sys, mlpm_guard; print(*sorted(set(sys.modules) & {set(_HEAVY)!r}))"


def main() -> int:
    """Measure and report."""
    arguments = options(__doc__).parse_args()
    runs = 7 if arguments.quick else 15
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        f"python -c '{_IMPORT}'": [sys.executable, "-c", _IMPORT],
        f"python -c '{_GUARD}'": [sys.executable, "-c", _GUARD],
        "mlpm-guard --help": [str(_command()), "--help"],
    }
    targets = {f"python -c '{_IMPORT}'": 0.2, "mlpm-guard --help": 0.5}
    times: dict[str, list[float]] = {name: [] for name in commands}
    missing = [name for name, command in commands.items() if not _works(command)]  # also the warm-up
    for _ in range(runs):
        for name, command in commands.items():
            if name not in missing:
                times[name].append(timed(lambda command=command: _run(command)).wall)
    figures = [figure(name, times[name], "s", at_most=targets.get(name)) for name in commands if name not in missing]
    loaded = _run([sys.executable, "-c", _FREE_OF_TORCH]).stdout.split()
    figures.append(Figure("heavy packages loaded by the import", len(loaded), 0, len(loaded), 1, "", target=0))
    figures += [Figure(f"{name} fails", 1, 1, 1, 1, "", target=0) for name in missing]
    return report("startup", figures, quick=arguments.quick, loaded=loaded)


def _command() -> Path:
    return Path(sys.executable).parent / "mlpm-guard"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True)


def _works(command: list[str]) -> bool:
    try:
        _run(command)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
