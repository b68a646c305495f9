"""All that is known of one method, which is imported for it."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from titer import registry
from titer.errors import unknown
from titer.listing.read import read_fields
from titer.methods import Aware, Fidelity, Method, Needs

ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True)
class Hyperparameter:
    """A field of a method, as a recipe writes it."""

    name: str
    type: str
    default: Any  # None where it is required, too
    required: bool
    meaning: str  # the comment beside it in the source


@dataclass(frozen=True)
class Facts:
    """All that is known of a method with its defaults."""

    name: str
    kind: str
    package: str
    title: str
    summary: str
    stages: tuple[str, ...]  # of a pipeline, those that it can be
    acts: tuple[str, ...]  # those that it is meant for
    control: bool  # it is there for others to beat
    # what it is given, by stream; an edit's are `rows`, and `against` what it compares them with
    rows: dict[str, str]
    models: tuple[str, ...]  # other models that it asks for
    adapter: bool  # it works on the factors of an adapter alone
    sparse: bool  # it works on mixtures of experts alone
    passes: str
    paper: str
    fidelity: Fidelity
    aware: Aware | None  # what an attacker does who knows it
    fields: tuple[Hyperparameter, ...]


def find(name: str) -> tuple[str, str]:
    """Find kind and name of NAME, or KIND/NAME.

    Raises where there is no such method, or more than one.
    """
    kind, slash, short = name.rpartition("/")
    if slash:
        if kind not in registry.KINDS:
            raise unknown("kind", kind, registry.KINDS)
        return kind, short
    found = [kind for kind in registry.KINDS if name in registry.names(kind)]
    if not found:
        raise unknown("method", name, {n for kind in registry.KINDS for n in registry.names(kind)})
    if len(found) > 1:
        nouns = [registry.noun(kind) for kind in found]
        each = " and ".join(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns)
        raise ValueError(f"{name!r} is {each}: give {' or '.join(f'{k}/{name}' for k in found)}")
    return found[0], name


def describe_method(name: str) -> Facts:
    """Gather all that is known of a method.

    Raises where there is none, or a plug-in cannot be used.
    """
    kind, name = find(name)
    cls = registry.load(kind, name)
    method = registry.build(kind, name)
    needs, about = method.needs, cls.about
    point = next((point for point in registry.plugins(kind) if point.name == name), None)
    return Facts(
        name=name,
        kind=kind,
        package=registry.package_of(point) if point else "titer",
        title=about.title or name,
        summary=" ".join((cls.__doc__ or "").split("\n\n")[0].split()),
        stages=cls.stages,
        acts=acts(cls),
        control=about.control,
        rows=_rows(needs),
        models=needs.references,
        adapter=needs.factors,
        sparse=needs.sparse,
        passes=about.passes,
        paper=about.paper,
        fidelity=about.fidelity,
        aware=about.aware,
        fields=tuple(_hyperparameters(cls)),
    )


def page(facts: Facts) -> str:
    """Write the facts of a method as `titer show` prints them."""
    told = tell_facts(facts)
    width = max(map(len, told)) + 2
    rows = tell_fields(facts)
    widths = [max((len(row[i]) for row in rows), default=0) + 2 for i in range(3)]
    return "\n".join(
        [
            facts.title,
            *textwrap.wrap(facts.summary, 100),
            "",
            *(f"{name:{width}}{value}" for name, value in told.items() if value),
            *(["", "fields, with their defaults"] if rows else []),
            *(
                "".join(f"{cell:{size}}" for cell, size in zip(row, widths, strict=False)) + row[3]
                for row in rows
            ),
        ]
    )


def tell_facts(facts: Facts) -> dict[str, str]:
    """Put the facts of a method into words, by name; empty where there is nothing to say."""
    fidelity = facts.fidelity
    return {
        "kind": f"{registry.noun(facts.kind)}, from the package {facts.package}",
        "stage": ", ".join(facts.stages),
        "meant for": ", ".join(facts.acts) if facts.acts != facts.stages else "",
        "control": "it is there for others to beat" if facts.control else "",
        "rows": "; ".join(row_words(facts)),
        "other models": ", ".join(facts.models),
        "works on": model_words(facts),
        "passes": f"{facts.passes} an update" if facts.passes else "",
        "paper": f"arXiv {facts.paper} ({ARXIV}{facts.paper})" if facts.paper else "",
        "equation": fidelity.equation,
        "authors' code": fidelity.code,
        "real model": fidelity.real_model,
        "who knows it": aware_words(facts.aware) if facts.aware else "",
    }


def tell_fields(facts: Facts) -> list[tuple[str, str, str, str]]:
    """List the fields of a method: name, type, default and meaning."""
    return [
        (
            each.name,
            each.type,
            "required" if each.required else write_default(each.default),
            each.meaning,
        )
        for each in facts.fields
    ]


def document(facts: Facts) -> dict[str, Any]:
    """Return the facts of a method as JSON has them."""
    return dataclasses.asdict(facts)


def row_words(facts: Facts) -> list[str]:
    """Name the rows that a method is given; a defense's by stream."""
    if facts.kind != "defenses":
        return list(facts.rows.values())
    return [what if stream == what else f"{stream}: {what}" for stream, what in facts.rows.items()]


def model_words(facts: Facts) -> str:
    """Say which models alone a method works on; empty where it works on any."""
    return (
        "an adapter's factors alone"
        if facts.adapter
        else "mixtures of experts alone"
        if facts.sparse
        else ""
    )


def aware_words(aware: Aware) -> str:
    """Say what an attacker does who knows a method, and why."""
    weights = "all weights" if aware.full else "an adapter"
    return (
        f"an attacker trains {weights} for {aware.updates} updates on {aware.rows} harmful rows, at "
        f"{aware.rate:g} times the rate: {aware.why}"
    )


def acts(method: type[Method]) -> tuple[str, ...]:
    """Name the stages that a method is meant for."""
    return (method.about.stage,) if method.about.stage else method.stages


def _rows(needs: Needs) -> dict[str, str]:
    found = {stream: kind.value for stream, kind in needs.streams.items()}
    mine = {"rows": needs.rows, "against": needs.against}
    return found | {name: kind.value for name, kind in mine.items() if kind}


def write_default(value: Any) -> str:
    """Write a default as a recipe would."""
    if isinstance(value, dict) and set(value) == {"method"}:
        return str(value["method"])
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def _hyperparameters(cls: type[Method]) -> Iterator[Hyperparameter]:
    """Yield the fields of a method, with the names of the methods that are their defaults."""
    sources = {name: found for base in reversed(cls.__mro__) for name, found in read_fields(base)}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        required = default is dataclasses.MISSING
        if isinstance(default, Method):
            default = _shorten(default)
        kind, meaning = sources.get(each.name, (str(each.type), ""))
        yield Hyperparameter(each.name, kind, None if required else default, required, meaning)


def _shorten(method: Method) -> dict[str, Any]:
    """Return the mapping of a method without the fields that are at their defaults."""
    config = registry.describe(method)
    plain = registry.describe(registry.build(registry.kind_of(method), config["method"]))
    return {name: v for name, v in config.items() if name == "method" or v != plain[name]}
