import csv
import gzip
import io
import json
import sys
import tracemalloc

import pytest

from mlpm_guard.datafiles import DataFile
from mlpm_guard.errors import ConfigurationError, DataError

SECRET = "xyzzy-secret-prompt"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def failure(path, **options):
    with pytest.raises(DataError) as caught:
        list(DataFile(path, **options))
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what is read -------------------------------------------------------------------------------------------------------------


def test_jsonl_rows_become_records_with_their_lines_and_blank_lines_are_skipped(tmp_path):
    path = write(
        tmp_path / "set.jsonl",
        '{"text": "one", "label": "safe", "id": 7, "source": "web", "category": "x"}\n\n  \n{"text": "two", "label": true}\n',
    )
    first, second = DataFile(path)
    assert (first.line, first.id, first.conversation, first.label) == (1, "7", "one", 0)
    assert (first.source, first.category) == ("web", "x")
    assert (second.line, second.id, second.conversation, second.label) == (4, None, "two", 1)
    assert (second.source, second.category) == ("set", None)


@pytest.mark.parametrize("name", ["set.jsonl", "set.ndjson", "set.JSONL", "set.jsonl.gz"])
def test_every_jsonl_extension_is_read_and_the_source_is_the_stem(tmp_path, name):
    content = b'{"text": "one"}\n'
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    (record,) = DataFile(path)
    assert (record.conversation, record.source, record.label) == ("one", "set", None)


@pytest.mark.parametrize("zipped", [False, True])
def test_csv_rows_may_hold_commas_quotes_and_line_breaks_and_are_numbered_by_their_first_line(tmp_path, zipped):
    texts = ["plain", 'with, "quotes"', "two\nlines", "last"]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["id", "text", "label"])
    writer.writerows([[index, text, index % 2] for index, text in enumerate(texts)])
    content = buffer.getvalue().encode()
    path = write(tmp_path / f"set.csv{'.gz' if zipped else ''}", gzip.compress(content) if zipped else content)
    records = list(DataFile(path))
    assert [record.conversation for record in records] == texts
    assert [record.line for record in records] == [2, 3, 4, 6]
    assert [record.label for record in records] == [0, 1, 0, 1]
    assert {record.source for record in records} == {"set"}


def test_parquet_rows_are_read_with_messages_and_labels(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    turns = [[{"role": "user", "content": f"question {index}"}] for index in range(600)]
    table = pyarrow.table({"messages": turns, "label": [index % 2 for index in range(600)], "unused": [0.5] * 600})
    parquet.write_table(table, tmp_path / "set.parquet", row_group_size=100)
    data = DataFile(tmp_path / "set.parquet")
    records = list(data)
    assert [record.conversation for record in records] == turns
    assert [record.line for record in records] == list(range(1, 601))
    assert [record.label for record in records] == [0, 1] * 300
    assert data.position == data.size


def test_messages_may_be_a_list_in_jsonl_and_json_in_csv(tmp_path):
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    (from_jsonl,) = DataFile(jsonl(tmp_path / "a.jsonl", [{"messages": turns}]))
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([["messages"], [json.dumps(turns)]])
    (from_csv,) = DataFile(write(tmp_path / "a.csv", buffer.getvalue()))
    assert from_jsonl.conversation == from_csv.conversation == turns


def test_the_text_column_is_the_first_known_one_unless_it_is_named(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"instruction": "i", "question": "q", "prompt": "p", "body": "b"}])
    assert next(iter(DataFile(path))).conversation == "p"
    assert next(iter(DataFile(path, text_column="body"))).conversation == "b"


def test_a_named_label_column_is_used_and_required(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "toxic": "unsafe", "label": 0}, {"text": "b", "label": 0}])
    rows = iter(DataFile(path, label_column="toxic"))
    assert next(rows).label == 1
    with pytest.raises(DataError, match=r"line 2: no column 'toxic'; there are 'text', 'label'"):
        next(rows)


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    (row,) = DataFile(write(tmp_path / "a.csv", "\ufefftext\nhello\n"))
    (other,) = DataFile(write(tmp_path / "a.jsonl", '\ufeff{"text": "hello"}\n'))
    assert row.conversation == other.conversation == "hello"


def test_a_csv_field_far_beyond_the_interpreters_default_limit_is_read(tmp_path):
    long = "a" * 300_000
    (row,) = DataFile(write(tmp_path / "a.csv", f"text\n{long}\n"))
    assert row.conversation == long


def test_reading_a_csv_never_lowers_the_field_limit_of_the_interpreter(tmp_path):
    before = csv.field_size_limit(2**30)
    try:
        list(DataFile(write(tmp_path / "a.csv", "text\na\n")))
        assert csv.field_size_limit() == 2**30
    finally:
        csv.field_size_limit(before)


def test_a_category_that_is_a_table_of_flags_is_left_out(tmp_path):
    (row,) = DataFile(jsonl(tmp_path / "a.jsonl", [{"text": "a", "category": {"spam": True}, "source": ["x"]}]))
    assert (row.category, row.source) == (None, "a")


def test_ignored_labels_cannot_be_wrong_and_optional_ones_may_be_missing(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": None}, {"text": "b", "label": "maybe"}])
    assert [record.label for record in DataFile(path, ignore_label=True)] == [None, None]
    assert next(iter(DataFile(path))).label is None
    assert "line 2: bad value in 'label'" in failure(path)


def test_a_file_can_be_read_twice_and_tells_how_far_it_is(tmp_path):
    data = DataFile(jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}]))
    rows = iter(data)
    next(rows)
    assert 0 < data.position <= data.size
    assert [record.conversation for record in data] == ["one", "two"]
    assert data.position == data.size


def test_memory_does_not_grow_with_the_file(tmp_path):
    row = json.dumps({"text": "word " * 400}) + "\n"
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for _ in range(10_000):
            file.write(row)
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in DataFile(path)) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_record_does_not_show_its_text(tmp_path):
    (record,) = DataFile(jsonl(tmp_path / "a.jsonl", [{"text": SECRET}]))
    assert SECRET not in repr(record)


# -- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (f'{{"text": "a"}}\n{{"text": "{SECRET}\n', 2, "not JSON"),
        (f'{{"text": "a"}}\n\n["{SECRET}"]\n', 3, "a row is a JSON object, not a list"),
        (f'{{"text": "a"}}\n"{SECRET}"\n', 2, "not a string"),
        (f'{{"text": "a"}}\n{{"other": "{SECRET}"}}\n', 2, "no column 'text'; there is 'other'"),
        ('{"text": "a"}\n{"text": null}\n', 2, "'text' is null"),
        ('{"text": "a"}\n{"text": 5}\n', 2, "'text' holds a number"),
        ('{"text": "a"}\n{"text": {"x": 1}}\n', 2, "'text' holds an object"),
        (f'{{"text": "a"}}\n{{"text": ["{SECRET}"]}}\n', 2, "'text' holds a list"),
        (f'{{"text": "a"}}\n{{"text": "b", "label": "{SECRET}"}}\n', 2, "bad value in 'label': a label is 0"),
        ('{"text": "a"}\n{"text": "b", "label": 2}\n', 2, "bad value in 'label'"),
        (f'{{"text": "{SECRET}"}}\n'.encode() + b'{"text": "\xff"}\n', 2, "not UTF-8 (byte 11"),
        (b'{"text": "a"}\n{"text": "\x00"}\n', 2, "not JSON"),
        ('{"text": "a"}\n' + "[" * 200_000 + "\n", 2, "not JSON"),
        ('{"text": "a"}\n{"text": "b", "n": ' + "9" * 5000 + "}\n", 2, "not JSON"),
    ],
)
def test_a_malformed_jsonl_row_is_named_by_file_and_line(tmp_path, content, line, said):
    message = failure(write(tmp_path / "bad.jsonl", content))
    assert message.startswith(f"{tmp_path / 'bad.jsonl'}, line {line}: ")
    assert said in message


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (f"text,label\na,0\n{SECRET},0,1\n", 3, "the row has 3 fields, the header has 2"),
        (f"text,label\na,0\n{SECRET}\n", 3, "the row has 1 fields, the header has 2"),
        (f'text,label\na,0\n"{SECRET},0\nb,1\n', 3, "not CSV (unexpected end of data)"),
        (f"text,label\na,0\n{SECRET}\0,0\n", 3, "a NUL byte"),
        (f"text,label\na,0\n{SECRET},0\nb,".encode() + b"\xff\n", 4, "not UTF-8"),
        ("text,label\na,0\nb,perhaps\n", 3, "bad value in 'label'"),
        ("text,text\na,b\n", 1, "names a column twice"),
    ],
)
def test_a_malformed_csv_row_is_named_by_file_and_line(tmp_path, content, line, said):
    message = failure(write(tmp_path / "bad.csv", content))
    assert message.startswith(f"{tmp_path / 'bad.csv'}, line {line}: ")
    assert said in message


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_a_file_whose_rows_change_shape_is_refused_by_the_line(tmp_path, column):
    turns = [{"role": "user", "content": SECRET}]
    rows = [{column: SECRET}, {column: SECRET}, {column: turns}]
    said = f"line 3: '{column}' holds a list of messages, and the rows before hold a text; split the file"
    assert said in failure(jsonl(tmp_path / "a.jsonl", rows))
    assert f"line 2: '{column}' holds a text" in failure(jsonl(tmp_path / "b.jsonl", rows[::-1]))
    # Another file may be of another shape: each is read as its first row says.
    for name, kept in (("c", rows[:2]), ("d", rows[2:])):
        assert len(list(DataFile(jsonl(tmp_path / f"{name}.jsonl", kept)))) == len(kept)


def test_a_required_label_that_is_missing_or_blank_is_named_by_its_line(tmp_path):
    blank = write(tmp_path / "blank.csv", "text,label\na,0\nb,\n")
    assert [record.label for record in DataFile(blank)] == [0, None]
    assert "line 3: 'label' holds no label" in failure(blank, require_label=True)
    absent = jsonl(tmp_path / "absent.jsonl", [{"text": "a", "label": 1}, {"text": "b"}])
    assert "line 2: no column 'label'" in failure(absent, require_label=True)


def test_a_csv_without_a_header_is_refused_without_quoting_its_first_prompt(tmp_path):
    message = failure(write(tmp_path / "a.csv", f"how to {SECRET},0\nanother,1\n"))
    assert "a name of 26 characters" in message
    assert "--text-column" in message


def test_a_csv_field_beyond_the_limit_is_refused_by_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mlpm_guard.datafiles._MAX_LINE", 1000)
    assert "line 2: the line is longer" in failure(write(tmp_path / "a.csv", "text\n" + "a" * 2000 + "\n"))
    before = csv.field_size_limit(1000)
    try:
        field = "\n".join(["a" * 500] * 5)
        assert "line 2: not CSV (field larger than field limit" in failure(write(tmp_path / "b.csv", f'text\n"{field}"\n'))
    finally:
        csv.field_size_limit(before)


def test_an_endless_jsonl_line_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("mlpm_guard.datafiles._MAX_LINE", 1000)
    assert "line 2: the line is longer" in failure(
        write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "' + "a" * 5000 + '"}\n')
    )


def test_a_messages_column_with_broken_json_is_named_by_its_line(tmp_path):
    message = failure(write(tmp_path / "a.csv", f'messages\n"[{{""role"": {SECRET}"\n'))
    assert "line 2: 'messages' starts like a JSON list of messages and is not one" in message


def test_a_truncated_gzip_file_is_named_by_the_line_where_it_ends(tmp_path):
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (index * 7919) for index in range(5000)))
    message = failure(write(tmp_path / "cut.jsonl.gz", whole[: len(whole) // 2]))
    assert "the gzip stream ends in the middle" in message
    assert ", line " in message


def test_a_file_that_is_not_gzip_is_refused(tmp_path):
    assert "not a valid gzip stream" in failure(write(tmp_path / "a.csv.gz", "text\nhello\n"))


@pytest.mark.parametrize("content", ["\n\n", ""])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    message = failure(write(tmp_path / name, content))
    assert str(tmp_path / name) in message
    assert "empty" in message or "no rows" in message


def test_a_csv_with_a_header_only_is_refused(tmp_path):
    assert "holds no rows" in failure(write(tmp_path / "a.csv", "text,label\n"))


def test_a_missing_file_a_folder_and_an_unknown_extension_are_refused_at_once(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="no such file"):
        DataFile(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        DataFile(tmp_path / "folder.jsonl")
    for name in ("a.txt", "a", "a.gz", "a.parquet.gz"):
        with pytest.raises(DataError, match="unknown kind of file"):
            DataFile(write(tmp_path / name, "text"))


def test_a_damaged_parquet_file_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    assert "cannot be read" in failure(write(tmp_path / "noise.parquet", b"noise" * 100))
    parquet.write_table(pyarrow.table({"text": ["a"] * 1000}), tmp_path / "whole.parquet")
    cut = (tmp_path / "whole.parquet").read_bytes()[:-20]
    assert "cannot be read" in failure(write(tmp_path / "cut.parquet", cut))


def test_bad_parquet_rows_are_named_and_missing_columns_listed(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"text": ["a", None, "c"]}), tmp_path / "null.parquet")
    assert "line 2: 'text' is null" in failure(tmp_path / "null.parquet")
    parquet.write_table(pyarrow.table({"body": ["a"], "score": [1]}), tmp_path / "other.parquet")
    assert "there are 'body', 'score'" in failure(tmp_path / "other.parquet")
    raw = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": raw}), tmp_path / "bytes.parquet")
    assert "line 2: a value cannot be read" in failure(tmp_path / "bytes.parquet")
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    assert "holds no rows" in failure(tmp_path / "none.parquet")


def test_without_pyarrow_the_error_says_exactly_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError) as caught:
        DataFile(write(tmp_path / "a.parquet", b"PAR1"))
    assert 'pip install "mlpm-guard[parquet]"' in str(caught.value).splitlines()


def test_contradicting_label_options_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="ignore_label"):
        DataFile(jsonl(tmp_path / "a.jsonl", [{"text": "a"}]), ignore_label=True, require_label=True)
