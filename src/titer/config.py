"""Settings as typed, frozen dataclasses, checked when they are read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import BeforeValidator

from titer.errors import unknown


class Config:
    """A part of a recipe: a frozen dataclass in which an unknown key is an error."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}


Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)
]  # one, or a list


def validate(cls: type, fields: Any) -> Any:
    """Return `cls(**fields)` with its types checked.

    Raises a ValueError of one line for the first fault: where it is, and what would do.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(fields)
    except pydantic.ValidationError as error:
        raise _explain(cls, error) from None


def hash_of(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return the SHA-256, as 64 hex digits, of a value's JSON with sorted keys.

    `default` turns a value that JSON does not know into one that it does. Without it such a value
    raises a TypeError.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=default).encode()).hexdigest()


def _explain(cls: type, error: pydantic.ValidationError) -> ValueError:
    """Return the first fault as an error of one line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path)
    if first["type"] == "unexpected_keyword_argument":
        owner = _type_at(cls, path[:-1])
        return unknown(
            "key", where, [".".join([*path[:-1], f.name]) for f in dataclasses.fields(owner)]
        )
    if first["type"] == "value_error":
        inner = str(first["ctx"]["error"])
        return ValueError(f"{where}: {inner}" if where else inner)
    if first["type"] in ("missing", "missing_argument"):
        return ValueError(f"{where} is missing")
    message = first["msg"][0].lower() + first["msg"][1:]
    return ValueError(f"{where}={first['input']!r}: {message}")


def _type_at(cls: Any, path: list[str]) -> Any:
    """Return the dataclass that a path of field names and mapping keys leads to."""
    for part in path:
        if dataclasses.is_dataclass(cls):
            cls = typing.get_type_hints(cls)[part]
        elif typing.get_origin(cls) is dict:
            cls = typing.get_args(cls)[1]
        if typing.get_origin(cls) in (types.UnionType, typing.Union):
            cls = next(option for option in typing.get_args(cls) if option is not type(None))
    return cls
