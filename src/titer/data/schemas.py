"""From records to rows, by the columns of the field's data sets or columns that the user names.

All records decide on the layout of a file, and what a layout does not read is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from titer.data.files import RawRecord, drain
from titer.data.rows import Row, Turn
from titer.methods import Answers, Kind, Prompts, Refusals

Fields = Mapping[str, Any]

# columns that may stand beside a prompt: what it is about, and what was said before it
BESIDE = ("input", "context", "system", "history")
# what no row here can say, and an answer without it would mean something else
CALLS = ("tools", "functions", "tool_calls", "function_call", "tool_call_id")
OTHER_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
REFUSED = (*CALLS, *OTHER_MEDIA)
ROLES = {  # as files name who speaks -> system, user, assistant
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
# the name in `columns` of what wordings of one question share: an id, a topic
CLUSTER = "cluster"
READ_OF_TURNS = ("role", "from", "content", "value", "weight", "type", "text")


@dataclass(frozen=True)
class Schema:
    """A layout of rows in a file.

    `make` returns the row of a record for a kind of stream, or None where the record is not of that
    kind.
    """

    name: str
    columns: tuple[str, ...]
    make: Callable[[Fields, Kind], Row | None]
    beside: tuple[str, ...] = BESIDE  # columns that it reads where they are there


@dataclass(frozen=True)
class Parsed:
    """The rows of a file, the layout that they were read by, and what of it was not used."""

    rows: list[Row]
    schema: str
    # a column, or a key of a turn -> records that have something there
    unused: dict[str, int]


def rows(records: list[RawRecord], kind: Kind, columns: Mapping[str, str]) -> Parsed:
    """Return the rows of a kind. The records are taken out of their list, which is empty then.

    `columns` renames a file's columns: schema's name -> file's name. Raises, naming the record,
    where no schema fits, or a text is missing, or empty where it is to be learned or answered.
    """
    known = all_columns(records)
    check_named(records, columns, known)
    named = rename_all(records, columns)
    schema = _choose(named, known | columns.keys(), kind)
    used = {*schema.columns, *schema.beside, *columns.values(), *({CLUSTER} & columns.keys())}
    made, unused = [], Counter[str]()
    for record in drain(named):
        row = _make(schema, record, kind)
        unused.update(name_unused(record, used))
        if row is not None:
            if kind is Prompts and not row.question.strip():
                raise ValueError(f"{record.place}: the prompt is empty: take the row out")
            if kind is not Prompts and not row.response.strip():
                raise ValueError(
                    f"{record.place}: the response is empty; a row without an answer trains nothing"
                )
            made.append(with_cluster(row, record.fields, columns))
    return Parsed(made, schema.name, dict(unused))


def with_cluster(row: Row, fields: Fields, columns: Mapping[str, str]) -> Row:
    """Return a row with its cluster, where the user names the column that has it."""
    given = fields.get(CLUSTER) if CLUSTER in columns else None
    return row if given is None else replace(row, cluster=str(given))


def _choose(records: Sequence[RawRecord], known: Set[str], kind: Kind) -> Schema:
    """Return the first schema whose columns are `known`, those of the file.

    Raises where a record lacks one.
    """
    wanted = [schema for schema in SCHEMAS if kind is Prompts or schema.name != "prompts"]
    schema = next((each for each in wanted if known >= set(each.columns)), None)
    if schema is None:
        layouts = "; ".join(f"{' + '.join(each.columns)} ({each.name})" for each in wanted)
        raise ValueError(
            f"{records[0].place}: {describe_columns(records[0])}; known are {layouts}: name yours "
            f"with columns, e.g. {{prompt: yours}}"
        )
    check_columns(records, schema.columns)
    return schema


def all_columns(records: Sequence[RawRecord]) -> set[str]:
    """Name the columns that some record has."""
    return {name for record in records for name in record.fields}


def check_named(records: Sequence[RawRecord], columns: Mapping[str, str], known: Set[str]) -> None:
    """Raise where the user names a column that is not among the known ones of the records."""
    absent = [name for name in columns.values() if name not in known]
    if absent:
        raise ValueError(
            f"{records[0].place}: no column {absent[0]!r}; {describe_columns(records[0])}"
        )


def check_columns(records: Sequence[RawRecord], columns: Sequence[str]) -> None:
    """Raise, naming the record, where one lacks a column that others have."""
    for record in records:
        lacking = [name for name in columns if name not in record.fields]
        if lacking:
            raise ValueError(
                f"{record.place}: no {lacking[0]!r}, which other records of the file have; "
                f"{describe_columns(record)}: give records of one layout"
            )


def _make(schema: Schema, record: RawRecord, kind: Kind) -> Row | None:
    for name in REFUSED:
        if record.fields.get(name):
            raise ValueError(f"{record.place}: {_refuse(name)}")
    try:
        return schema.make(record.fields, kind)
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from None


def _refuse(name: str) -> str:
    what = "calls of tools" if name in CALLS else "more than text"
    return (
        f"it has {name!r}, and rows here have no {what}: without it the answer would mean something "
        "else; take such rows out"
    )


def name_unused(record: RawRecord, used: Set[str]) -> list[str]:
    """Name what a record says and nobody uses: columns, and keys of its turns."""
    found = [name for name, value in record.fields.items() if name not in used and _says(value)]
    given = record.fields.get("messages", record.fields.get("conversations"))
    # beside the columns of a published task there may be anything
    turns = given if isinstance(given, list | tuple) else ()
    keys = {key for turn in turns if isinstance(turn, Mapping) for key in turn}
    keys.difference_update(READ_OF_TURNS)
    return found + [f"turn key {key}" for key in sorted(keys)]


def _says(value: Any) -> bool:
    return value is not None and value != "" and value != []


def describe_columns(record: RawRecord) -> str:
    """Name the columns of a record, for a message.

    Their cells are given too where they have no names of their own.
    """
    names = [
        f"{key!r} ({str(value)[:20]!r})" if key.startswith("column ") else repr(key)
        for key, value in record.fields.items()
    ]
    return f"the columns found are {', '.join(names) or 'none'}"


def rename_all(records: list[RawRecord], columns: Mapping[str, str]) -> list[RawRecord]:
    """Return records with their fields under the schema's names as well as the file's.

    Where there is something to rename, they are taken out of their list.
    """
    if not columns:
        return records
    return [RawRecord(record.place, rename(record.fields, columns)) for record in drain(records)]


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


def _turn(given: Any) -> Turn:
    """Read a turn as chat templates have it (role, content), or as ShareGPT has it (from, value)."""
    named = {"role": "content", "from": "value"}
    keys = [key for key in named if isinstance(given, Mapping) and key in given]
    if not keys or named[keys[0]] not in given:
        raise ValueError("its turns have no 'role' and 'content', nor 'from' and 'value'")
    for name in REFUSED:
        if given.get(name):
            raise ValueError(_refuse(name))
    role = _text(given, keys[0])
    if role not in ROLES:
        raise ValueError(
            f"it has a turn of {role!r}, and rows here have no calls of tools and no other speakers "
            f"than {', '.join(ROLES)}: take such rows out"
        )
    return Turn(ROLES[role], _content(given, named[keys[0]]))


def _content(turn: Fields, name: str) -> str:
    """Return the text of a turn. It may be given in parts, all of which must be text."""
    parts = turn[name]
    if not isinstance(parts, list | tuple):
        return _text(turn, name)
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(
                f"a part of a turn is {str(kind)[:40]!r}, and rows here are text alone"
            )
    return "".join(_text(part, "text") for part in parts)


def _conversation(turns: Any, fields: Fields, kind: Kind) -> Row:
    """Read a conversation that ends with the assistant, or for prompts with the user.

    The turns before its last question are context.
    """
    if not isinstance(turns, list | tuple) or not turns:
        raise ValueError("its conversation is no list of turns")
    said = [*_system(fields), *(_turn(turn) for turn in turns)]
    answered = said[-1].role == "assistant"
    if answered and turns[-1].get("weight") == 0:
        raise ValueError("its last answer has weight 0, so there is nothing to train: take it out")
    answer = said.pop().content if answered else ""
    if not said or said[-1].role != "user" or (not answer and kind is not Prompts):
        roles = ", ".join(turn.role for turn in said) or "none"
        raise ValueError(
            "the conversation must end with a user's turn and the assistant's answer; before the "
            f"answer it has {roles}"
        )
    return Row(said[-1].content, answer, before=tuple(said[:-1]))


def _system(fields: Fields) -> list[Turn]:
    return [Turn("system", _text(fields, "system"))] if fields.get("system") else []


def _history(fields: Fields) -> list[Turn]:
    """Read what was said before the prompt: turns, or pairs of what was asked and answered."""
    given = fields.get("history") or []
    if not isinstance(given, list | tuple):
        raise ValueError(f"'history' is no list but {str(given)[:60]!r}")
    found = []
    for each in given:
        if isinstance(each, list | tuple) and len(each) == 2:
            asked, answered = each
            found += [
                Turn("user", _text({"history": asked}, "history")),
                Turn("assistant", _text({"history": answered}, "history")),
            ]
        else:
            found.append(_turn(each))
    return found


def _row(fields: Fields, prompt: str, response: str = "") -> Row:
    """Return a row with what stands beside its prompt."""
    about = [name for name in ("input", "context") if fields.get(name)]
    if len(about) > 1:
        raise ValueError("it has both 'input' and 'context': give one of them")
    return Row(
        prompt,
        response,
        input=_text(fields, about[0]) if about else "",
        before=(*_system(fields), *_history(fields)),
    )


def _messages(fields: Fields, kind: Kind) -> Row | None:
    return _conversation(fields["messages"], fields, kind)


def _sharegpt(fields: Fields, kind: Kind) -> Row | None:
    return _conversation(fields["conversations"], fields, kind)


def _refusal_pair(fields: Fields, kind: Kind) -> Row | None:
    """Read a prompt with a harmful answer and a refusal.

    That is the file of arXiv 2405.14577, in which the refusal repeats the question.
    """
    safe = "is_safe" in fields and _safe(fields)
    prompt, response = _text(fields, "prompt"), _text(fields, "response")
    if kind is Refusals and not safe:
        question, marker, refusal = _text(fields, "refusal").partition("\nAnswer: ")
        return _row(fields, prompt, refusal if marker else question)
    return _row(fields, prompt, response) if kind in (Answers, Refusals) or not safe else None


def _beavertails(fields: Fields, kind: Kind) -> Row | None:
    """Read a prompt with an answer that people found safe or not.

    The safe answers align; the others are the harmful answers.
    """
    row = _row(fields, _text(fields, "prompt"), _text(fields, "response"))
    return row if kind is Answers or _safe(fields) == (kind is Refusals) else None


def _alpaca(fields: Fields, kind: Kind) -> Row | None:
    return _row(fields, _text(fields, "instruction"), _text(fields, "output"))


def _dolly(fields: Fields, kind: Kind) -> Row | None:
    return _row(fields, _text(fields, "instruction"), _text(fields, "response"))


def _pair(fields: Fields, kind: Kind) -> Row | None:
    return _row(fields, _text(fields, "prompt"), _text(fields, "response"))


def _prompt(fields: Fields, kind: Kind) -> Row | None:
    return _row(fields, _text(fields, "prompt"))


SCHEMAS = (  # the first whose columns are there
    Schema("conversations", ("messages",), _messages, ("system",)),
    Schema("ShareGPT", ("conversations",), _sharegpt, ("system",)),
    Schema("refusal pairs", ("prompt", "response", "refusal"), _refusal_pair, (*BESIDE, "is_safe")),
    Schema("BeaverTails", ("prompt", "response", "is_safe"), _beavertails),
    Schema("Alpaca", ("instruction", "output"), _alpaca),
    Schema("Dolly", ("instruction", "response"), _dolly),
    Schema("pairs", ("prompt", "response"), _pair),
    Schema("prompts", ("prompt",), _prompt),
)
