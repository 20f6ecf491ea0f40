"""Scores a file of any size into JSONL, so that an interrupted run can be continued. Writes scores, never text.

Beside OUT stand, until all is done, OUT.partial (the rows so far) and OUT.partial.json (what they were made from). A run
continues only if input, guard and options are still the same. A file that was corrected in between is another file: start over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mlpm_guard.datafiles import DataFile, Record
from mlpm_guard.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from mlpm_guard.guard import Guard
    from mlpm_guard.verdict import Verdict

_FORMAT = "mlpm-guard-scores-1"
_BATCH_ROWS = 256
_BATCH_CHARACTERS = 2_000_000
_HEAD = 2**20
_CHUNK = 2**20


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        rows: rows in the output.
        continued: how many of them an earlier run had scored.
        flagged: rows that this run flagged, those that could not be judged included.
        errors: rows of this run that could not be judged.
    """

    rows: int
    continued: int
    flagged: int
    errors: int


class FileScorer:
    """One input, one output, one guard.

    Args:
        guard: a guard that was saved or loaded.
        data: the input; its labels are not needed.
        out: where the scores go.
        restart: drop what an earlier run left, and replace `out` when all is done.

    Attributes:
        rows: rows that are safe on disk.

    Raises:
        ConfigurationError: `out` exists, or cannot be written to, or an earlier run's rows were made from something else.
    """

    def __init__(self, guard: Guard, data: DataFile, out: str | Path, *, restart: bool = False) -> None:
        self._guard = guard
        self._data = data
        self._out = Path(out)
        self._partial = self._out.with_name(self._out.name + ".partial")
        self._sidecar = self._out.with_name(self._out.name + ".partial.json")
        self._restart = restart
        self.rows = 0
        if self._out.is_dir():
            raise ConfigurationError(f"{self._out} is a folder; name a file")
        if not self._out.parent.is_dir():
            raise ConfigurationError(f"there is no folder {self._out.parent} to write to")
        for path in (self._out, self._partial, self._sidecar):
            if path.exists() and path.samefile(data.path):
                raise ConfigurationError(f"{path} is the input itself; write to another file")
        self._made_from = {
            "format": _FORMAT,
            **_fingerprint(data.path),
            "bundle_id": guard.bundle_id,
            "threshold": guard.threshold,
            "text_column": data.text_column,
        }

    def run(self, progress: Callable[[int], None] | None = None) -> Summary:
        """Score what is not scored yet. Every batch is on disk before the next one starts.

        Args:
            progress: called after every batch with the number of rows so far.

        Raises:
            ConfigurationError: see the class.
            DataError: a row of the input is malformed, or the input changed meanwhile. Scored rows are kept.
            OSError: a file cannot be written.
        """
        self._begin()
        with self._partial.open("r+b") as output:
            _lock(output, self._partial)
            try:
                summary = self._fill(output, progress)
                os.fsync(output.fileno())
            except BaseException:
                if os.fstat(output.fileno()).st_size == 0:
                    self._clear()
                raise
        self._partial.replace(self._out)
        self._sidecar.unlink(missing_ok=True)
        return summary

    def _begin(self) -> None:
        """Leave a partial file and a sidecar that belong to this run."""
        if self._restart and self._partial.exists():
            with self._partial.open("r+b") as output:
                _lock(output, self._partial)
            self._clear()
        left = self._read_sidecar()
        if self._out.exists() and not self._restart and not (left and left.get("replaces")):
            raise ConfigurationError(f"{self._out} exists; choose another name, or replace it with --restart")
        if left is None:
            replaces = self._out.exists()
            _write(self._sidecar, json.dumps({**self._made_from, "replaces": replaces}, indent=1).encode())
            self._partial.touch()
            return
        different = [name for name, value in self._made_from.items() if left.get(name) != value]
        if different:
            raise ConfigurationError(
                f"{self._partial} was made from something else ({', '.join(different)} differ); start over with --restart"
            )

    def _read_sidecar(self) -> dict[str, Any] | None:
        """What the partial file was made from; None where there is no partial file."""
        if not self._partial.exists():
            return None
        try:
            found = json.loads(self._sidecar.read_bytes())
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise ConfigurationError(
                f"{self._partial} exists without a readable {self._sidecar.name}; start over with --restart"
            )
        return found

    def _fill(self, output: IO[bytes], progress: Callable[[int], None] | None) -> Summary:
        records = iter(self._data)
        continued, last_line = _complete_lines(output, self._partial)
        self.rows = continued
        self._skip(records, continued, last_line)
        flagged = errors = 0
        for batch in _batches(records):
            verdicts = self._guard.check_batch([record.conversation for record in batch])
            output.write(b"".join(_row(record, verdict) for record, verdict in zip(batch, verdicts, strict=True)))
            output.flush()
            self.rows += len(batch)
            flagged += sum(verdict.flagged for verdict in verdicts)
            errors += sum(verdict.error is not None for verdict in verdicts)
            if progress is not None:
                progress(self.rows)
        now = _fingerprint(self._data.path)
        if any(self._made_from[name] != value for name, value in now.items()):
            raise DataError(f"{self._data.path} changed while it was scored; start over with --restart")
        return Summary(self.rows, continued, flagged, errors)

    def _skip(self, records: Iterator[Record], count: int, last_line: int | None) -> None:
        record = None
        for _ in range(count):
            record = next(records, None)
        if count and (record is None or record.line != last_line):
            raise ConfigurationError(f"{self._partial} does not fit {self._data.path}; start over with --restart")

    def _clear(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)


def _row(record: Record, verdict: Verdict) -> bytes:
    row = {
        "line": record.line,
        "id": record.id,
        "flagged": verdict.flagged,
        "score": verdict.score,
        "action": verdict.action.value,
        "category": verdict.category,
        "error": verdict.error,
        "bundle_id": verdict.bundle_id,
    }
    return json.dumps(row).encode() + b"\n"


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Up to 256 records, fewer where they are long, so that memory depends on neither file nor rows."""
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += _characters(record)
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _characters(record: Record) -> int:
    if isinstance(record.conversation, str):
        return len(record.conversation)
    return sum(len(str(each.get("content"))) for each in record.conversation)


def _complete_lines(output: IO[bytes], path: Path) -> tuple[int, int | None]:
    """Count the complete lines, cut off what follows the last one, and leave the file ready for appending.

    Returns:
        How many there are, and the input line that the last one is about.
    """
    count = end = position = start_of_last = 0
    output.seek(0)
    while chunk := output.read(_CHUNK):
        found = chunk.count(b"\n")
        if found:
            last = chunk.rindex(b"\n")
            before = chunk.rfind(b"\n", 0, last)
            start_of_last = position + before + 1 if before >= 0 else end
            end = position + last + 1
            count += found
        position += len(chunk)
    output.seek(start_of_last)
    text = output.read(end - start_of_last)
    output.truncate(end)
    output.seek(end)
    if not count:
        return 0, None
    try:
        return count, int(json.loads(text)["line"])
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{path} is damaged; start over with --restart") from None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        head = hashlib.sha256(file.read(_HEAD)).hexdigest()
    return {"input_size": status.st_size, "input_mtime_ns": status.st_mtime_ns, "input_head_sha256": head}


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _lock(output: IO[bytes], path: Path) -> None:
    """Keep a second run from writing into the same file, where the system can."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another run is writing to {path}; wait until it ends") from None
        except OSError:
            # File systems without locks exist; a run there is as safe as its caller is careful.
            return
