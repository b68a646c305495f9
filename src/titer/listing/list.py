"""The lines of `titer list`: methods, recipes and the hub. No method is imported for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from titer import registry
from titer.errors import unknown
from titer.listing.read import find_fault, find_module, read_module
from titer.runs import recipe


@dataclass(frozen=True)
class Listing:
    """A line of `titer list`."""

    kind: str
    name: str
    summary: str
    source: str  # the package that brings it
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None  # why a plug-in cannot be used, as far as its source shows

    def __str__(self) -> str:
        if self.error:
            return self.error
        brought = "" if self.source in ("titer", "hub") else f" [{self.source}]"
        return f"{self.summary}{brought}"


def kinds(kind: str | None) -> list[str]:
    """Name the kinds to list: the given one, or all.

    Raises with the nearest name for an unknown one.
    """
    known = [*registry.KINDS, *BESIDE]
    if kind is None:
        return known
    if kind not in known:
        raise unknown("kind", kind, known)
    return [kind]


def entries(kind: str | None) -> list[Listing]:
    """List everything of a kind, or of all kinds, by name; nothing is imported for it."""
    return [
        entry
        for each in kinds(kind)
        for entry in (BESIDE[each]() if each in BESIDE else _methods(each))
    ]


def lines(kind: str | None) -> list[str]:
    """Return the lines of `titer list`."""
    found = entries(kind)
    width = max((len(entry.name) for entry in found), default=0) + 2
    return [f"{entry.kind:12}{entry.name:{width}}{entry}" for entry in found]


def _methods(kind: str) -> list[Listing]:
    """List the methods of a kind: the first paragraph of each module, and its facts."""
    found = [
        Listing(kind, name, *read_module(kind, name, find_module(f"titer.{kind}.{name}"), "titer"))
        for name in registry.builtin(kind)
    ]
    found += [_plugin(kind, point) for point in registry.plugins(kind)]
    return sorted(found, key=lambda entry: entry.name)


def _plugin(kind: str, point: EntryPoint) -> Listing:
    """Make the line of a plug-in, with what its source shows to be wrong with it."""
    package = registry.package_of(point)
    spec = find_module(point.value.partition(":")[0].strip())
    summary, source, facts = read_module(kind, point.name, spec, package)
    error = registry.clash(kind, point.name) or find_fault(kind, point, spec)
    return Listing(kind, point.name, summary, source, facts, error)


def _recipes() -> list[Listing]:
    return [
        Listing(
            "recipes", name, _first_line(recipe.FOLDER / f"{name}.yaml").removeprefix("# "), "titer"
        )
        for name in recipe.names()
    ]


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n")[0]


def _hub() -> list[Listing]:
    """List the repositories of the hub that something is known of."""
    from titer.data import catalog, hub

    found = []
    for entry in catalog.REPOSITORIES:
        revision = hub.cached_commit(entry.name, entry.kind) or "unset"
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
            *([f"short name {entry.short}"] if entry.short else []),
            f"revision {revision}",
        ]
        facts = {
            "licence": entry.licence,
            "commercial use": entry.commercial,
            "gated": entry.gated,
            "revision": revision,
        }
        found.append(Listing("hub", entry.name, "; ".join(words), "hub", facts))
    return found


def _guards() -> list[Listing]:
    """List the presets of the judge `served`."""
    from titer.data.guards import GUARDS

    return [
        Listing(
            "guards",
            name,
            f"{of.model or 'any large model'}; {of.licence}{'; gated' if of.gated else ''}; "
            f"{of.template}; {of.run}",
            "titer",
            {"model": of.model, "licence": of.licence, "gated": of.gated, "run": of.run},
        )
        for name, of in GUARDS.items()
    ]


BESIDE: Mapping[str, Callable[[], list[Listing]]] = {
    "recipes": _recipes,
    "hub": _hub,
    "guards": _guards,
}  # what is listed beside the kinds of methods
