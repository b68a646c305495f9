"""The topics of prompts, from a column of the file that they come from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from titer.data import files, schemas
from titer.data.rows import identity
from titer.errors import unknown
from titer.methods import Kind
from titer.paths import expand


def read_topics(source: str) -> dict[str, str]:
    """Read FILE:COLUMN: the topic of every prompt, by the hash that an outcome has of it.

    Raises where the file has no such column.
    """
    path, colon, column = source.rpartition(":")
    if not (colon and path and column):
        raise ValueError(f"{source!r}: give FILE:COLUMN, as harmful.csv:category")
    known = {name for schema in schemas.SCHEMAS for name in schema.columns} | {column}
    records = files.read(expand(Path(path)), known=known)
    names = schemas.all_columns(records)
    if column not in names:
        raise unknown(f"column of {path}", column, names)
    topics = {}
    for record in records:
        for row in schemas.rows([record], Kind.PROMPTS, {}).rows:
            named = hashlib.sha256(identity(row).encode()).hexdigest()
            topics[named] = str(record.fields.get(column, "")).strip()
    return topics
