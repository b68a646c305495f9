"""The methods by name: files in a kind's folder, and what other packages add.

Other packages add methods by entry points `titer.<kind>`. A name has one owner, and a class one
name. A plug-in that takes a name which is there already, or that cannot be imported, is refused
when that name is asked for; other names go on working.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from titer import methods
from titer.config import validate
from titer.errors import unknown

KINDS: dict[str, type[methods.Method]] = {
    "defenses": methods.Defense,
    "edits": methods.Edit,
    "attacks": methods.Attack,
    "judges": methods.Judge,
    "benchmarks": methods.Benchmark,
}


def names(kind: str) -> list[str]:
    """Return the names of a kind, each once, without importing any of them."""
    return sorted({*builtin(kind), *(point.name for point in plugins(kind))})


def usable(kind: str) -> list[str]:
    """Return the names of a kind whose class can be had.

    A broken plug-in does not stop a look at all of them.
    """
    found = []
    for name in names(kind):
        with suppress(ValueError):
            load(kind, name)
            found.append(name)
    return found


@cache
def load(kind: str, name: str) -> type[methods.Method]:
    """Find the class of a method.

    Raises for an unknown name, with the nearest, and for a refused plug-in.
    """
    if refusal := clash(kind, name):
        raise ValueError(refusal)
    point = next((point for point in plugins(kind) if point.name == name), None)
    if point is not None:
        found = _load_plugin(kind, point)
        if others := [other for other in _plugin_names(kind, found) if other != name]:
            why = f"is the class that {others[0]!r} names too"
            raise ValueError(refuse(kind, point, why, "keep one of the two names"))
        return found
    if name not in builtin(kind):
        raise unknown(noun(kind), name, names(kind))
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


def kind_of(method: methods.Method) -> str:
    """Return the kind of a method object."""
    return next(kind for kind, base in KINDS.items() if isinstance(method, base))


def name_of(method: methods.Method) -> str:
    """Find the name of a method object.

    It is `module:Class`, which builds nothing, where no one registered it. Raises where `build`
    would refuse it, or make another class of it.
    """
    kind, cls = kind_of(method), type(method)
    package, _, name = cls.__module__.rpartition(".")
    if package == f"titer.{kind}":
        return name
    found = _plugin_names(kind, cls)
    if not found:
        return f"{cls.__module__}:{cls.__qualname__}"
    load(kind, found[0])
    return found[0]


def build(kind: str, config: Any) -> methods.Method:
    """Build a method from its name, or from a mapping of `method` and its hyperparameters."""
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
            f"{config!r} names no {noun(kind)}: give a name, or a mapping with the key 'method'"
        )
    return typing.cast(methods.Method, validate(load(kind, name), fields))


for _kind, _base in KINDS.items():  # so that a field of a kind is built from a name or a mapping
    _base._build = partial(build, _kind)


def describe(value: Any) -> Any:
    """Return the plain value that a method, a recipe or a part of it can be built from again."""
    if isinstance(value, methods.Method):
        fields = {
            f.name: describe(getattr(value, f.name))
            for f in dataclasses.fields(value)  # type: ignore[arg-type]
        }
        return {"method": name_of(value)} | fields
    if dataclasses.is_dataclass(value):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: describe(entry) for key, entry in value.items()}
    return [describe(entry) for entry in value] if isinstance(value, tuple | list) else value


def describe_judge(judge: methods.Judge) -> dict[str, Any]:
    """Describe a judge with what it judged with; of several, each so."""
    told = dict(describe(judge)) | dict(judge.provenance)
    if len(judge.panel) == 1:
        return told
    return told | {"judges": [describe_judge(each) for each in judge.panel], "decides": "the first"}


def panel_of(judge: methods.Judge) -> dict[str, methods.Judge]:
    """Name the judges of a panel, in order, with a number behind a name that stands twice."""
    names = [name_of(each) for each in judge.panel]
    numbered = [
        f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
    return dict(zip(numbered, judge.panel, strict=True))


def noun(kind: str) -> str:
    """Return the word for one method of a kind."""
    return KINDS[kind].__name__.lower()


def builtin(kind: str) -> list[str]:
    """Return the names that titer itself brings."""
    return [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / kind)])]


@cache
def plugins(kind: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of other packages, refused ones too.

    They are read once: call `refresh` after an installation.
    """
    found = set(entry_points(group=f"titer.{kind}"))
    return tuple(sorted(found, key=lambda point: (point.name, package_of(point), point.value)))


def refresh() -> None:
    """Read the entry points again."""
    importlib.invalidate_caches()
    plugins.cache_clear()
    load.cache_clear()


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that brings an entry point."""
    return point.dist.name if point.dist else "?"


def clash(kind: str, name: str) -> str | None:
    """Say in one line that a name has several owners, and the mend; None where it has not."""
    points = [point for point in plugins(kind) if point.name == name]
    own = name in builtin(kind)
    if len(points) + own < 2:
        return None
    owners = [
        *(["titer itself"] if own else []),
        *(f"the package {package_of(point)!r} ({point.value})" for point in points),
    ]
    return (
        f"{noun(kind)} {name!r} is given by {' and by '.join(owners)}, and a name has one owner: "
        f"rename the entry point in the group 'titer.{kind}' of {package_of(points[-1])!r}, "
        "or uninstall it"
    )


def refuse(kind: str, point: EntryPoint, why: str, mend: str) -> str:
    """Say in one line why a plug-in cannot be used, and the mend."""
    package = package_of(point)
    return (
        f"{noun(kind)} {point.name!r} of the package {package!r} cannot be used: "
        f"its entry point {point.value!r} {why}; {mend}, or uninstall {package!r}"
    )


def _load_plugin(kind: str, point: EntryPoint) -> type[methods.Method]:
    """Load the class that an entry point names.

    Raises where it is none of the kind, or cannot be imported.
    """
    base = KINDS[kind]
    module, _, path = point.value.partition(":")
    try:
        found: Any = importlib.import_module(module.strip())
        for part in path.strip().split(".") if path else ():
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # other people's code, which may raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            refuse(kind, point, f"cannot be imported ({cause})", "mend the package")
        ) from error
    if isinstance(found, ModuleType):
        raise ValueError(
            refuse(kind, point, "names a module", "name a class in it, as module:Class")
        )
    if not isinstance(found, type):
        why = f"names a {type(found).__name__}, not a class"
        raise ValueError(refuse(kind, point, why, f"name a class of {base.__name__}s"))
    if not issubclass(found, base):
        why = f"names a class that is no {base.__name__}"
        raise ValueError(refuse(kind, point, why, f"derive it from titer.methods.{base.__name__}"))
    if inspect.isabstract(found):
        why = f"names an abstract class, which lacks {', '.join(sorted(found.__abstractmethods__))}"
        raise ValueError(refuse(kind, point, why, "define it"))
    parameters = vars(found).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        why = "names a class that is no frozen dataclass of its own"
        raise ValueError(refuse(kind, point, why, "put @dataclass(frozen=True) over it"))
    top = found.__module__.split(".")[0]
    if top == "titer" or top != module.strip().split(".")[0]:
        why = f"names a class of another package, {top!r}"
        raise ValueError(refuse(kind, point, why, "name a class of its own"))
    return found


def _plugin_names(kind: str, cls: type) -> list[str]:
    """Return the names that plug-ins give a class, by entry points into its own package alone."""
    top, found = cls.__module__.split(".")[0], []
    for point in plugins(kind):
        if point.value.partition(":")[0].split(".")[0].strip() == top:
            with suppress(ValueError):  # another plug-in's fault
                if _load_plugin(kind, point) is cls:
                    found.append(point.name)
    return found
