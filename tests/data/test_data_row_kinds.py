"""Every kind of file that data sets are published in gives the same rows, and says where a broken one is broken."""

import bz2
import gzip
import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.row_files import ParquetFile, open_rows, read_rows
from rlhf_lightning.errors import ConfigError, DataError

ROWS = [
    {"q": 'Wie groß?\nSag\'s, "bitte"', "a": "007"},
    {"q": "NA", "a": "1.50"},
    {"q": "{x}, [y]", "a": "2020-01-01"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def csv(separator):
    def quoted(text):
        return '"' + text.replace('"', '""') + '"'

    cells = [["q", "a"], *([row["q"], row["a"]] for row in ROWS)]
    return "".join(separator.join(map(quoted, line)) + "\n" for line in cells).encode()


def zstd(data):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


CONTENT = {
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "a.JSONL": LINES,
    "lines.json": LINES,
    "array.json": json.dumps(ROWS, indent=2).encode(),
    "compact.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "inside.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "a.csv": csv(","),
    "mark.csv": b"\xef\xbb\xbf" + csv(","),
    "a.tsv": csv("\t"),
    "a.jsonl.gz": gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]),
    "a.jsonl.zst": zstd(LINES[:50]) + zstd(LINES[50:]),
    "a.jsonl.bz2": bz2.compress(LINES),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.csv.gz": gzip.compress(csv(",")),
    "a.tsv.zst": zstd(csv("\t")),
}


@pytest.mark.parametrize("name", CONTENT)
def test_the_same_rows_whatever_the_kind(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENT[name])
    rows = open_rows(str(tmp_path / name))
    assert [dict(rows[i].fields) for i in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert [rows[i].id for i in range(len(rows))] == [f"{name}:{i}" for i in (1, 2, 3)]
    again = pickle.loads(pickle.dumps(rows))
    assert dict(again[1].fields) == ROWS[1]


def test_a_saved_data_set_and_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole.select([1])).save_to_disk(tmp_path / "two")
    assert [dict(row.fields) for row in read_rows(str(tmp_path / "one"))] == ROWS
    assert [dict(row.fields) for row in read_rows(str(tmp_path / "two"))] == ROWS
    (only,) = read_rows(str(tmp_path / "two"), split="test")
    assert (dict(only.fields), only.id) == (ROWS[1], "two:1")
    with pytest.raises(ConfigError, match=r"two: split: there is no 'tets'. Did you mean 'test'"):
        open_rows(str(tmp_path / "two"), split="tets")
    with pytest.raises(ConfigError, match="one data set, without splits"):
        open_rows(str(tmp_path / "one"), split="train")


def test_a_name_of_the_hub_is_read_from_the_cache_without_a_network(tmp_path, monkeypatch):
    import datasets.config
    import huggingface_hub.constants

    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", True)
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    cache = tmp_path / "cache"
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(cache))
    # what a download of owner/sums, subset main, leaves there
    (info,) = cache.glob("json/*/*/*/dataset_info.json")
    kept = cache / "owner___sums" / "main" / info.parent.parent.name / info.parent.name
    shutil.copytree(info.parent, kept)
    next(kept.glob("*.arrow")).rename(kept / "sums-train.arrow")
    told = json.loads(info.read_text()) | {"dataset_name": "sums", "config_name": "main"}
    told["splits"]["train"]["dataset_name"] = "sums"
    (kept / "dataset_info.json").write_text(json.dumps(told))

    rows = read_rows("owner/sums", subset="main", cache_dir=str(cache))
    assert [(row.id, row.fields["q"]) for row in rows] == [(f"sums/train:{i}", r["q"]) for i, r in enumerate(ROWS, 1)]
    assert rows[1].place == "owner/sums (main, train), row 2"
    with pytest.raises(
        DataError, match=r"^owner/others: no such file; as a name of the hub, datasets cannot read it: "
    ):
        read_rows("owner/others", cache_dir=str(cache))
    with pytest.raises(DataError, match='as a name of the hub, datasets cannot read it: Unknown split "tset"'):
        read_rows("owner/sums", subset="main", split="tset", cache_dir=str(cache))


def test_rows_of_several_folders_have_names_of_their_own(tmp_path):
    for subject in ("algebra", "geometry"):
        (tmp_path / subject).mkdir()
        for number in (1, 2):
            one = json.dumps({"problem": f"{subject} {number}", "steps": [{"a": 1}]}, indent=1)
            (tmp_path / subject / f"{number}.json").write_text(one)
    (tmp_path / "README.md").write_text("no data")
    named = ["algebra/1.json:1", "algebra/2.json:1", "geometry/1.json:1", "geometry/2.json:1"]
    assert [row.id for row in read_rows(str(tmp_path))] == named
    assert [row.id for row in read_rows(str(tmp_path / "**" / "*.json"))] == named
    assert [row.id for row in read_rows(str(tmp_path / "algebra"))] == ["1.json:1", "2.json:1"]


def test_a_folder_is_its_lines_whatever_else_lies_there(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.meta.json").write_text('{"seed": 1}')
    (tmp_path / "notes.csv").write_text("x,y\n1,2\n")
    assert len(open_rows(str(tmp_path))) == 3


def test_many_files_are_not_all_held_open(tmp_path):
    resource = pytest.importorskip("resource")
    for number in range(300):
        (tmp_path / f"{number:03}.jsonl").write_text(f'{{"n": {number}}}\n')
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        rows = open_rows(str(tmp_path))
        assert [rows[i].fields["n"] for i in range(300)] == list(range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


DEEP = '{"a": 1, "b": ' + "[" * 100_000 + "]" * 100_000 + "}"
BROKEN = [
    ("a.jsonl", b'{"q": "ok"}\n{"q": {"r": ["x", "\\ud83d!"]}}\n', "line 2: field 'q.r[1]' holds half a character"),
    ("a.jsonl", b'{"\\ud83d": 1}\n', "a.jsonl, line 1: field '\\ud83d' holds half a character"),
    ("a.jsonl", b'{"q": "ok", "r": "\xf0\x9f\x98"}\n', "(invalid continuation byte at byte 19), in field 'r'"),
    ("a.json", b'[{"q": "ok"}, {"q": "\xff"}]', "row 2: not UTF-8 text (invalid start byte at byte 8), in field 'q'"),
    ("a.jsonl", b'{"q": {"n": ' + b"1" * 5000 + b"}}\n", "line 1: field 'q.n' holds a number of too many digits"),
    ("a.json", b'[{"q": 1}, {"n": ' + b"1" * 5000 + b"}]", "row 2: field 'n' holds a number of too many digits"),
    ("a.jsonl", DEEP.encode(), "line 1: field 'b' is nested too deeply to be read"),
    ("a.json", f"[{{}}, {DEEP}]".encode(), "a.json, row 2: is nested too deeply to be read"),
    ("a.jsonl", b'{"q": 1, "r": {"a": 1, "a": 2}}', "line 1: field 'a' stands there twice"),
    ("a.json", b'[{"q": 1, "q": 2}]', "a.json, row 1: field 'q' stands there twice"),
    ("a.json", b'[{"q": 1},\n {"q": }]', "a.json, line 2: not valid JSON, Expecting value at column 8 (in row 2)"),
    ("a.json", b'[{"q": 1}', "a.json, line 1: not valid JSON, Expecting ',' or ']' at column 10 (in row 1)"),
    ("a.json", b'[{"q": 1}, 3]', "a.json, row 2: must be a JSON object, got int"),
    ("a.json", b"[]", "a.json: no rows in this file"),
    ("a.json", b"", "a.json: no rows in this file"),
    ("a.csv", b"", "a.csv: no rows in this file"),
    ("a.csv", b"q,a\n", "a.csv: no rows in this file"),
    ("a.csv", b"q,a\n1,2\n3,4,5\n", "a.csv: datasets cannot read it: Error tokenizing data"),
    ("a.csv", b"q,a\n1,2,3\n", "Expected 2 fields in line 2, saw 3"),
    ("a.csv", b"q,q\n1,2\n", "2 columns need as many names, all different, not q, q"),
    ("a.csv", b"q,a\n1,\xff\n", "a.csv, line 2: not UTF-8 text (invalid start byte at byte 3)"),
    ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-20], "a.jsonl.gz: cannot be unpacked as gzip: "),
    ("a.jsonl.zst", zstd(LINES)[:-20], "a.jsonl.zst: cannot be unpacked as zstd: "),
    ("a.jsonl.zst", LINES, "a.jsonl.zst: cannot be unpacked as zstd: "),
    ("a.parquet", b"", "a.parquet: not a readable Parquet file"),
    ("a.parquet.gz", b"", "cannot read files of kind '.parquet.gz'"),
    ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.csv: is a Git LFS pointer"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.parquet: is a Git LFS pointer"),
    ("a.jsonl", b"../.git/annex/objects/x/MD5-s1--a\n", "a.jsonl: is a pointer of git-annex"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_broken_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_rows(str(tmp_path / name))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_whole_emoji_is_whole_in_any_spelling(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"q": "\\ud83d\\ude00", "r": "😀"}\n'.encode())
    (row,) = read_rows(str(tmp_path / "a.jsonl"))
    assert row.fields["q"] == row.fields["r"]


def test_a_text_of_parquet_that_is_none_is_named(tmp_path):
    bad = pa.array([b"ok", b"\xf0\x9f"]).view(pa.string())
    pq.write_table(pa.table({"n": [1, 2], "q": bad}), tmp_path / "a.parquet")
    rows = open_rows(str(tmp_path / "a.parquet"))
    assert rows[0].fields == {"n": 1, "q": "ok"}
    with pytest.raises(DataError, match=r"a.parquet, row 2: not UTF-8 text \(.* at byte 1\) in field 'q'"):
        rows[1]


def test_a_row_group_that_arrow_cannot_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(20), "q": ["x"] * 20}), path, row_group_size=10)
    real = pq.ParquetFile.iter_batches

    def failing(self, *args, row_groups, columns=None, **rest):
        if row_groups == [1] and columns in (None, ["q"]):
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return real(self, *args, row_groups=row_groups, columns=columns, **rest)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    rows = ParquetFile(str(path), path)
    assert rows[9].fields["n"] == 9
    with pytest.raises(DataError, match=r"a.parquet, rows 11 to 20 \(row group 2\): field 'q' cannot be read: Nested"):
        rows[10]


def test_links_and_names_that_lead_nowhere(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"a.jsonl: is a link to gone.jsonl, which is not there"):
        open_rows(str(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match=r"b.jsonl: is given twice"):
        open_rows([str(tmp_path / "b.jsonl"), str(tmp_path / "*b.jsonl")])
    for key, value in (("split", "train"), ("subset", "main"), ("columns", ["q"])):
        with pytest.raises(ConfigError, match=rf"b.jsonl: {key} \(.*\) is for"):
            open_rows(str(tmp_path / "b.jsonl"), **{key: value})


def test_a_table_without_a_line_of_names(tmp_path):
    (tmp_path / "a.csv").write_text('"What, now?",7,B\nWho?,8,C\n')
    rows = read_rows(str(tmp_path / "a.csv"), columns=["question", "x", "answer"])
    assert [row.fields for row in rows] == [
        {"question": "What, now?", "x": "7", "answer": "B"},
        {"question": "Who?", "x": "8", "answer": "C"},
    ]
    with pytest.raises(DataError, match="3 columns need as many names, all different, not a, b"):
        read_rows(str(tmp_path / "a.csv"), columns=["a", "b"])


def test_a_cache_folder_keeps_tables_and_else_none_is_left(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("q\n1\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    open_rows(str(tmp_path / "a.csv"))
    assert not (tmp_path / "home").exists()
    open_rows(str(tmp_path / "a.csv"), cache_dir=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").rglob("*.arrow"))
