"""Labelled rows of files as a guard takes them. Errors name the file and the line, and never what stands there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, tee
from typing import TYPE_CHECKING

from mlpm_guard.errors import CategoryError, ContradictoryLabelsError, DataError, InputError

if TYPE_CHECKING:
    from mlpm_guard.conversation import Conversation
    from mlpm_guard.datafiles import DataFile, Record
    from mlpm_guard.verdict import Target


class Rows:
    """The rows of files, one file behind the other. May be read more than once.

    Args:
        files: of any formats.
        target: which turn of a conversation a guard would judge.

    Attributes:
        counts: rows of each label that the latest iteration has read.
    """

    def __init__(self, files: Sequence[DataFile], target: Target = "prompt") -> None:
        self.files = files
        self.counts: Counter[int | None] = Counter()
        self._target = target

    def __iter__(self) -> Iterator[tuple[Record, Conversation]]:
        """Every row with its conversation, which is parsed here because only here is the line known that it stands on."""
        from mlpm_guard.conversation import Conversation

        self.counts = Counter()
        for file, record in self._all():
            try:
                conversation = Conversation.parse(record.conversation, target=self._target)
                conversation.turn_index(self._target)
            except InputError as error:
                raise DataError(f"{file.path}, line {record.line}: {error}") from None
            self.counts[record.label] += 1
            yield record, conversation

    def split(self, advance: Callable[[int], None]) -> tuple[Iterator[Conversation], Iterator[int]]:
        """Conversations and labels apart, for what takes them row by row. `advance` is told how many rows were read."""
        one, other = tee(self.told(advance))
        return (conversation for _, conversation in one), (_label(record) for record, _ in other)

    def named(
        self, advance: Callable[[int], None], *, categories: bool = True
    ) -> tuple[Iterator[Conversation], Iterator[int], Iterator[str | None] | None]:
        """As `split`, and the categories of unsafe rows; None where no row has one, or where they are not wanted."""
        if not (categories and self.has_categories()):
            return *self.split(advance), None
        first, second, third = tee(self.told(advance), 3)
        return (
            (conversation for _, conversation in first),
            (_label(record) for record, _ in second),
            (record.category if record.label == 1 else None for record, _ in third),
        )

    def has_categories(self) -> bool:
        """Whether an unsafe row has a category. Reads the files up to there."""
        return any(record.label == 1 and record.category is not None for _, record in self._all())

    def told(self, advance: Callable[[int], None]) -> Iterator[tuple[Record, Conversation]]:
        """The rows; `advance` is told how many were read."""
        for row in self:
            yield row
            advance(self.counts.total())

    def records(self, advance: Callable[[int], None]) -> Iterator[Record]:
        """The rows as they are read, for what judges them whatever they hold. `advance` is told how many rows were read."""
        for row, (_, record) in enumerate(self._all(), start=1):
            yield record
            advance(row)

    def texts(self, wanted: Collection[int]) -> dict[int, str]:
        """The texts of some rows, by their position from 0. Reads the files again for them."""
        return {row: record.text for row, (_, record) in enumerate(self._all()) if row in wanted}

    def labels(self) -> list[int] | None:
        """All labels, or None where no row has one. Reads the files once for it.

        Raises:
            DataError: some rows have a label and some have none.
        """
        found: list[int] = []
        for row, (file, record) in enumerate(self._all()):
            if row and (record.label is not None) != bool(found):
                have = "no label, and the rows before have one" if found else "a label, and the rows before have none"
                raise DataError(f"{file.path}, line {record.line}: {have}; give one for every row, or for none")
            if record.label is not None:
                found.append(record.label)
        return found or None

    def check(self, *, categories: bool = False) -> None:
        """Read all rows once, so that a bad one is found before any work is done.

        Args:
            categories: whether their categories are to be used.

        Raises:
            DataError: a row cannot be used, a prompt is there with both labels, or, where they are used, in two categories.
        """
        from mlpm_guard.training import labelled, with_categories

        conversations, labels, names = self.named(lambda _rows: None, categories=categories)
        with self.located():
            checked = None if names is None else self._require_names(names)
            for _ in with_categories(labelled(conversations, labels, self._target), checked):
                pass

    def place(self, row: int) -> str:
        """File and line of a row, counted from 0. Reads the files again up to there."""
        file, record = next(islice(self._all(), row, None))
        return f"{file.path}, line {record.line}"

    @contextmanager
    def located(self) -> Iterator[None]:
        """Errors from inside name lines instead of row numbers."""
        try:
            yield
        except ContradictoryLabelsError as error:
            first, second = error.rows
            raise DataError(
                f"{self.place(second)}: the same text as {self.place(first)}, with another label or category; remove one"
            ) from None

    def _require_names(self, names: Iterator[str | None]) -> Iterator[str | None]:
        """The same names, each one that a category may have."""
        from mlpm_guard.prototypes.categories import UNKNOWN, require_name

        for row, name in enumerate(names):
            try:
                yield name if name is None or name == UNKNOWN else require_name(name)
            except CategoryError as error:
                raise DataError(f"{self.place(row)}: {error}") from None

    def _all(self) -> Iterator[tuple[DataFile, Record]]:
        return ((file, record) for file in self.files for record in file)


def _label(record: Record) -> int:
    assert record.label is not None
    return record.label
