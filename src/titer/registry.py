"""The methods by name: a file in a kind's folder is an entry, and other packages add theirs by entry point `titer.<kind>`."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import typing
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from titer import methods
from titer.config import validate
from titer.data import catalog
from titer.errors import unknown

KINDS: dict[str, type[methods.Method]] = {
    "defenses": methods.Defense,
    "edits": methods.Edit,
    "attacks": methods.Attack,
    "judges": methods.Judge,
    "benchmarks": methods.Benchmark,
}


@dataclass(frozen=True)
class Listing:
    kind: str
    name: str
    summary: str
    source: str  # the package that brings it
    facts: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # of a repository of the hub: licence, gate, revision


def names(kind: str) -> list[str]:
    """The names of a kind, without importing any of them."""
    return sorted([*_builtin(kind), *_plugins(kind)])


def listing(kind: str) -> list[Listing]:
    """Every method of a kind, or recipe, with the first line of its file, read without importing it; or what is known of the hub."""
    if kind == "hub":
        return [_repository(entry) for entry in catalog.ENTRIES]
    if kind == "recipes":
        paths = sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
        return [
            Listing(
                kind,
                path.stem,
                path.read_text(encoding="utf-8").split("\n")[0].removeprefix("# "),
                "titer",
            )
            for path in paths
        ]
    found = [
        Listing(kind, name, _summary(f"titer.{kind}.{name}"), "titer") for name in _builtin(kind)
    ]
    found += [
        Listing(kind, name, _summary(point.module), point.dist.name if point.dist else "?")
        for name, point in _plugins(kind).items()
    ]
    return sorted(found, key=lambda entry: entry.name)


def listed_kinds(kind: str | None) -> list[str]:
    """The kinds that `kind` names: itself, or all for None. Raises with the nearest name where there is none."""
    known = [*KINDS, "recipes", "hub"]
    if kind is None:
        return known
    if kind not in known:
        raise unknown("kind", kind, known)
    return [kind]


@cache
def load(kind: str, name: str) -> type[methods.Method]:
    """The class of a method. Raises with the nearest name where there is none."""
    plugins = _plugins(kind)
    if name in plugins:
        return typing.cast(type[methods.Method], plugins[name].load())
    if name not in _builtin(kind):
        raise unknown(KINDS[kind].__name__.lower(), name, names(kind))
    module = importlib.import_module(f"titer.{kind}.{name}")
    own = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, KINDS[kind]) and c.__module__ == module.__name__
    ]
    assert len(own) == 1, (
        f"{module.__name__} must define one {KINDS[kind].__name__}, not {len(own)}"
    )
    return own[0]


def name_of(method: methods.Method) -> str:
    """The registered name of a method object."""
    kind = next(kind for kind, base in KINDS.items() if isinstance(method, base))
    plugin = next(
        (
            name
            for name, point in _plugins(kind).items()
            if point.value == f"{type(method).__module__}:{type(method).__name__}"
        ),
        None,
    )
    return plugin or type(method).__module__.rsplit(".", 1)[-1]


def build(kind: str, config: Any) -> methods.Method:
    """A method from its name, or from a mapping of `method` and its hyperparameters."""
    base = KINDS[kind]
    if isinstance(config, base):
        return config
    fields = (
        {"method": config}
        if isinstance(config, str)
        else dict(config)
        if isinstance(config, dict)
        else {}
    )
    name = fields.pop("method", None)
    if not isinstance(name, str):
        raise ValueError(
            f"{config!r} names no {base.__name__.lower()}: give a name, or a mapping with the key 'method'"
        )
    return typing.cast(methods.Method, validate(load(kind, name), fields))


for (
    _kind,
    _base,
) in KINDS.items():  # so that a field annotated with a kind is built from a name or a mapping
    _base._build = partial(build, _kind)


def describe(method: methods.Method) -> dict[str, Any]:
    """What `build` makes the method from again: its name and all its hyperparameters."""
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    return {"method": name_of(method)} | {
        k: describe(v) if isinstance(v, methods.Method) else v for k, v in values.items()
    }


def _builtin(kind: str) -> list[str]:
    return [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / kind)])]


@cache
def _plugins(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"titer.{kind}")}


def _repository(entry: catalog.Entry) -> Listing:
    from titer.data import hub

    revision = hub.recorded(entry.name, entry.kind) or "unset"
    commercial = {
        True: "commercial use allowed",
        False: "no commercial use",
        None: "commercial use unknown",
    }[entry.commercial]
    words = [
        entry.what,
        entry.licence or "licence unknown",
        commercial,
        *(["gated"] if entry.gated else []),
        f"revision {revision}",
    ]
    facts = {
        "licence": entry.licence,
        "commercial use": entry.commercial,
        "gated": entry.gated,
        "revision": revision,
    }
    return Listing("hub", entry.name, "; ".join(words), "hub", facts)


def _summary(module: str) -> str:
    """The first line of a module's docstring, from its source."""
    spec = find_spec(module)
    text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
