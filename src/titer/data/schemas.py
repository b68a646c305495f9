"""From records to rows, by the columns of the field's data sets or columns that the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from titer.data.files import RawRecord
from titer.data.rows import Row, Turn
from titer.methods import Answers, Kind, Prompts, Refusals

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Schema:
    """A layout of rows in a file.

    `make` returns the row of a record for a kind of stream, or None where the record is not of that
    kind.
    """

    name: str
    columns: tuple[str, ...]
    make: Callable[[Fields, Kind], Row | None]


def rows(
    records: Sequence[RawRecord], kind: Kind, columns: Mapping[str, str]
) -> tuple[list[Row], str]:
    """Return the rows of a kind, and the name of their schema.

    `columns` renames a file's columns: schema's name -> file's name. Raises, naming the record,
    where no schema fits or a text is missing or empty.
    """
    absent = [name for name in columns.values() if name not in records[0].fields]
    if absent:
        raise ValueError(
            f"{records[0].place}: no column {absent[0]!r}; {describe_columns(records[0])}"
        )
    named = [RawRecord(record.place, rename(record.fields, columns)) for record in records]
    wanted = [schema for schema in SCHEMAS if kind is Prompts or schema.name != "prompts"]
    schema = next(
        (each for each in wanted if all(column in named[0].fields for column in each.columns)), None
    )
    if schema is None:
        layouts = "; ".join(f"{' + '.join(each.columns)} ({each.name})" for each in wanted)
        raise ValueError(
            f"{records[0].place}: {describe_columns(records[0])}; known are {layouts}: name yours "
            f"with columns, e.g. {{prompt: yours}}"
        )
    made = []
    for record in named:
        try:
            row = schema.make(record.fields, kind)
        except (ValueError, KeyError) as error:
            reason = (
                f"no {error.args[0]!r}; {describe_columns(record)}"
                if isinstance(error, KeyError)
                else str(error)
            )
            raise ValueError(f"{record.place}: {reason}") from None
        if row is not None:
            if kind is not Prompts and not row.response.strip():
                raise ValueError(
                    f"{record.place}: the response is empty; a row without an answer trains nothing"
                )
            made.append(row)
    return made, schema.name


def describe_columns(record: RawRecord) -> str:
    """Name the columns of a record, for a message.

    Their cells are given too where they have no names of their own.
    """
    names = [
        f"{key!r} ({str(value)[:20]!r})" if key.startswith("column ") else repr(key)
        for key, value in record.fields.items()
    ]
    return f"the columns found are {', '.join(names) or 'none'}"


def rename(fields: Fields, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a record's fields under the schema's names as well as the file's."""
    return {**fields, **{name: fields[given] for name, given in columns.items() if given in fields}}


def _text(fields: Fields, name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is no text but {str(value)[:60]!r}")
    return value


def _safe(fields: Fields) -> bool:
    value = str(fields["is_safe"]).lower()  # a CSV file has it as text
    if value not in ("true", "false"):
        raise ValueError(f"is_safe={fields['is_safe']!r} is neither true nor false")
    return value == "true"


def _messages(fields: Fields, kind: Kind) -> Row | None:
    """Read a conversation that ends with the assistant, or for prompts with the user.

    The turns before its last question are context.
    """
    turns = fields["messages"]
    if not isinstance(turns, list | tuple) or not all(
        isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in turns
    ):
        raise ValueError("'messages' is no list of turns with a 'role' and a 'content'")
    said = [Turn(_text(turn, "role"), _text(turn, "content")) for turn in turns]
    answer = said.pop().content if said and said[-1].role == "assistant" else ""
    if not said or said[-1].role != "user" or (not answer and kind is not Prompts):
        roles = ", ".join(turn.role for turn in said) or "none"
        raise ValueError(
            "the conversation must end with a user's turn and the assistant's answer; before the "
            f"answer it has {roles}"
        )
    return Row(said[-1].content, answer, before=tuple(said[:-1]))


def _refusal_pair(fields: Fields, kind: Kind) -> Row | None:
    """Read a prompt with a harmful answer and a refusal.

    That is the file of arXiv 2405.14577, in which the refusal repeats the question.
    """
    safe = "is_safe" in fields and _safe(fields)
    prompt, response = _text(fields, "prompt"), _text(fields, "response")
    if kind is Refusals and not safe:
        question, marker, refusal = _text(fields, "refusal").partition("\nAnswer: ")
        return Row(prompt, refusal if marker else question)
    return Row(prompt, response) if kind in (Answers, Refusals) or not safe else None


def _beavertails(fields: Fields, kind: Kind) -> Row | None:
    """Read a prompt with an answer that people found safe or not.

    The safe answers align; the others are the harmful answers.
    """
    row = Row(_text(fields, "prompt"), _text(fields, "response"))
    return row if kind is Answers or _safe(fields) == (kind is Refusals) else None


def _alpaca(fields: Fields, kind: Kind) -> Row | None:
    return Row(
        _text(fields, "instruction"),
        _text(fields, "output"),
        input=_text(fields, "input") if fields.get("input") else "",
    )


def _pair(fields: Fields, kind: Kind) -> Row | None:
    return Row(
        _text(fields, "prompt"),
        _text(fields, "response"),
        input=_text(fields, "input") if fields.get("input") else "",
    )


def _prompt(fields: Fields, kind: Kind) -> Row | None:
    return Row(_text(fields, "prompt"))


SCHEMAS = (  # the first whose columns are there
    Schema("conversations", ("messages",), _messages),
    Schema("refusal pairs", ("prompt", "response", "refusal"), _refusal_pair),
    Schema("BeaverTails", ("prompt", "response", "is_safe"), _beavertails),
    Schema("Alpaca", ("instruction", "output"), _alpaca),
    Schema("pairs", ("prompt", "response"), _pair),
    Schema("prompts", ("prompt",), _prompt),
)
