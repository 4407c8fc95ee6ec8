"""Random access to rows: the right ones, in any order, without holding the file."""

import gc
import json
import pickle
import tracemalloc
import weakref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.reward_sources.preferences import Preferences
from rlhf_lightning.data.row_files import JsonlFile, ParquetFile, open_rows
from rlhf_lightning.errors import DataError


def jsonl(path, numbers):
    path.write_text("".join(json.dumps({"n": n, "text": f"é{n}"}) + "\n" for n in numbers))
    return str(path)


def parquet(path, numbers, per_group=10):
    pq.write_table(pa.table({"n": list(numbers)}), path, row_group_size=per_group)
    return str(path)


def test_lines_in_any_order_and_empty_ones_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 0}\n\n  \n{"n": "\xc3\xa9\\n"}\r\n{"n": 2}')
    rows = open_rows(str(path))
    assert len(rows) == 3
    assert [(rows[i].number, rows[i].fields["n"]) for i in (2, 0, 1)] == [(5, 2), (1, 0), (4, "é\n")]
    assert rows[1].place == f"{path}, line 4"


def test_malformed_lines_are_named_when_they_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": \n{"n": "\xff"}\n[]\n')
    rows = open_rows(str(path))
    assert rows[0].fields == {"n": 0}
    for index, message in ((1, "line 2: not valid JSON"), (2, "line 3: not UTF-8"), (3, "line 4: must be a JSON obj")):
        with pytest.raises(DataError, match=message):
            rows[index]


def test_parquet_rows_across_row_groups(tmp_path):
    rows = open_rows(parquet(tmp_path / "a.parquet", range(35)))
    assert len(rows) == 35
    assert [rows[i].fields["n"] for i in (34, 0, 9, 10, 29)] == [34, 0, 9, 10, 29]
    assert rows[10].place.endswith("a.parquet, row 11")


def test_parquet_keeps_no_more_row_groups_than_fit(tmp_path):
    path = tmp_path / "a.parquet"
    parquet(path, range(100))
    size = pq.ParquetFile(path).read_row_group(0).nbytes
    rows = ParquetFile(str(path), path, cache_bytes=3 * size)
    assert [rows[i].fields["n"] for i in range(100)] == list(range(100))
    assert list(rows._kept) == [7, 8, 9]
    rows[75], rows[5]
    assert list(rows._kept) == [9, 7, 0]
    tight = ParquetFile(str(path), path, cache_bytes=1)
    assert [tight[i].fields["n"] for i in (0, 50, 99)] == [0, 50, 99]
    assert list(tight._kept) == [9]


def test_folders_patterns_and_lists_of_files(tmp_path):
    jsonl(tmp_path / "b.jsonl", [3, 4])
    jsonl(tmp_path / "a.jsonl", [1, 2])
    parquet(tmp_path / "c.parquet", [5])
    (tmp_path / "README.md").write_text("not data")

    def numbers(path):
        rows = open_rows(path)
        return [rows[i].fields["n"] for i in range(len(rows))]

    assert numbers(str(tmp_path)) == [1, 2, 3, 4, 5]
    assert numbers(str(tmp_path / "*.jsonl")) == [1, 2, 3, 4]
    assert numbers([str(tmp_path / "c.parquet"), str(tmp_path / "a.jsonl")]) == [5, 1, 2]
    assert open_rows(str(tmp_path))[2].place == f"{tmp_path / 'b.jsonl'}, line 1"


def test_what_cannot_be_read_is_refused(tmp_path):
    jsonl(tmp_path / "train.jsonl", [1])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "rows.xlsx").write_text("a")
    (tmp_path / "no.parquet").write_text("a")
    (tmp_path / "sub").mkdir()
    for path, message in (
        ("trian.jsonl", "no such file. The nearest file there is 'train.jsonl'"),
        ("rows.xlsx", "cannot read files of kind '.xlsx'; known: .csv, .json, .jsonl, .ndjson, .parquet, .tsv"),
        ("empty.jsonl", "no rows in this file"),
        ("no.parquet", "not a readable Parquet file"),
        ("sub", "this folder holds no file that can be read"),
        ("x*.jsonl", "no file matches this pattern"),
    ):
        with pytest.raises(DataError, match=message):
            open_rows(str(tmp_path / path))


def test_readers_survive_pickling(tmp_path):
    for path in (jsonl(tmp_path / "a.jsonl", range(9)), parquet(tmp_path / "a.parquet", range(9))):
        rows = open_rows(path)
        assert rows[4].fields["n"] == 4
        assert pickle.loads(pickle.dumps(rows))[5].fields["n"] == 5


def test_a_large_file_is_never_held(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    line = {"prompt": "q" * 1000, "chosen": "a" * 1000, "rejected": "b" * 1000}
    with path.open("w") as file:
        for number in range(3000):
            file.write(json.dumps(line | {"prompt": f"{number} {'q' * 1000}"}) + "\n")
    size = path.stat().st_size
    assert size > 9_000_000
    parsed = []
    read = JsonlFile.__getitem__

    def counted(self, index):
        row = read(self, index)
        parsed.append(weakref.ref(row))
        return row

    monkeypatch.setattr(JsonlFile, "__getitem__", counted)
    source = Preferences(str(path))
    gc.collect()
    tracemalloc.start()
    source.open()
    groups = [source.group(index).problem.id for index in range(0, len(source), 7)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(parsed) == 3000 + len(groups)
    assert sum(reference() is not None for reference in parsed) <= 1
    assert peak < size / 10
