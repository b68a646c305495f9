"""Sources of rows: local files, `datasets` folders, data sets of the hub.

They are read into rows, and the facts about each are kept.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator

from titer import paths, registry
from titer.config import Config
from titer.data import catalog, files, hub, packages, schemas
from titer.data.files import RawRecord, drain
from titer.data.rows import Row
from titer.errors import unknown
from titer.methods import Benchmark, Kind

Item = TypeVar("Item")
said = logging.getLogger(__name__)  # how files were read, and what of them was not used


@dataclass(frozen=True)
class Source(Config):
    """A set of rows. A text in its place is its `path`."""

    # a JSON, JSON-lines, CSV, TSV or parquet file, a `datasets` folder, a data set of the hub by its
    # name, or `pip:NAME/FILE`, a file of an installed package
    path: str
    split: str | None = None  # where it has several
    subset: str | None = None  # a configuration of a data set of the hub
    # a commit of the hub; None: the one that was downloaded first, else the newest
    revision: str | None = None
    # a schema's name of a column -> the file's, e.g. {prompt: question}
    columns: dict[str, str] = field(default_factory=dict)
    # only records with these values; of a category of BeaverTails, its name
    where: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None  # shuffle the rows by it
    skip: int = 0  # leave out so many rows at the beginning
    limit: int | None = None  # then take at most so many

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"skip={self.skip}: must be 0 or above")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1, or null for all rows")


Given = Annotated[
    Source, BeforeValidator(lambda given: {"path": given} if isinstance(given, str) else given)
]


def recognize(records: Sequence[RawRecord]) -> Benchmark | None:
    """Return the benchmark whose published columns and values the records have, or None."""
    given = [record.fields for record in records]
    alike = _alike(schemas.all_columns(records))
    return next((found for found in alike if found.recognizes(given)), None)


def _published() -> list[Benchmark]:
    """List the benchmarks that have files of their own."""
    names = registry.usable("benchmarks")
    built = [cast(Benchmark, registry.build("benchmarks", name)) for name in names]
    return [found for found in built if found.layouts]


def _alike(known: Set[str]) -> list[Benchmark]:
    """List the benchmarks whose published columns are among the known ones."""
    return [found for found in _published() if find_layout(found, known)]


def find_layout(benchmark: Benchmark, known: Set[str]) -> tuple[str, ...] | None:
    """Return the published columns of a benchmark that are among the known ones, or None."""
    return next((each for each in benchmark.layouts if known >= set(each)), None)


@dataclass(frozen=True)
class SourceReader:
    """Reads sources, and keeps the facts about each by role."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by role

    def rows(self, role: str, source: Source, kind: Kind) -> list[Row]:
        """Return the rows of a kind. Raises where the source has none."""
        records = self.records(source)
        count = len(records)
        return self._keep(role, source, schemas.rows(records, kind, source.columns), count)

    def task_rows(
        self, role: str, source: Source, records: list[RawRecord], benchmark: Benchmark
    ) -> list[Row]:
        """Return the rows of a task, as its benchmark asks them.

        Records that are conversations already are taken as they are. They are all taken out of
        their list.
        """
        count = len(records)
        known = schemas.all_columns(records)
        schemas.check_named(records, source.columns, known)
        layout = find_layout(benchmark, known | source.columns.keys())
        if layout is None:
            made = self._conversations(source, records, known)
        else:
            renamed = schemas.rename_all(records, source.columns)
            schemas.check_columns(renamed, layout)
            used = {*layout, *source.columns, *source.columns.values()}
            rows, unused = [], Counter[str]()
            for record in drain(renamed):
                row = _task_row(record, benchmark)
                rows.append(schemas.with_cluster(row, record.fields, source.columns))
                unused.update(schemas.name_unused(record, used))
            made = schemas.Parsed(rows, registry.name_of(benchmark), dict(unused))
        return self._keep(role, source, made, count)

    def _conversations(
        self, source: Source, records: list[RawRecord], known: Set[str]
    ) -> schemas.Parsed:
        """Read rows of no published task; where the columns are one's, the error asks for it."""
        try:
            return schemas.rows(records, Kind.ANSWERS, source.columns)
        except ValueError as error:
            alike = [registry.name_of(found) for found in _alike(known)]
            if not alike:
                raise
            raise ValueError(
                f"{error}. Its columns are those of {' and '.join(alike)} too, its texts and labels "
                f"may be another task's: where they are not, set benchmark={alike[0]}"
            ) from None

    def records(self, source: Source) -> list[RawRecord]:
        """Return the records that the source's `where` lets through. Raises where there is none."""
        known = {column for schema in schemas.SCHEMAS for column in schema.columns}
        known |= {name for each in _published() for layout in each.layouts for name in layout}
        return let_through(source, locate(source.path, source.revision).folder, known)

    def _keep(self, role: str, source: Source, made: schemas.Parsed, records: int) -> list[Row]:
        """Return the rows that `seed`, `skip` and `limit` leave.

        The facts about them are kept, and said.
        """
        rows = made.rows
        if not rows:
            raise ValueError(
                f"{role}: none of the {records} records of {source.path} ({made.schema}) is of the "
                "kind that this role needs"
            )
        kept = take(rows, source, role)
        unused = {name: n for name, n in made.unused.items() if name not in source.where}
        said.info("%s: %d rows of %s, read as %s", role, len(kept), source.path, made.schema)
        if unused:
            told = ", ".join(f"{name} (in {n} records)" for name, n in unused.items())
            said.warning("%s: not used of %s: %s", role, source.path, told)
        known = catalog.repository(source.path)
        revision = locate(source.path, source.revision).revision
        self.facts[role] = {
            "path": source.path,
            "schema": made.schema,
            "records": records,
            "rows": len(kept),
            **({"not used": unused} if unused else {}),
            **({"split": source.split} if source.split else {}),
            **({"revision": revision} if revision else {}),
            **(
                {"licence": known.licence, "commercial use": known.commercial, "gated": known.gated}
                if known
                else {}
            ),
        }
        return kept


def take(rows: list[Item], source: Source, what: str) -> list[Item]:
    """Return the rows that `seed`, `skip` and `limit` of a source leave. Raises where none is left."""
    order = rows if source.seed is None else random.Random(source.seed).sample(rows, len(rows))
    kept = order[source.skip :][: source.limit]
    if not kept:
        raise ValueError(
            f"{what}: skip={source.skip} leaves none of the {len(rows)} rows of {source.path}"
        )
    return kept


def let_through(source: Source, place: Path, known: Collection[str]) -> list[RawRecord]:
    """Read the records of a file or folder that the source's `where` lets through.

    `known` are names of columns by which a line of names is told. Raises where there is no record.
    """
    names = {*known, *source.columns.values()}
    records = files.read(place, source.split, source.subset, names)
    kept = [record for record in records if _passes(record, source.where)]
    if not kept:
        raise ValueError(f"{place}: none of its {len(records)} records has {source.where}")
    return kept


@cache
def locate(path: str, revision: str | None) -> hub.Found:
    """Return the file or folder that a source's path means.

    Raises where there is no such file, and the hub has no data set of that name.
    """
    found = _here(path)
    if found and revision is not None:
        raise ValueError(
            f"revision={revision!r}: {path!r} is a local file, which has no revisions; leave it out"
        )
    if found:
        return hub.Found(found, None)
    local = paths.expand(path)
    known = catalog.repository(path)
    if known and not local.exists():
        path = known.name
    return hub.find(path, "dataset", revision)


def _here(path: str) -> Path | None:
    """Return the file of a package, of titer's or of the user's that a source's path means, or None."""
    if packages.is_package(path):
        return _single(path, packages.find(path))
    local = paths.expand(path)
    if path in catalog.SHIPPED and not local.exists():
        return catalog.SHIPPED[path]
    return local if local.is_file() or files.is_readable(local) else None


def _single(name: str, found: Sequence[Path]) -> Path:
    """Return the one file of several. Raises where there are more."""
    if len(found) > 1:
        told = ", ".join(file.name for file in found)
        raise ValueError(f"{name!r} names {len(found)} files, {told}: give the name of one")
    return found[0]


def _task_row(record: RawRecord, benchmark: Benchmark) -> Row:
    try:
        return benchmark.row(record.fields)
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from None


def _passes(record: RawRecord, where: Mapping[str, Any]) -> bool:
    for name, wanted in where.items():
        if name not in record.fields:
            raise ValueError(
                f"{record.place}: where names no column {name!r}; "
                f"{schemas.describe_columns(record)}"
            )
        value = record.fields[name]
        if isinstance(value, Mapping):  # a flag per category
            if not isinstance(wanted, str) or wanted not in value:
                raise unknown(f"{name} in where", str(wanted), value)
            value, wanted = value[wanted], True
        if not _is_same(value, wanted):
            return False
    return True


def _is_same(value: Any, wanted: Any) -> bool:
    """Compare a cell with a value of `where`: a table has everything as text, and `false` in any case."""
    told, asked = str(value), str(wanted)
    if isinstance(wanted, bool):
        told, asked = told.lower(), asked.lower()
    return value == wanted or told == asked
