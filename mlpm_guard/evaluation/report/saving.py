"""Writing a report, whole or not at all."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from mlpm_guard.errors import ReportSaveError


def check_writable(path: str | Path) -> Path:
    """Find out before an evaluation whether its report can be written.

    Returns:
        The path.

    Raises:
        ReportSaveError: the folder does not exist or cannot be written, or the path is a folder.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise ReportSaveError(f"{target} is a folder; name the file that the report goes into")
    if not target.parent.is_dir():
        raise ReportSaveError(f"{target.parent}: no such folder; create it, or choose another path for the report")
    try:
        # Asked of the file system itself, because permissions alone do not tell of one that is mounted read-only.
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def save_report(path: str | Path, html: str) -> Path:
    """Write a report, whole or not at all.

    Returns:
        The path.

    Raises:
        ReportSaveError: it cannot be written; what was there before is untouched.
    """
    target = check_writable(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.saving")
    try:
        with temporary.open("x", encoding="utf-8", errors="replace") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _unwritable(target: Path, error: OSError) -> ReportSaveError:
    return ReportSaveError(
        f"cannot write the report to {target} ({error.strerror or type(error).__name__}); choose another path"
    )
