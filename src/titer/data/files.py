"""Read the records of local files: JSON, JSON lines, CSV, TSV, parquet and `datasets` folders.

An error names the file and the line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
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
        records = list(_folder(path, split, subset))
    elif not path.is_file():
        raise ValueError(f"no such file: {path}")
    elif path.suffix not in READERS:
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; there is "
            f"{', '.join(READERS)} and `datasets` folders"
        )
    else:
        if split or subset:
            raise ValueError(
                f"{path}: a single file has no split {split or subset!r}: leave it out, or name "
                "the folder"
            )
        try:
            records = list(READERS[path.suffix](path, known))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if not records:
        raise ValueError(f"{path}: holds no rows")
    return records


def _json_lines(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    # not splitlines: a JSON text may hold U+2028
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place}: not JSON ({error.msg})") from None
            yield _object(place, record)


def _json(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    """Read a list of objects. A file of this suffix may also hold JSON lines."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _json_lines(path, known)
        return
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    for number, record in enumerate(records, 1):
        yield _object(f"{path}, row {number}", record)


def _object(place: str, record: Any) -> RawRecord:
    if not isinstance(record, dict):
        raise ValueError(f"{place}: not an object of named fields, such as 'prompt' and 'response'")
    return RawRecord(place, record)


def _csv(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    return _table(path, known, ",", csv.QUOTE_MINIMAL)


def _tsv(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    # as GLUE and its kin are written: a quotation mark is text
    return _table(path, known, "\t", csv.QUOTE_NONE)


def _table(path: Path, known: Collection[str], delimiter: str, quoting: Any) -> Iterator[RawRecord]:
    csv.field_size_limit(10**9)  # a cell may hold a long document
    names: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            for cells in reader:
                place = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if not names:
                    headed = any(cell in known for cell in cells)
                    names = cells if headed else [f"column {i}" for i in range(1, len(cells) + 1)]
                    if headed:
                        continue
                if len(cells) != len(names):
                    raise ValueError(
                        f"{place}: {len(cells)} cells where the first line has {len(names)}"
                    )
                yield RawRecord(place, dict(zip(names, cells, strict=True)))
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: not a table ({error})") from None


def _parquet(path: Path, known: Collection[str]) -> Iterator[RawRecord]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    for number, record in enumerate(table.to_pylist(), 1):
        yield RawRecord(f"{path}, row {number}", record)


def _folder(path: Path, split: str | None, subset: str | None) -> Iterator[RawRecord]:
    """Read a folder that `Dataset.save_to_disk` wrote, or data files laid out as on the hub."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded: Any = datasets.load_from_disk(str(path))
        else:
            subsets = datasets.get_dataset_config_names(str(path))
            if len(subsets) > 1 and subset not in subsets:
                wanted = f"has no subset {subset!r}" if subset else "has several subsets: name one"
                raise ValueError(f"{wanted}; there is {', '.join(subsets)}")
            loaded = datasets.load_dataset(str(path), name=subset)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{path} cannot be read by `datasets`: {' '.join(str(error).split())[:200]}"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            wanted = f"has no split {split!r}" if split else "has several splits: name one"
            raise ValueError(f"{path} {wanted}; there is {', '.join(loaded)}")
        loaded = loaded[split]
    elif split is not None:
        raise ValueError(f"{path} has no splits: leave split={split!r} out")
    for number, record in enumerate(loaded, 1):
        yield RawRecord(f"{path}, row {number}", record)


READERS: dict[str, Callable[[Path, Collection[str]], Iterator[RawRecord]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
