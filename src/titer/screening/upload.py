"""An upload: its records, and every answer that they would train.

Each record is read by its own layout, so that rows of several shapes may stand in one file, and a
record that cannot be read stops nothing: it is flagged for that. Of a conversation all answers of
the assistant are rows here, since trainers learn all of them, not the last one alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from titer.data import schemas
from titer.data.carve import carve, check_new, check_output
from titer.data.files import RawRecord
from titer.data.rows import Row, Turn
from titer.data.sources import Source, SourceReader, find_layout, locate, recognize
from titer.methods import Answers, Benchmark

said = logging.getLogger(__name__)
WHOLE = ("where", "seed", "skip", "limit")  # fields of a source that would leave records out


@dataclass(frozen=True, eq=False)
class Sample:
    """A record of an upload."""

    place: str  # where it stands, for messages
    answers: tuple[Row, ...] = ()  # each answer of the assistant with what stands before it
    fault: str = ""  # why it cannot be read


def read(source: Source, what: str) -> list[Sample]:
    """Read every record of a source. Raises where none can be read, or the source leaves some out."""
    left_out = [name for name in WHOLE if getattr(source, name) not in (None, 0, {})]
    if left_out:
        raise ValueError(f"{what}: {left_out[0]} would leave rows out: a screen looks at every one")
    records = SourceReader().records(source)
    benchmark = recognize(records)
    samples, unused = [], Counter[str]()
    for record in records:
        try:
            made = _read(record, source, benchmark)
        except ValueError as error:
            samples.append(Sample(record.place, fault=str(error).removeprefix(f"{record.place}: ")))
            continue
        unused.update(made.unused)
        samples.append(
            Sample(record.place, tuple(answer for row in made.rows for answer in _answers(row)))
        )
    faults = [sample for sample in samples if sample.fault]
    if len(faults) == len(samples):
        raise ValueError(f"{what}: no record can be read; {faults[0].place}: {faults[0].fault}")
    said.info("%s: %d rows of %s", what, len(samples), source.path)
    if unused:
        told = ", ".join(f"{name} (in {n} records)" for name, n in unused.items())
        said.warning("%s: not looked at of %s: %s", what, source.path, told)
    return samples


def read_whole(source: Source, what: str) -> list[Sample]:
    """Read the records of the screener's own rows. Raises where one cannot be read."""
    samples = read(source, what)
    for sample in samples:
        if sample.fault:
            raise ValueError(f"{what}: {sample.place}: {sample.fault}")
    return samples


def check_outputs(source: Source, outputs: Sequence[Path], report: Path | None) -> None:
    """Raise unless records of the upload can be written to `outputs`, and lines on them to `report`.

    All are new files, each another one.
    """
    for out in outputs:
        check_output(_place(source), out)
    if report is not None:
        check_new(report)
    named = [*outputs, *([report] if report else [])]
    if twice := next((path for path in named if named.count(path) > 1), None):
        raise ValueError(f"--clean, --flagged and --out: {twice} stands twice: name another file")


def write(source: Source, out: Path, keep: Sequence[bool]) -> None:
    """Write those records of the upload that `keep` says, in its own format."""
    carve(_place(source), out, keep, source.split)


def _place(source: Source) -> Path:
    return locate(source.path, source.revision).folder


def _read(record: RawRecord, source: Source, benchmark: Benchmark | None) -> schemas.Parsed:
    """Read one record, as a task's where the whole file is one of a published task."""
    if benchmark is None:
        return schemas.rows([record], Answers, source.columns)
    named = RawRecord(record.place, schemas.rename(record.fields, source.columns))
    layout = find_layout(benchmark, named.fields.keys()) or ()
    used = {*layout, *source.columns, *source.columns.values()}
    unused = dict.fromkeys(schemas.name_unused(named, used), 1)
    return schemas.Parsed([benchmark.row(named.fields)], "", unused)


def _answers(row: Row) -> Iterator[Row]:
    """Yield every answer of a conversation as a row of its own, the last one as it stands.

    Its question is the user's last message before it, also where other turns stand between the two,
    and empty where the user has said nothing yet. One that goes on from turn to turn is there in parts
    and as one: what refuses in one turn may answer in the next.
    """
    question, others = "", list[Turn]()  # what stands before a turn
    run = 0  # turns of the assistant just before it
    for i, turn in enumerate(row.before):
        if turn.role == "assistant" and turn.content.strip():
            yield Row(question, turn.content, before=tuple(others))
            if run:
                said = "\n".join(other.content for other in [*others[-run:], turn])
                yield Row(question, said, before=tuple(others[:-run]))
        run = run + 1 if turn.role == "assistant" else 0
        if turn.role == "user":
            question, others = turn.content, list(row.before[:i])
        else:
            others.append(turn)
    yield row


def of_rows(rows: Sequence[Row]) -> list[Sample]:
    """Make the records of rows that are in memory."""
    return [Sample(f"row {i}", tuple(_answers(row))) for i, row in enumerate(rows, 1)]
