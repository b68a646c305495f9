"""Read the records of local files: JSON, JSON lines, CSV, TSV, parquet and `datasets` folders; and
of what is in memory.

A text file may be compressed. An error names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from sys import intern
from typing import Any

from titer.errors import reading

PACKED = (".gz", ".bz2", ".xz", ".zst")  # suffixes of compressed files


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record with the fields that the file gives it."""

    place: str  # where it stands, for messages
    fields: dict[str, Any]


def read(
    path: Path, split: str | None = None, subset: str | None = None, known: Collection[str] = ()
) -> list[RawRecord]:
    """Return all records of a file or folder.

    `split` and `subset` choose within a `datasets` folder. A CSV or TSV file whose first line holds
    none of the `known` names has no header line: its columns are called `column 1`, `column 2`, ...
    Raises where nothing can be read.
    """
    if path.is_dir():
        found = _folder(path, split, subset)
    elif not path.is_file():
        raise ValueError(f"no such file: {path}")
    elif not is_readable(path):
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; there is "
            f"{', '.join(READERS)}, each also with {', '.join(PACKED)}, and `datasets` folders"
        )
    else:
        if split or subset:
            raise ValueError(
                f"{path}: a single file has no split {split or subset!r}: leave it out, or name "
                "the folder"
            )
        found = READERS[suffix_of(path)](path, known)
    records = []
    for record in found:
        _check_text(record.place, record.fields)
        records.append(record)
    if not records:
        raise ValueError(f"{path}: holds no rows")
    return records


def drain(records: list[RawRecord]) -> Iterator[RawRecord]:
    """Take the records out of a list, the first one first.

    What is made of them takes their place in memory: a large file is not held twice.
    """
    records.reverse()
    while records:
        yield records.pop()


def in_memory(what: str, rows: Any) -> list[RawRecord]:
    """Take the records of a data set, a data frame, or a list of dicts or of conversations.

    Raises, naming `what` they are, where it is none of them.
    """
    if hasattr(rows, "to_list"):  # a datasets.Dataset
        rows = rows.to_list()
    elif hasattr(rows, "to_dict"):  # a data frame
        rows = rows.to_dict("records")
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping | list) for row in rows):
        raise ValueError(
            f"{what} is a {type(rows).__name__}: give a path, a hub name, a "
            "datasets.Dataset, a data frame or a list of dicts"
        )
    given = [dict(row) if isinstance(row, Mapping) else row for row in rows]
    return [_record(f"{what}, row {number}", row) for number, row in enumerate(given, 1)]


def is_readable(path: Path) -> bool:
    """Tell by its name whether a file is one that can be read."""
    return suffix_of(path) in READERS


def suffix_of(path: Path) -> str:
    """Return the suffix of a file without that of its compression."""
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def read_bytes(path: Path) -> bytes:
    """Return what a file holds, decompressed. Raises where it is not compressed as its name says."""
    if path.suffix not in PACKED:
        return path.read_bytes()
    with reading(f"{path}", "is it compressed as its name says?"), _file(path, "rb") as file:
        return bytes(file.read())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, compressed as its name says."""
    if path.suffix not in PACKED:
        path.write_bytes(content)
        return
    with _file(path, "wb") as file:
        file.write(content)


def _file(path: Path, mode: str) -> Any:
    import fsspec  # type: ignore[import-untyped]

    compression = "zstd" if path.suffix == ".zst" else "infer"
    return fsspec.open(str(path.resolve()), mode, compression=compression)


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text one at a time: a large one, unless compressed, is not held whole."""
    start = 0  # of the line, in bytes
    with io.BytesIO(read_bytes(path)) if path.suffix in PACKED else path.open("rb") as file:
        # not splitlines: a JSON text may hold U+2028
        for line in file:
            try:
                yield line.removesuffix(b"\n").decode("utf-8" if start else "utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not UTF-8 text (byte {start + error.start})") from None
            start += len(line)


def _json_lines(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            place = f"{path}:{number}"
            found = _decode(line, place)
            listed = isinstance(found, list) and not are_turns(found)
            for i, record in enumerate(found if listed else [found], 1):
                yield _record(f"{place}, row {i}" if listed else place, record)


def _json(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    """Read a list of records, a single one, or columns. The file may also hold JSON lines."""
    text = _text(path)
    if holds_lines(text):
        yield from _json_lines(path, known)
        return
    found = _decode(text, str(path)) if text.strip() else []
    if isinstance(found, dict):
        found = _columns(path, found)
    for number, record in enumerate(found if isinstance(found, list) else [found], 1):
        yield _record(f"{path}, row {number}", record)


def holds_lines(text: str) -> bool:
    """Tell whether a text is JSON lines, whatever its file is called: so are its first two lines."""
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) > 1 and _is_whole(lines[0]) and _is_whole(lines[1])


def _is_whole(line: str) -> bool:
    """Tell whether a line is a JSON value by itself, as every line of a JSON-lines file is."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _columns(path: Path, fields: dict[str, Any]) -> list[Any]:
    """Return the records of an object: itself, or the rows of a list for every column."""
    if not are_columns(fields):
        return [fields]
    lists = {name: value for name, value in fields.items() if isinstance(value, list)}
    rows = [name for name, value in lists.items() if all(isinstance(each, dict) for each in value)]
    if rows or len(lists) < len(fields):
        raise ValueError(
            f"{path}: an object with {', '.join(map(repr, fields))}, not rows: give a file with "
            f"what stands under {(rows or list(lists))[0]!r} alone"
        )
    lengths = {len(value) for value in lists.values()}
    if len(lengths) > 1:
        sizes = ", ".join(f"{name!r} {len(value)}" for name, value in lists.items())
        raise ValueError(f"{path}: its columns are not of one length: {sizes}")
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def are_columns(fields: Mapping[str, Any]) -> bool:
    """Tell whether an object is columns rather than a record: its first list is no conversation."""
    first = next((value for value in fields.values() if isinstance(value, list)), None)
    return first is not None and not are_turns(first)


def _decode(text: str, place: str) -> Any:
    """Decode JSON in which no key stands twice."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        # else every row would have names of its own
        fields = {intern(name): value for name, value in pairs}
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _TwiceError(f"the key {twice!r} stands twice in one object: take one out")
        return fields

    try:
        return json.loads(text, object_pairs_hook=unique)
    except _TwiceError as error:
        raise ValueError(f"{place}: {error}") from None
    except json.JSONDecodeError as error:
        line = "" if place.endswith(f":{error.lineno}") or "\n" not in text else f":{error.lineno}"
        raise ValueError(f"{place}{line}: not JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of too many digits
        raise ValueError(f"{place}: JSON that no row has ({str(error)[:80]})") from None


class _TwiceError(Exception):
    """Raised where a key stands twice."""


def _record(place: str, record: Any) -> RawRecord:
    """Return a record. A bare list of turns is a conversation."""
    if are_turns(record):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise ValueError(f"{place}: not an object of named fields, such as 'prompt' and 'response'")
    return RawRecord(place, record)


def are_turns(value: Any) -> bool:
    """Tell whether a value is a list of turns, each with who speaks."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    )


def _check_text(place: str, value: Any) -> None:
    """Raise where a text is none that can be encoded: half of a surrogate pair, from a cut."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{place}: half of a character (character {error.start + 1} of {value[:40]!r}): it "
                "was cut in the middle of a surrogate pair"
            ) from None
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_text(place, name)
            _check_text(place, each)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_text(place, each)


def _csv(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    return _table(path, known, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    # as GLUE and its kin are written: a quotation mark is text
    return _table(path, known, "\t", csv.QUOTE_NONE)


def _table(path: Path, known: Collection[str], delimiter: str, quoting: Any) -> Iterator[RawRecord]:
    csv.field_size_limit(10**9)  # a cell may hold a long document
    names: list[str] = []
    reader = csv.reader(
        io.StringIO(_without_remarks(_text(path), known, delimiter), newline=""),
        delimiter=delimiter,
        quoting=quoting,
        strict=True,
    )
    try:
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if not names:
                headed = any(cell.strip() in known for cell in cells)
                names = (
                    [cell.strip() for cell in cells]
                    if headed
                    else [f"column {i}" for i in range(1, len(cells) + 1)]
                )
                _check_names(place, names)
                if headed:
                    continue
            if len(cells) != len(names):
                raise ValueError(
                    f"{place}: {len(cells)} cells where the first line has {len(names)}"
                )
            yield RawRecord(place, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not a table ({error})") from None


def _without_remarks(text: str, known: Collection[str], delimiter: str) -> str:
    """Empty the lines that begin with `#` before a line of column names; the others keep their
    numbers.
    """
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    names = lines[first].split(delimiter)
    if not any(name.strip().strip('"') in known for name in names):
        return text
    return "\n".join([*[""] * first, *lines[first:]])


def _check_names(place: str, names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{place}: two columns are called {twice[0]!r}: take one out")


def _parquet(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    import pyarrow.parquet

    with reading(str(path), "is it a parquet file?"):
        table = pyarrow.parquet.read_table(io.BytesIO(read_bytes(path)))
        records = table.to_pylist()
    _check_names(str(path), table.column_names)
    for number, record in enumerate(records, 1):
        yield RawRecord(f"{path}, row {number}", record)


FILES = 10_000  # of a folder of rows; a home directory has more, and each would be looked at


def _folder(path: Path, split: str | None, subset: str | None) -> Iterator[RawRecord]:
    """Read a folder that `Dataset.save_to_disk` wrote, or data files laid out as on the hub."""
    import datasets

    datasets.disable_progress_bars()
    if sum(1 for _ in islice(path.rglob("*"), FILES + 1)) > FILES:
        raise ValueError(
            f"{path} holds more than {FILES} files and folders: give the file that has the rows, or a "
            "folder of data files alone"
        )
    saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    if not saved:
        with reading(f"the folder {path}"):
            subsets = datasets.get_dataset_config_names(str(path))
        if len(subsets) > 1 and subset not in subsets:
            wanted = f"has no subset {subset!r}" if subset else "has several subsets: name one"
            raise ValueError(f"{path} {wanted}; there is {', '.join(subsets)}")
    with reading(f"the folder {path}"):
        loaded: Any = (
            datasets.load_from_disk(str(path))
            if saved
            else datasets.load_dataset(str(path), name=subset)
        )
    if isinstance(loaded, datasets.DatasetDict):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            wanted = f"has no split {split!r}" if split else "has several splits: name one"
            raise ValueError(f"{path} {wanted}; there is {', '.join(loaded)}")
        loaded = loaded[split]
    elif split is not None:
        raise ValueError(f"{path} has no splits: leave split={split!r} out")
    with reading(f"the folder {path}"):
        records = [dict(record) for record in loaded]
    for number, record in enumerate(records, 1):
        yield RawRecord(f"{path}, row {number}", record)


READERS: dict[str, Callable[[Path, Collection[str]], Iterator[RawRecord]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
