"""Settings: read from YAML as a person writes them, checked as typed, frozen dataclasses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar

import pydantic
import yaml
from pydantic import BeforeValidator

from titer.errors import reading, unknown

NODES = 100_000  # of a YAML text with its aliases written out; a recipe has some hundreds


class Config:
    """A part of a recipe: a frozen dataclass in which an unknown key is an error."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)
]  # one, or a list


def validate(cls: type, fields: Any) -> Any:
    """Return `cls(**fields)` with its types checked.

    Raises a ValueError of one line for the first fault: where it is, and what would do.
    """
    try:
        return _adapter(cls).validate_python(fields)
    except pydantic.ValidationError as error:
        raise _explain(cls, error) from None


@cache
def _adapter(cls: type) -> pydantic.TypeAdapter[Any]:
    """Make what checks the types of a class, which takes longer than the check."""
    return pydantic.TypeAdapter(cls)


def read_yaml(text: str, what: str) -> Any:
    """Return what a YAML text says: mappings with text keys, lists, texts, numbers, true, false, null.

    A number may be written as 4e-4, and a date is a text. What an alias stands for is there twice, so
    that one may be changed without the other. Raises where it is no YAML, a key stands twice, or
    aliases make it very large.
    """
    with reading(what, "is it YAML?"):
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            large = node is not None and _size(node, {}) > NODES
            value = None if node is None or large else loader.construct_document(node)
        finally:
            loader.dispose()
    if loader.fault:
        raise ValueError(f"{what}: {loader.fault}")
    if large:
        raise ValueError(f"{what}: more than {NODES} values with its aliases written out")
    return _written_out(value)


def _written_out(value: Any) -> Any:
    """Copy a value, with a copy for each place of what stands in several."""
    if isinstance(value, dict):
        return {key: _written_out(each) for key, each in value.items()}
    return [_written_out(each) for each in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """Reads the values that JSON has too."""

    fault = ""  # the first thing that is no fault of YAML's own rules

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        names = [key.value if isinstance(key, yaml.ScalarNode) else "" for key in keys]
        for i, (key, name) in enumerate(zip(keys, names, strict=True)):
            line = f"line {key.start_mark.line + 1}"
            if name in names[:i]:
                self.fault = self.fault or f"{line}: the key {name!r} stands twice: take one out"
            elif key.tag != "tag:yaml.org,2002:str":
                self.fault = self.fault or f"{line}: the key {name!r} is no text: quote it"
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, shape) for tag, shape in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # YAML 1.1 asks for a dot and a sign
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node, those behind an alias each time. One within itself is endless."""
    if id(node) not in known:
        known[id(node)] = NODES + 1  # what it counts as within itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(node)]


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
    if first["type"] == "string_type" and isinstance(first["input"], bool):
        message += "; YAML reads yes, no, on and off as true and false: put a word in quotes"
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
