"""Some records of a file, written in its own format: nothing of them is lost."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from titer.data import files
from titer.data.carve import carve, check_output

KNOWN = ("prompt", "response")
LINES = (
    '{"prompt": "a",   "response": "b\\u00e9", "n": 1e400}\n'
    "\n"
    '  {"response": "\u2028x", "prompt": "é"}\r\n'
    '[{"prompt": "c", "response": "d"}, {"prompt": "e", "response": "f", "big": 123456789012345678901}]\n'
    '[{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]'
)
LIST = (
    '\ufeff [\n  {"prompt": "a", "response": "1.50"},\n  {"prompt": "b", "x": 1.50, "response": "]"} ,\n'
    '  {"prompt": "c", "response": ""}\n]\n'
)
TABLE = 'prompt,response\r\n"a, ""b""\nc",x\r\n\r\ne,"f"\r\ng,h'
BARE = 'how\tare "you\nfine\tthanks\nso\tso\n'
COLUMNS = '{"prompt": ["é", "b", "c"], "response": ["x", "y", "z"]}'


def records(path) -> list:
    return [record.fields for record in files.read(path, known=KNOWN)]


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("a.jsonl", LINES, 5),
        ("a.ndjson", LINES, 5),
        ("lines.json", LINES.replace("\n\n", "\n"), 5),
        ("a.json", LIST, 3),
        ("columns.json", COLUMNS, 3),
        ("one.json", '{"prompt": "a", "response": "b"}', 1),
        ("a.csv", TABLE, 3),
        ("a.tsv", BARE, 3),
        ("bare.csv", "x,y\nz,w\n", 2),
        ("remarks.csv", f'# made by me\n# as,"said\n{TABLE}', 3),
        ("remark.tsv", "# made by me\nprompt\tresponse\na\tb\nc\td\n", 2),
        ("no remarks.csv", "# x,y\n#z,w\n", 2),
        ("a.jsonl.gz", LINES, 5),
        ("a.csv.xz", TABLE, 3),
    ],
)
def test_two_parts_of_a_file_have_its_records_between_them(tmp_path, name, text, count):
    source = tmp_path / name
    files.write_bytes(source, text.encode())
    whole = records(source)
    assert len(whole) == count
    for number in range(2**count):
        keep = [bool(number >> i & 1) for i in range(count)]
        out = tmp_path / f"{number}-{name}"
        check_output(source, out)
        carve(source, out, keep)
        wanted = [fields for fields, is_kept in zip(whole, keep, strict=True) if is_kept]
        if wanted:
            assert records(out) == wanted
        else:
            with pytest.raises(ValueError, match="holds no rows|an object with"):
                records(out)
        if all(keep) and name != "columns.json":
            assert files.read_bytes(out) == text.encode()  # byte for byte


def test_lines_are_copied_as_they_stand(tmp_path):
    source, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text(LINES, encoding="utf-8", newline="")
    carve(source, out, [True, False, True, False, False])
    kept = out.read_text(encoding="utf-8")
    assert '{"prompt": "a",   "response": "b\\u00e9", "n": 1e400}\n' in kept
    assert '[{"prompt": "c", "response": "d"}]' in kept


def test_a_parquet_table_keeps_its_schema(tmp_path):
    source, out = tmp_path / "a.parquet", tmp_path / "b.parquet"
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.string()),
            ("n", pyarrow.int16()),
            ("t", pyarrow.list_(pyarrow.float32())),
        ],
        metadata={"made": "by hand"},
    )
    rows = [{"prompt": p, "n": i, "t": [0.5] * i} for i, p in enumerate("abc")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), source)
    carve(source, out, [True, False, True])
    found = pyarrow.parquet.read_table(out)
    assert found.schema.equals(pyarrow.parquet.read_table(source).schema, check_metadata=True)
    assert found.schema.metadata == schema.metadata
    assert found.to_pylist() == [rows[0], rows[2]]


def test_a_saved_data_set_is_saved_again(tmp_path):
    import datasets

    rows = [{"prompt": p, "response": p} for p in "abc"]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    check_output(tmp_path / "set", tmp_path / "out")
    carve(tmp_path / "set", tmp_path / "out", [False, True, True])
    assert records(tmp_path / "out") == rows[1:]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.jsonl", "is there already"),
        ("b.csv", r"name it \*.jsonl"),
        ("none/b.jsonl", "there is no folder"),
    ],
)
def test_a_file_that_would_not_do_is_refused(tmp_path, out, message):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"prompt": "a", "response": "b"}))
    with pytest.raises(ValueError, match=message):
        check_output(source, tmp_path / out)


def test_a_packed_file_needs_both_endings_and_a_folder_of_files_is_refused(tmp_path):
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ValueError, match=r"name it \*.jsonl.gz"):
        check_output(source, tmp_path / "b.gz")
    with pytest.raises(ValueError, match="a folder of data files"):
        check_output(tmp_path, tmp_path / "out")
