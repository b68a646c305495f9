"""Sources of rows: local files, `datasets` folders, data sets of the hub.

They are read into rows, and the facts about each are kept.
"""

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
from titer.data.files import RawRecord
from titer.data.rows import Row
from titer.errors import unknown
from titer.methods import Benchmark, Kind


@dataclass(frozen=True)
class Source(Config):
    """A set of rows. A text in its place is its `path`."""

    # a JSON, JSON-lines, CSV, TSV or parquet file, a `datasets` folder,
    # or a data set of the hub by its name
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
    for name in registry.usable("benchmarks"):
        found = cast(Benchmark, registry.build("benchmarks", name))
        if found.layouts and found.recognizes([record.fields for record in records]):
            return found
    return None


@dataclass(frozen=True)
class SourceReader:
    """Reads sources, and keeps the facts about each by role."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by role

    def rows(self, role: str, source: Source, kind: Kind) -> list[Row]:
        """Return the rows of a kind. Raises where the source has none."""
        records = self.records(source)
        made, schema = schemas.rows(records, kind, source.columns)
        return self._keep(role, source, made, schema, len(records))

    def task_rows(
        self, role: str, source: Source, records: Sequence[RawRecord], benchmark: Benchmark
    ) -> list[Row]:
        """Return the rows of a task, as its benchmark asks them.

        Records that are conversations already are taken as they are.
        """
        renamed = [
            RawRecord(record.place, schemas.rename(record.fields, source.columns))
            for record in records
        ]
        if not any(renamed[0].fields.keys() >= set(layout) for layout in benchmark.layouts):
            made, schema = schemas.rows(records, Kind.ANSWERS, source.columns)
            return self._keep(role, source, made, schema, len(records))
        made = []
        for record in renamed:
            try:
                made.append(benchmark.row(record.fields))
            except ValueError as error:
                raise ValueError(f"{record.place}: {error}") from None
        return self._keep(role, source, made, registry.name_of(benchmark), len(records))

    def records(self, source: Source) -> list[RawRecord]:
        """Return the records that the source's `where` lets through. Raises where there is none."""
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

    def _keep(
        self, role: str, source: Source, made: list[Row], schema: str, records: int
    ) -> list[Row]:
        """Return the rows that `seed`, `skip` and `limit` leave, and keep the facts about them."""
        if not made:
            raise ValueError(
                f"{role}: none of the {records} records of {source.path} ({schema}) is of the kind "
                "that this role needs"
            )
        order = made if source.seed is None else random.Random(source.seed).sample(made, len(made))
        kept = order[source.skip :][: source.limit]
        if not kept:
            raise ValueError(
                f"{role}: skip={source.skip} leaves none of the {len(made)} rows of {source.path}"
            )
        known = catalog.repository(source.path)
        revision = locate(source.path, source.revision).revision
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
    """Return the file or folder that a source's path means.

    Raises where there is no such file, and the hub has no data set of that name.
    """
    local = Path(path).expanduser()
    if local.is_file() or local.suffix in files.READERS:
        return hub.Found(local, None)
    return hub.find(path, "dataset", revision)


def _passes(record: RawRecord, where: Mapping[str, Any]) -> bool:
    for name, wanted in where.items():
        if name not in record.fields:
            raise ValueError(
                f"{record.place}: where names no column {name!r}; "
                f"{schemas.describe_columns(record)}"
            )
        value = record.fields[name]
        if isinstance(value, Mapping):  # a flag per category
            if wanted not in value:
                raise unknown(f"{name} in where", str(wanted), value)
            value, wanted = value[wanted], True
        if value != wanted and str(value) != str(wanted):  # a CSV file has everything as text
            return False
    return True
