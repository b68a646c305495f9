"""Write some records of a file in its own format, and lose nothing of them.

Lines of JSON and of tables are copied as they stand, byte for byte, and so are the records of a JSON
list. Columns of a JSON object are written anew. A parquet table keeps its schema, and a folder that
`Dataset.save_to_disk` wrote its features.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from titer.data import files
from titer.errors import reading

SPACE = re.compile(r"[ \t\n\r]*")
REMARKS = re.compile(r"\A(?:#[^\n]*\n)+")  # the lines of a table that `files` reads as empty ones


def check_output(source: Path, out: Path) -> None:
    """Raise unless records of a source can be written to `out`: a new file of the same format."""
    check_new(out)
    if source.is_dir():
        if not _is_saved(source):
            raise ValueError(
                f"{source} is a folder of data files: name the file whose rows are to be written"
            )
        return
    ending = "".join(source.suffixes[-2:]) if source.suffix in files.PACKED else source.suffix
    if not out.name.endswith(ending):
        raise ValueError(f"{out}: it is written in the format of {source}: name it *{ending}")


def check_new(out: Path) -> None:
    """Raise unless a file can be made here that is not there yet."""
    if out.exists():
        raise ValueError(f"{out} is there already: name another file, or remove it")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}")


def carve(source: Path, out: Path, keep: Sequence[bool], split: str | None = None) -> None:
    """Write those records of a source that `keep` says, one for each record as `files.read` has them.

    `split` is that of a folder with several.
    """
    if source.is_dir():
        _carve_folder(source, out, keep, split)
        return
    suffix = files.suffix_of(source)
    if suffix == ".parquet":
        _carve_parquet(source, out, keep)
        return
    packed = files.read_bytes(source)
    marked = packed.startswith(b"\xef\xbb\xbf")
    text = packed.decode("utf-8-sig")
    written = "".join(CARVERS[suffix](text, iter(keep)))
    files.write_bytes(out, (b"\xef\xbb\xbf" if marked else b"") + written.encode())


def _lines(text: str, keep: Iterator[bool]) -> Iterator[str]:
    """Yield the lines of a JSON-lines file that are kept. A list of records on a line is cut."""
    for line in re.findall(r"[^\n]*\n|[^\n]+$", text):
        if not line.strip():
            yield line
            continue
        found = json.loads(line)
        if isinstance(found, list) and not files.are_turns(found):
            kept = "".join(_list(line, keep))
            yield kept if kept.strip(" \t\r\n[]") else ""
        elif next(keep):
            yield line


def _json(text: str, keep: Iterator[bool]) -> Iterator[str]:
    """Yield a JSON file with the records that are kept: a list, columns, one record, or lines."""
    if files.holds_lines(text):
        yield _alone("".join(_lines(text, keep)))
        return
    found = json.loads(text)
    if isinstance(found, list):
        yield from _list(text, keep)
    elif files.are_columns(found):
        kept = list(keep)
        columns = {
            name: [cell for cell, is_kept in zip(cells, kept, strict=True) if is_kept]
            for name, cells in found.items()
        }
        yield json.dumps(columns, ensure_ascii=False)
    else:
        yield text if next(keep) else "[]\n"


def _alone(text: str) -> str:
    """Return lines of which one may be left, which by itself would be read as a list or as columns."""
    lines = [line for line in text.split("\n") if line.strip()]
    left = json.loads(lines[0]) if len(lines) == 1 else []
    is_record = isinstance(left, dict) or files.are_turns(left)
    return f"[{text.strip()}]\n" if is_record else text


def _list(text: str, keep: Iterator[bool]) -> Iterator[str]:
    """Yield a JSON list with the elements that are kept, each as it stands, with what parts them."""
    decoder, end = json.JSONDecoder(), _skip(text, text.index("[") + 1)
    yield text[:end]
    last = end  # where the last element ends
    behind = ""  # the last one that is kept: it is written if another follows
    while text[end] != "]":
        start = end
        _, end = decoder.raw_decode(text, start)
        comma = _skip(text, end)
        after = _skip(text, comma + 1) if text[comma] == "," else comma
        if next(keep):
            yield behind + text[start:end]
            behind = text[end:after]
        last, end = end, after
    yield text[last:]


def _skip(text: str, start: int) -> int:
    match = SPACE.match(text, start)
    assert match is not None
    return match.end()


def _table(text: str, keep: Iterator[bool], delimiter: str, quoting: Any) -> Iterator[str]:
    """Yield the rows of a table that are kept, each with its own lines, and what is no row."""
    decisions, remarks = list(keep), ""
    pieces = _pieces(text, delimiter, quoting)
    headed = sum(is_row for _, is_row in pieces) - len(decisions)
    if headed not in (0, 1):  # lines above the names of columns were read as remarks
        remarks = "".join(REMARKS.findall(text)[:1])
        pieces, headed = _pieces(text[len(remarks) :], delimiter, quoting), 1
    yield remarks
    left = iter([True] * headed + decisions)
    for piece, is_row in pieces:
        if not is_row or next(left):
            yield piece


def _pieces(text: str, delimiter: str, quoting: Any) -> list[tuple[str, bool]]:
    """Return the rows of a table as they stand, and whether each has cells."""
    read: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            read.append(line)
            yield line

    pieces = []
    # not strict: `files` was, and a remark may hold a quotation mark alone
    for cells in csv.reader(lines(), delimiter=delimiter, quoting=quoting):
        pieces.append(("".join(read), bool(cells)))
        read.clear()
    return pieces


CARVERS: dict[str, Callable[[str, Iterator[bool]], Iterator[str]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".csv": partial(_table, delimiter=",", quoting=csv.QUOTE_MINIMAL),
    ".tsv": partial(_table, delimiter="\t", quoting=csv.QUOTE_NONE),
}


def _carve_parquet(source: Path, out: Path, keep: Sequence[bool]) -> None:
    import pyarrow
    import pyarrow.parquet

    with reading(str(source), "is it a parquet file?"):
        table = pyarrow.parquet.read_table(io.BytesIO(files.read_bytes(source)))
    written = io.BytesIO()
    pyarrow.parquet.write_table(table.filter(pyarrow.array(list(keep))), written)
    files.write_bytes(out, written.getvalue())


def _is_saved(folder: Path) -> bool:
    names = ("dataset_info.json", "dataset_dict.json")
    return any((folder / name).is_file() for name in names)


def _carve_folder(source: Path, out: Path, keep: Sequence[bool], split: str | None) -> None:
    import datasets

    datasets.disable_progress_bars()
    loaded: Any = datasets.load_from_disk(str(source))
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[split or next(iter(loaded))]
    loaded.select([i for i, is_kept in enumerate(keep) if is_kept]).save_to_disk(str(out))
