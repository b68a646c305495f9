"""The methods: listed, and chosen by what a defender has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from titer.api.results import to_frame, to_html

if TYPE_CHECKING:
    import pandas

    from titer.listing import Choosable, Listing


class Methods(list[Any]):
    """Methods, of which a notebook shows a table."""

    def to_pandas(self) -> pandas.DataFrame:
        """Return what is known of each, a row each."""
        return to_frame([_method(each) for each in self])

    def _repr_html_(self) -> str:
        return to_html(self.to_pandas(), [])


def list_methods(kind: str | None = None) -> list[Listing]:
    """List the methods and recipes, of one kind or of all: defenses, edits, attacks, judges,
    benchmarks, recipes.
    """
    from titer import listing

    return Methods(listing.entries(kind))


def choose(assume: str, kind: str | None = None) -> list[Choosable]:
    """Say of every defense and edit whether it fits what a defender has, and why not.

    `assume` has the words of `titer list --assume`: "no harmful data, adapter only". Those that fit
    come first. Raises for an unknown word, with the nearest.
    """
    from titer import listing
    from titer.assumptions import read_assumptions

    found = listing.choose(read_assumptions(assume), kind)
    return Methods(sorted(found, key=lambda each: not each.fits))


def _method(of: Listing | Choosable) -> dict[str, Any]:
    from titer.listing import Choosable

    if not isinstance(of, Choosable):
        return {"kind": of.kind, "name": of.name, "what it is": str(of)}
    return {
        "name": of.listing.name,
        "acts": ", ".join(of.acts),
        "fits": of.fits,
        "with": of.condition,
        "why not": "; ".join(of.obstacles),
        "what it is": str(of.listing),
    }
