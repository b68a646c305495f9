"""Which defenses and edits fit what a defender has. All methods are imported for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from titer import registry
from titer.assumptions import STAGES, Trait, find_obstacles
from titer.listing.list import Listing, entries
from titer.listing.show import acts, write_default
from titer.methods import Defense, Kind, Method, Retraining, StreamEdit, TensorEdit, UpdateEdit

CHOOSABLE = ("defenses", "edits")  # kinds; the others are the attacker's, or measure
SINGLE = ("", "1", "at most 1")  # `passes` of an update that takes no more than one


@dataclass(frozen=True)
class Choosable:
    """A defense or an edit under some assumptions."""

    listing: Listing
    acts: tuple[str, ...] = ()  # stages
    fields: tuple[tuple[str, Any], ...] = ()  # that make it fit, where its defaults do not
    obstacles: tuple[str, ...] = ()  # why it does not fit, of its defaults; a few words each

    @property
    def fits(self) -> bool:
        return not self.obstacles

    @property
    def condition(self) -> str:
        """Write the fields that make it fit as a recipe's settings; empty where it does as it is."""
        return ", ".join(
            f"{name}={write_default(value)}" + ("" if isinstance(value, str) else ", say")
            for name, value in self.fields
        )


def choose(words: Sequence[str], kind: str | None = None) -> list[Choosable]:
    """Return every defense and edit, or those of one kind, with whether it fits and why not.

    Controls and attacks are left out. Raises for a kind of which there is nothing to choose.
    """
    if kind is not None and kind not in CHOOSABLE:
        raise ValueError(
            f"--assume chooses among {' and '.join(CHOOSABLE)}, and {kind!r} are neither: leave it out"
        )
    found = []
    for each in (kind,) if kind else CHOOSABLE:
        for listing in entries(each):
            choice = _judge(listing, words)
            found += [choice] if choice else []
    return found


def choice_lines(words: Sequence[str], kind: str | None = None, why: bool = False) -> list[str]:
    """Return what `titer list --assume` prints: what fits, and with `why` what does not."""
    found = choose(words, kind)
    fit = [choice for choice in found if choice.fits]
    rest = [choice for choice in found if not choice.fits]
    told = _align(
        [(choice.listing.name, ", ".join(choice.acts), _describe(choice)) for choice in fit]
    )
    head = f"{len(fit)} of {len(found)} fit: {', '.join(words)}"
    if not rest:
        return [head, *told]
    if not why:
        return [head, *told, f"{len(rest)} do not: --why says why"]
    reasons = _align([(choice.listing.name, "; ".join(choice.obstacles)) for choice in rest])
    return [head, *told, f"{len(rest)} do not:", *reasons]


def choice_documents(words: Sequence[str], kind: str | None = None) -> list[dict[str, Any]]:
    """Return the same as JSON has it, with what does not fit."""
    return [
        {
            "kind": choice.listing.kind,
            "name": choice.listing.name,
            "summary": choice.listing.summary,
            "source": choice.listing.source,
            "stages": choice.acts,
            "fits": choice.fits,
            "with": dict(choice.fields),
            "why": choice.obstacles,
        }
        for choice in choose(words, kind)
    ]


def traits(method: Method) -> list[Trait]:
    """Read the traits of a defense or an edit off what it needs, and off what kind of one it is."""
    needs, stages = method.needs, acts(type(method))
    kinds = {*needs.streams.values(), needs.rows, needs.against}
    trains = isinstance(method, Defense | Retraining)
    aligning = stages == ("align",)
    has = {
        Trait.HARMFUL: bool(kinds & {Kind.HARMFUL, Kind.PAIRS, Kind.HELD_OUT})
        or "unsafe" in needs.references,
        Trait.ALIGNMENT: bool(kinds & {Kind.REFUSALS, Kind.PAIRS})
        or aligning
        or "safe" in needs.references,
        Trait.BASE: "base" in needs.references,
        Trait.ALIGNED: isinstance(method, UpdateEdit) or stages == ("finetune",),
        Trait.OTHER: bool({"safe", "unsafe"} & {*needs.references}),
        Trait.FACTORS: needs.factors,
        Trait.WHOLE: isinstance(method, TensorEdit | StreamEdit)
        or (isinstance(method, UpdateEdit) and not method.keeps_rank),
        Trait.SPARSE: needs.sparse,
        Trait.PASSES: method.about.passes not in SINGLE,
        Trait.TRAINS: trains,
        Trait.RUNS: trains or bool(needs.rows),
    }
    return [*(STAGES[stage] for stage in stages), *(trait for trait, holds in has.items() if holds)]


def _judge(listing: Listing, words: Sequence[str]) -> Choosable | None:
    """Judge one method, with its defaults and then with the fields that ask for less.

    None for what is no defense: a control, or an attack.
    """
    try:
        method = registry.build(listing.kind, listing.name)
    except ValueError as error:  # a plug-in that cannot be used, or that has no defaults
        return Choosable(listing, obstacles=(listing.error or " ".join(str(error).split()),))
    about, stages = method.about, acts(type(method))
    if about.control or isinstance(method, StreamEdit):
        return None
    obstacles = find_obstacles(traits(method), words)
    if obstacles and about.lean:
        leaner = registry.build(listing.kind, {"method": listing.name, **about.lean})
        if not find_obstacles(traits(leaner), words):
            return Choosable(listing, stages, tuple(about.lean.items()))
    return Choosable(listing, stages, obstacles=tuple(obstacles))


def _describe(choice: Choosable) -> str:
    """Say what a method that fits does, and with which settings it fits."""
    return f"with {choice.condition}: {choice.listing}" if choice.fields else str(choice.listing)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Put the cells of rows under one another, each last one as it is."""
    widths = [max(map(len, column)) + 2 for column in zip(*(row[:-1] for row in rows), strict=True)]
    return [
        "".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) + row[-1]
        for row in rows
    ]
