"""The whole recipe of what ships, in one command: adapter, prompt bundle, response bundle, model cards.

    python mlpm_guard/bundles/recipe.py DATA_FOLDER [--keep-adapter] [--reference FOLDER]

DATA_FOLDER (or MLPM_GUARD_DATA) is that of `fit_default.py` and `fit_default_response.py`, with `eval` for the cards. Every
step is a script of its own, beside this one. With `--keep-adapter` the adapter that is there stays; what stands on it is made.
`--reference` keeps the guard that the card compares with in a folder, for the next time. Says what every step took.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from mlpm_guard.encoders import embedded

HERE = Path(__file__).resolve().parent
STEPS = ("train_adapter.py", "fit_default.py", "fit_default_response.py", "card.py")
_PIN = re.compile(r"^ADAPTER_SHA256\b.*$", re.MULTILINE)


def pin(adapter: Path, code: Path) -> str:
    """Write an adapter's SHA-256 into the code that checks it.

    Args:
        adapter: its file.
        code: the module with the constant `ADAPTER_SHA256`.

    Returns:
        The SHA-256.
    """
    found = hashlib.sha256(adapter.read_bytes()).hexdigest()
    text = code.read_text(encoding="utf-8")
    code.write_text(_PIN.sub(f'ADAPTER_SHA256: str | None = "{found}"', text, count=1), encoding="utf-8")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("MLPM_GUARD_DATA"))
    parser.add_argument("--keep-adapter", action="store_true", help="do not train the encoder's adapter anew")
    parser.add_argument("--reference", type=Path, help="folder to keep the card's reference guard in")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("no data folder: give it as an argument, or set MLPM_GUARD_DATA")
    for step in STEPS[1 if options.keep_adapter else 0 :]:
        kept = ["--reference", str(options.reference)] if step == "card.py" and options.reference else []
        start = time.monotonic()
        # Processes of their own: each is to load the adapter that the step before it made.
        if subprocess.run([sys.executable, str(HERE / step), str(options.data), *kept], check=False).returncode:  # noqa: S603
            sys.exit(f"{step} failed; what the steps before it made is in place")
        print(f"{step}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
        if step == "train_adapter.py":
            pin(embedded.ADAPTER, Path(embedded.__file__))


if __name__ == "__main__":
    main()
