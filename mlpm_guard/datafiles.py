"""Prompts from files: JSONL, CSV and Parquet, plain or gzipped, a row at a time, whatever the file's size.

Every error names the file and the line. None repeats what stands there, because that is a prompt.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from mlpm_guard.errors import ConfigurationError, DataError

TEXT_COLUMNS = ("text", "prompt", "messages", "question", "instruction")
"""Where prompts are looked for, in this order, when no column is named."""

LABEL_COLUMN = "label"

PROMPT_COLUMN = "prompt"
"""Where the prompt of an answer is looked for when no column is named."""

RESPONSE_COLUMNS = ("response", "text")
"""Where answers are looked for, in this order, when no column is named."""

Labels: TypeAlias = Literal["required", "optional", "ignored"]

_MAX_LINE = 64 * 2**20
_PARQUET_ROWS = 256
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")
_PARQUET_MISSING = 'reading Parquet needs pyarrow, which is not installed. Install it with:\npip install "mlpm-guard[parquet]"'

Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data file.

    Attributes:
        line: line of the file that the row starts on, from 1; the row's number in a Parquet file.
        id: the column `id`, where there is one.
        conversation: a text, or a list of role/content messages.
        label: 0 safe, 1 unsafe, None where the row has none.
        source: the column `source`, else the file's name without its extension.
        category: the column `category`, where it holds a name.
    """

    line: int
    id: str | None
    conversation: str | list[dict[str, Any]] = field(repr=False)
    label: int | None
    source: str
    category: str | None

    @property
    def text(self) -> str:
        """The conversation as one text, for what is asked to show it."""
        if isinstance(self.conversation, str):
            return self.conversation
        return "\n".join(f"{message.get('role', '?')}: {message.get('content', '')}" for message in self.conversation)


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a file of prompts and answers.

    Attributes:
        line: line of the file that the row starts on, from 1; the row's number in a Parquet file.
        prompt: a text, or the list of role/content messages that was answered.
        response: the answer.
        label: 0 harmless, 1 harmful answer, None where the row has none.
        source: the column `source`, else the file's name without its extension.
    """

    line: int
    prompt: str | list[dict[str, Any]] = field(repr=False)
    response: str = field(repr=False)
    label: int | None
    source: str


class DataFile:
    """A file of prompts. Iterating over it reads it from the start, in constant memory.

    Args:
        path: a .jsonl, .ndjson or .csv file, each also with .gz, or a .parquet file.
        text_column: where the prompts are; by default the first of `TEXT_COLUMNS` that the first row has. A column named
            `messages` may hold a list of messages, or that list as JSON.
        label_column: where the labels are; by default `label`, where there is one. Naming it makes it required.
        require_label: whether every row needs a label.
        ignore_label: leave labels unread, so that a bad one is no error.
        category_column: where the categories are; by default `category`, where it holds a name. Naming it makes it required;
            null and blank say that a row has none.

    Attributes:
        path: the file.
        text_column: the column that was asked for, or None.
        size: its size in bytes.
        position: bytes read so far by the latest iteration, for progress bars.

    Raises:
        DataError: there is no such file, or it is of a kind that is not read here. While iterating: a row is malformed; the
            message names its line. Labelled rows that change from texts to lists of messages, or back, are malformed.
        ConfigurationError: Parquet is asked for and pyarrow is not installed, or both label options are set.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        text_column: str | None = None,
        label_column: str | None = None,
        require_label: bool = False,
        ignore_label: bool = False,
        category_column: str | None = None,
    ) -> None:
        if ignore_label and (require_label or label_column is not None):
            raise ConfigurationError("ignore_label: cannot be set together with require_label or label_column")
        self.path = Path(path)
        self._kind, self._gzipped = _kind(self.path)
        try:
            self.size = self.path.stat().st_size
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if self.size == 0:
            raise DataError(f"{self.path} is empty")
        if self._kind == "parquet":
            _parquet()
        self.position = 0
        self.text_column = text_column
        self._label_column = label_column
        self._category_column = category_column
        self._labels: Labels = (
            "ignored" if ignore_label else "required" if require_label or label_column is not None else "optional"
        )

    @property
    def stem(self) -> str:
        """The file's name without its extensions."""
        name = self.path.name[: -len(".gz")] if self._gzipped else self.path.name
        return Path(name).stem

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __iter__(self) -> Iterator[Record]:
        to_record: _ToRecord | None = None
        for line, row in self.rows():
            if to_record is None:
                to_record = _ToRecord(
                    self.path, self.stem, self.text_column, self._label_column, self._labels, row, self._category_column
                )
            yield to_record.record(line, row)

    def pairs(self, *, prompt_column: str | None = None, response_column: str | None = None) -> Iterator[Pair]:
        """The rows as prompts with their answers, read from the start, in constant memory.

        Args:
            prompt_column: where the prompts are; by default `PROMPT_COLUMN`. Holds texts or lists of messages.
            response_column: where the answers are; by default the first of `RESPONSE_COLUMNS` that the first row has.

        Raises:
            DataError: a row is malformed; the message names its line.
        """
        prompt = PROMPT_COLUMN if prompt_column is None else prompt_column
        to_row: _ToRecord | None = None
        for line, row in self.rows({prompt, *RESPONSE_COLUMNS, *([] if response_column is None else [response_column])}):
            if to_row is None:
                to_row = _ToRecord(self.path, self.stem, prompt, self._label_column, self._labels, row)
                if response_column is None:
                    response_column = next((name for name in RESPONSE_COLUMNS if name in row), RESPONSE_COLUMNS[0])
                if response_column == prompt:
                    raise ConfigurationError("prompts and answers are in different columns; the same one is named for both")
            assert response_column is not None
            yield to_row.pair(line, row, response_column)

    def rows(self, more: Iterable[str] = ()) -> Iterator[tuple[int, Row]]:
        """Rows as they stand, with their lines; `more` names columns that are wanted beside the usual ones.

        Raises:
            DataError: a row is malformed; the message names its line.
        """
        empty = True
        for line, row in self._read_parquet(more) if self._kind == "parquet" else self._read_lines():
            empty = False
            yield line, row
        if empty:
            raise DataError(f"{self.path} holds no rows")

    def _read_lines(self) -> Iterator[tuple[int, Row]]:
        parse = _jsonl_rows if self._kind == "jsonl" else _csv_rows
        try:
            with self.path.open("rb") as raw:
                if self._gzipped:
                    with gzip.open(raw, "rb") as unzipped:
                        yield from parse(_Lines(self, raw, unzipped))
                else:
                    yield from parse(_Lines(self, raw, raw))
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _read_parquet(self, more: Iterable[str]) -> Iterator[tuple[int, Row]]:
        parquet, arrow_error = _parquet()
        try:
            with parquet.ParquetFile(self.path) as file:
                known = list(file.schema_arrow.names)
                wanted = {"id", "source", "category", *TEXT_COLUMNS, LABEL_COLUMN, *more}
                wanted |= {name for name in (self.text_column, self._label_column, self._category_column) if name is not None}
                columns = [name for name in known if name in wanted]
                total, line = max(file.metadata.num_rows, 1), 0
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                    for row in range(batch.num_rows):
                        line += 1
                        yield line, _parquet_row(self.path, line, known, batch, row)
                    self.position = self.size * line // total
        except arrow_error as error:
            raise DataError(
                f"{self.path} cannot be read as Parquet ({type(error).__name__}): it is damaged or truncated"
            ) from None
        except OSError as error:
            raise _unreadable(self.path, error) from error


class _Lines:
    """Decoded lines of a file, numbered, each checked for what no row may hold. Line breaks are kept."""

    def __init__(self, file: DataFile, raw: IO[bytes], content: IO[bytes] | gzip.GzipFile) -> None:
        self.path = file.path
        self.number = 0
        self._file = file
        self._raw = raw
        self._content = content

    def __iter__(self) -> Iterator[str]:
        while line := self._next():
            yield line

    def _next(self) -> str:
        self.number += 1
        try:
            line = self._content.readline(_MAX_LINE + 1)
        except EOFError:
            raise self.error("the gzip stream ends in the middle; the file is truncated") from None
        except (gzip.BadGzipFile, zlib.error):
            raise self.error("this is not a valid gzip stream") from None
        self._file.position = self._raw.tell()
        if len(line) > _MAX_LINE:
            raise self.error(f"the line is longer than {_MAX_LINE // 2**20} MiB")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 (byte {error.start + 1} of the line); convert the file to UTF-8") from None
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def error(self, what: str) -> DataError:
        return _bad(self.path, self.number, what)


def _jsonl_rows(lines: _Lines) -> Iterator[tuple[int, Row]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise lines.error(f"not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise lines.error(f"not JSON that can be read ({type(error).__name__})") from None
        if not isinstance(row, dict):
            raise lines.error(f"a row is a JSON object, not {_json_name(row)}")
        yield lines.number, row


def _csv_rows(lines: _Lines) -> Iterator[tuple[int, Row]]:
    # The limit is the interpreter's, not the reader's: it is only ever raised, and only to what fits a C long everywhere.
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE))
    reader = csv.reader(_without_nul(lines), strict=True)
    header: list[str] | None = None
    while True:
        # A quoted field may run over several lines; the row is where it starts.
        start = lines.number + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise _bad(lines.path, start, f"not CSV ({error})") from None
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            if len(set(header)) < len(header):
                raise _bad(lines.path, start, "the header names a column twice")
            continue
        if len(fields) != len(header):
            raise _bad(lines.path, start, f"the row has {len(fields)} fields, the header has {len(header)}")
        yield start, dict(zip(header, fields, strict=True))


def _without_nul(lines: _Lines) -> Iterator[str]:
    for line in lines:
        if "\0" in line:
            raise lines.error("a NUL byte; this is not a CSV file in UTF-8")
        yield line


def _parquet() -> tuple[Any, type[Exception]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigurationError(_PARQUET_MISSING) from None
    return pyarrow.parquet, pyarrow.ArrowException


def _parquet_row(path: Path, line: int, known: Sequence[str], batch: Any, row: int) -> Row:
    try:
        values = {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        raise _bad(path, line, f"a value cannot be read ({type(error).__name__})") from None
    # Columns that were not read still count when a message lists what there is.
    return {**dict.fromkeys(known), **values} if line == 1 else values


class _ToRecord:
    """Turns rows of one file into records; which columns are read is settled by the first row."""

    def __init__(
        self,
        path: Path,
        stem: str,
        text_column: str | None,
        label_column: str | None,
        labels: Labels,
        first: Row,
        category_column: str | None = None,
    ) -> None:
        self._path = path
        self._stem = stem
        self._labels = labels
        self._label_column = label_column or LABEL_COLUMN
        self._category_column = category_column
        self._shape: str | None = None
        if text_column is not None:
            self._text_column = text_column
        else:
            found = next((name for name in TEXT_COLUMNS if name in first), None)
            if found is None:
                raise DataError(
                    f"{path}: no column {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}; there {_listed(first)}. Name the "
                    "one that holds the prompts (text_column, --text-column)."
                )
            self._text_column = found

    def record(self, line: int, row: Row) -> Record:
        identity = row.get("id")
        return Record(
            line=line,
            id=None if identity is None or isinstance(identity, (list, dict)) else str(identity),
            conversation=self._conversation(line, row),
            label=self._label(line, row),
            source=self._source(row),
            category=self._category(line, row),
        )

    def pair(self, line: int, row: Row, response_column: str) -> Pair:
        response = self._get(line, row, response_column)
        if not isinstance(response, str):
            what = "is null" if response is None else f"holds {_json_name(response)}"
            raise _bad(self._path, line, f"{_quoted(response_column)} {what}; every row needs an answer that is a text")
        return Pair(line, self._conversation(line, row), response, self._label(line, row), self._source(row))

    def _category(self, line: int, row: Row) -> str | None:
        if self._category_column is None:
            return _name(row.get("category"))
        value = self._get(line, row, self._category_column)
        if value is not None and not isinstance(value, str):
            raise _bad(self._path, line, f"{_quoted(self._category_column)} holds {_json_name(value)}, not a category's name")
        return value or None

    def _source(self, row: Row) -> str:
        source = _name(row.get("source"))
        return self._stem if source is None else source

    def _conversation(self, line: int, row: Row) -> str | list[dict[str, Any]]:
        column = self._text_column
        value = self._get(line, row, column)
        if isinstance(value, str) and column == "messages":
            value = self._messages(line, value)
        if isinstance(value, str):
            self._require_alike(line, column, "a text")
            return value
        if isinstance(value, list) and all(isinstance(each, dict) for each in value):
            self._require_alike(line, column, "a list of messages")
            return value
        if value is None:
            raise _bad(self._path, line, f"{_quoted(column)} is null; every row needs a text")
        raise _bad(self._path, line, f"{_quoted(column)} holds {_json_name(value)}, not a text or a list of messages")

    def _require_alike(self, line: int, column: str, shape: str) -> None:
        """Data to learn from, or to measure on, that change shape were put together from others, and may mean something else.

        Traffic, whose labels are ignored, is judged row by row whatever it looks like.
        """
        if self._labels == "ignored":
            return
        if self._shape is None:
            self._shape = shape
        elif self._shape != shape:
            raise _bad(
                self._path, line, f"{_quoted(column)} holds {shape}, and the rows before hold {self._shape}; split the file"
            )

    def _messages(self, line: int, text: str) -> object:
        try:
            return json.loads(text) if text.lstrip().startswith("[") else text
        except (ValueError, RecursionError):
            raise _bad(self._path, line, f"{_quoted('messages')} starts like a JSON list of messages and is not one") from None

    def _label(self, line: int, row: Row) -> int | None:
        if self._labels == "ignored" or (self._labels == "optional" and self._label_column not in row):
            return None
        value = self._get(line, row, self._label_column)
        if value is None or value == "":
            if self._labels == "required":
                raise _bad(self._path, line, f"{_quoted(self._label_column)} holds no label")
            return None
        # Imported here because it brings in the encoders' and the classifier's modules.
        from mlpm_guard.training import parse_label

        try:
            return parse_label(value)
        except ValueError as error:
            raise _bad(self._path, line, f"bad value in {_quoted(self._label_column)}: {error}") from None

    def _get(self, line: int, row: Row, column: str) -> object:
        if column not in row:
            raise missing_column(self._path, line, column, row)
        return row[column]


def missing_column(path: Path, line: int, column: str, row: Row) -> DataError:
    """The error of a row without a column that it needs; lists what it has, as far as those are names."""
    return _bad(path, line, f"no column {_quoted(column)}; there {_listed(row)}")


def _kind(path: Path) -> tuple[str, bool]:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the files in it")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; write the data to a file first")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped = bool(suffixes) and suffixes[-1] == ".gz"
    if gzipped:
        suffixes.pop()
    kind = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if kind is None or (gzipped and kind == "parquet"):
        raise DataError(f"{path}: unknown kind of file; .jsonl, .ndjson, .csv (each also with .gz) and .parquet are read")
    return kind, gzipped


def _bad(path: Path, line: int, what: str) -> DataError:
    return DataError(f"{path}, line {line}: {what}")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot read {path} ({error.strerror or type(error).__name__})")


def _name(value: object) -> str | None:
    """A value that can serve as a name; data sets also keep lists and tables of flags under `category`."""
    return str(value) if isinstance(value, (str, int)) and value != "" else None


def _quoted(column: str) -> str:
    """A column's name as it may be shown. A file without a header has a prompt in that place."""
    return repr(column) if _PLAIN_NAME.fullmatch(column) else f"(a name of {len(column)} characters)"


def _listed(row: Iterable[str]) -> str:
    names = [_quoted(str(name)) for name in row]
    if not names:
        return "are no columns"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ("is " if len(names) == 1 else "are ") + ", ".join(names[:12]) + more


def _json_name(value: object) -> str:
    names: dict[type, str] = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
