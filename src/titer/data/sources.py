"""Sources of rows: local files, `datasets` folders, data sets of the hub; what is read from them, and what is known of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BeforeValidator

from titer import registry
from titer.config import Config
from titer.data import catalog, files, hub, schemas
from titer.data.files import Record
from titer.data.rows import Row
from titer.errors import unknown
from titer.methods import Benchmark, Kind


@dataclass(frozen=True)
class Source(Config):
    """A set of rows. A text in its place is its `path`."""

    path: str  # a JSON, JSON-lines, CSV, TSV or parquet file, a `datasets` folder, or a data set of the hub by its name
    split: str | None = None  # where it has several
    subset: str | None = None  # a configuration of a data set of the hub
    revision: str | None = (
        None  # a commit of the hub; None: the one that was downloaded first, else the newest
    )
    columns: dict[str, str] = field(
        default_factory=dict
    )  # a schema's name of a column -> the file's, e.g. {prompt: question}
    where: dict[str, Any] = field(
        default_factory=dict
    )  # only records with these values; of a category of BeaverTails, its name
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


def recognized(records: Sequence[Record]) -> Benchmark | None:
    """The benchmark whose published columns and values these are, if there is one."""
    for name in registry.usable("benchmarks"):
        found = cast(Benchmark, registry.build("benchmarks", name))
        if found.layouts and found.recognizes([record.fields for record in records]):
            return found
    return None


@dataclass(frozen=True)
class Reader:
    """Reads sources and keeps what is known of them."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by role

    def rows(self, role: str, source: Source, kind: Kind) -> list[Row]:
        """The rows of a kind."""
        records = self.records(source)
        made, schema = schemas.rows(records, kind, source.columns)
        return self._kept(role, source, made, schema, len(records))

    def task_rows(
        self, role: str, source: Source, records: Sequence[Record], benchmark: Benchmark
    ) -> list[Row]:
        """The rows of a task, as its benchmark asks them; records that are conversations already are taken as they are."""
        renamed = [
            Record(record.place, schemas.renamed(record.fields, source.columns))
            for record in records
        ]
        if not any(renamed[0].fields.keys() >= set(layout) for layout in benchmark.layouts):
            made, schema = schemas.rows(records, Kind.ANSWERS, source.columns)
            return self._kept(role, source, made, schema, len(records))
        made = []
        for record in renamed:
            try:
                made.append(benchmark.row(record.fields))
            except ValueError as error:
                raise ValueError(f"{record.place}: {error}") from None
        return self._kept(role, source, made, registry.name_of(benchmark), len(records))

    def records(self, source: Source) -> list[Record]:
        """The records that the source's `where` lets through."""
        known = {column for schema in schemas.SCHEMAS for column in schema.columns} | set(
            source.columns.values()
        )
        for name in registry.usable("benchmarks"):
            known |= {
                column
                for layout in cast(Any, registry.load("benchmarks", name)).layouts
                for column in layout
            }
        records = files.read(
            locate(source.path, source.revision).folder, source.split, source.subset, known
        )
        kept = [record for record in records if _passes(record, source.where)]
        if not kept:
            raise ValueError(
                f"{source.path}: none of its {len(records)} records has {source.where}"
            )
        return kept

    def _kept(
        self, role: str, source: Source, made: list[Row], schema: str, records: int
    ) -> list[Row]:
        if not made:
            raise ValueError(
                f"{role}: none of the {records} records of {source.path} ({schema}) is of the kind that this role needs"
            )
        order = made if source.seed is None else random.Random(source.seed).sample(made, len(made))
        kept = order[source.skip :][: source.limit]
        if not kept:
            raise ValueError(
                f"{role}: skip={source.skip} leaves none of the {len(made)} rows of {source.path}"
            )
        known, revision = catalog.entry(source.path), locate(source.path, source.revision).revision
        self.facts[role] = {
            "path": source.path,
            "schema": schema,
            "records": records,
            "rows": len(kept),
            **({"split": source.split} if source.split else {}),
            **({"revision": revision} if revision else {}),
            **(
                {"licence": known.licence, "commercial use": known.commercial, "gated": known.gated}
                if known
                else {}
            ),
        }
        return kept


@cache
def locate(path: str, revision: str | None) -> hub.Found:
    """The file or folder that a source's path means. Raises where it is none and the hub has none of that name."""
    local = Path(path).expanduser()
    if local.is_file() or local.suffix in files.READERS:
        return hub.Found(local, None)
    return hub.find(path, "dataset", revision)


def _passes(record: Record, where: Mapping[str, Any]) -> bool:
    for name, wanted in where.items():
        if name not in record.fields:
            raise ValueError(
                f"{record.place}: where names no column {name!r}; {schemas.found(record)}"
            )
        value = record.fields[name]
        if isinstance(value, Mapping):  # a flag per category
            if wanted not in value:
                raise unknown(f"{name} in where", str(wanted), value)
            value, wanted = value[wanted], True
        if value != wanted and str(value) != str(wanted):  # a CSV file has everything as text
            return False
    return True
