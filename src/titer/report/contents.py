"""All that a page shows: its figures and tables are objects, which are also what is exported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from titer.printable import printable
from titer.report.figures import Drawing, Figures
from titer.report.sheets import Sheet

Part = TypeVar("Part", Drawing, Sheet)


@dataclass(frozen=True)
class Contents:
    """A template, and the values that it shows. Drawings and sheets are among them."""

    template: str
    values: Mapping[str, Any]

    @property
    def drawings(self) -> list[Drawing]:
        """Return every figure, in the order of the values."""
        return list(_parts(Drawing, self.values.values()))

    @property
    def sheets(self) -> list[Sheet]:
        """Return every table, in the order of the values."""
        return list(_parts(Sheet, self.values.values()))

    def render(self, drawn: Figures | None = None) -> str:
        """Make the page, with figures that are drawn already where they are."""
        drawn = drawn or Figures()
        return template(self.template).render(self.values, figure=drawn.get)


def _parts(kind: type[Part], values: Iterable[Any]) -> Iterator[Part]:
    """Yield what is of a kind among values and in lists of them."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, list | tuple):
            yield from _parts(kind, value)


def template(name: str) -> Template:
    """Load a template of this folder."""
    environment = Environment(
        loader=PackageLoader("titer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    environment.filters |= {"plain": describe_plainly, "number": number}
    return environment.get_template(name)


def number(value: Any, places: int) -> str:
    """Write a number with so many decimals."""
    return (
        f"{value:z.{places}f}" if isinstance(value, int | float) and value == value else "not known"
    )


def describe_plainly(value: Any) -> str:
    """Write a scalar as a reader says it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _safe(value: Any) -> Any:
    return printable(value) if type(value) is str else value
