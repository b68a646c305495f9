"""The methods of a table once more, under other attacks and on a larger base."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeAlias

from scipy.stats import kendalltau

from results.bundles import load_groups
from results.names import display_name, in_order
from titer.findings.worlds import Pool, pool
from titer.scoring.pooled import Pooled

Conditions: TypeAlias = Mapping[str, tuple[str, tuple[str, ...]]]  # a claim and settings, by title
ALIGN, TUNE, DOSES = "lab-alignment", "lab-finetune", "lab-finetune-doses"
CONDITIONS: Mapping[str, Conditions] = {  # of a table, its own first
    ALIGN: {
        "a tenth of rows harmful": (ALIGN, ()),
        "a fifth of rows harmful": ("lab-doses", ("attack.p=0.2",)),
        "twice the learning rate": ("lab-doses", ("finetune.lr=0.0016",)),
        "a base of four times the size": ("lab-larger", ()),
    },
    TUNE: {
        "a tenth of rows harmful": (TUNE, ()),
        "a fiftieth": (DOSES, ("attack.p=0.02",)),
        "a twentieth": (DOSES, ("attack.p=0.05",)),
        "a fifth": (DOSES, ("attack.p=0.2",)),
        "twice the learning rate": (DOSES, ("finetune.lr=0.0016",)),
    },
}
WORLDS = {"lab-alignment": "in the lab", "smol-alignment": "on SmolLM2"}
NONE = "-"


@cache
def pools(claim: str) -> Mapping[tuple[tuple[str, ...], str], Pool]:
    return {(each.settings, each.pipeline): each for each in pool(load_groups(claim))}


def at(claim: str, settings: tuple[str, ...] = ()) -> dict[str, Pool]:
    """The pipelines of a claim at some settings, by name."""
    return {name: each for (of, name), each in pools(claim).items() if of == settings}


def under(claim: str) -> dict[str, dict[str, Pool]]:
    """The pipelines of a table that stand under every condition, by condition."""
    of = {title: at(*where) for title, where in CONDITIONS[claim].items()}
    everywhere = [name for name in at(claim) if all(name in each for each in of.values())]
    return {title: {name: each[name] for name in everywhere} for title, each in of.items()}


def times(claim: str) -> list[list[str]]:
    """How many times plain training's dose every method takes, under every condition."""
    of = under(claim)
    found = {title: multiples(each) for title, each in of.items()}
    names = [name for name in next(iter(of.values())) if name != "sft"]
    lines = [["method", *of]]
    return lines + [
        [
            display_name(name),
            *(each[name].ratio if name in each else NONE for each in found.values()),
        ]
        for name in names
    ]


def ends(claim: str) -> list[list[str]]:
    """HS and FA at the end of every attack, and the most of over-refusal."""
    of = under(claim)
    lines = [["method", *(f"{title}: HS, FA" for title in of), "over-refusal at most"]]
    for name in next(iter(of.values())):
        mine = [each[name] for each in of.values()]
        told = [f"{value(each, 'harm'):.0f}, {value(each, 'task'):.0f}" for each in mine]
        refused = max(value(each, "lookalike") for each in mine)
        lines.append([display_name(name), *told, f"{refused:.0f}"])
    return lines


def value(mine: Pool, name: str) -> float:
    score = mine.score(name)
    assert score
    return score.value


def multiples(of: Mapping[str, Pool], worlds: Sequence[str] = ()) -> dict[str, Pooled]:
    """The methods' multiples of plain training's dose, no null's, in some worlds or all."""

    def only(mine: Pool) -> Pool:
        kept = {w: g for w, g in mine.worlds.items() if not worlds or w in worlds}
        return Pool(mine.settings, mine.pipeline, kept)

    found = {
        name: only(mine).times(only(of["sft"]))
        for name, mine in of.items()
        if not name.startswith("random") and name != "sft"
    }
    return {name: each for name, each in found.items() if each}


def order(first: Mapping[str, Pooled], second: Mapping[str, Pooled]) -> str:
    """Write Kendall's tau of two orders of the same methods."""
    names = [name for name in first if name in second]
    found = kendalltau([first[n].value for n in names], [second[n].value for n in names])
    return f"{found.statistic:.2f} ({len(names)} methods, p = {found.pvalue:.2g})"


def orders(claim: str) -> dict[str, str]:
    """Kendall's tau of a table's order with that under each of the other conditions, by title."""
    own, *others = ((title, multiples(each)) for title, each in under(claim).items())
    return {title: order(own[1], found) for title, found in others}


def agreement(claim: str) -> list[list[str]]:
    """How many times plain training's dose methods take in two worlds, and how far the orders agree.

    `claim` is that of either, with a plus sign between.
    """
    first, second = (
        multiples({of: each for (_, of), each in pools(name).items()}) for name in claim.split("+")
    )
    names = in_order(name for name in second if name in first)
    lines = [["method", *(WORLDS.get(name, name) for name in claim.split("+"))]]
    lines += [[display_name(name), first[name].ratio, second[name].ratio] for name in names]
    return [*lines, ["Kendall's tau", order(first, second), ""]]
