"""The table of the Immunization conditions over worlds, a method a row: `python -m results.assay`.

A pair of models is a method's and plain alignment's in one world, so intervals are over worlds.
Bundles that are not there leave their condition open, with the claim that would compute it:
`make results CLAIMS=lab-assay-topics`, which goes on where it was.
"""

from collections.abc import Iterable, Mapping, Sequence

from results import answer, bundles
from results.names import display_name, in_order
from titer.findings.assay import assay
from titer.findings.conditions import (
    CONDITIONS,
    CROSS_DOMAIN,
    IN_DOMAIN,
    TRAINABILITY,
    UNDECIDED,
    Condition,
    Evidence,
    Pairing,
    Ruling,
    Thresholds,
)
from titer.findings.records import Record
from titer.findings.seeds import Group

ATTACK = "harmful mix"
BESIDES = {  # the claims of the other arms, by condition
    IN_DOMAIN: "lab-assay-topics",
    CROSS_DOMAIN: "lab-assay-domain",
    TRAINABILITY: "lab-assay-task",
}
UPDATES = "finetune.updates="


def world_of(group: Group) -> str:
    return next(text for text in group.settings if text.startswith("data.world="))


def updates_of(group: Group) -> int:
    found = (text for text in group.settings if text.startswith(UPDATES))
    return int(next(found).removeprefix(UPDATES))


def pairings(method: str, groups: Iterable[Group]) -> list[Pairing]:
    """Pair the models of a method with those of plain alignment, a pair a world."""
    found: dict[tuple[str, str], Sequence[Record]] = {
        (group.pipeline, world_of(group)): group.first for group in groups
    }
    return [
        Pairing(stages, found["sft", world])
        for (name, world), stages in found.items()
        if name == method and ("sft", world) in found
    ]


def evidence(method: str, claim: str, besides: Mapping[str, str] = BESIDES) -> Evidence:
    """Gather what the bundles hold of a method."""
    there = {of: name for of, name in besides.items() if bundles.path(name).is_file()}
    groups = {of: bundles.load_groups(name) for of, name in there.items()}
    task: dict[int, list[Group]] = {}
    for group in groups.get(TRAINABILITY, []):
        task.setdefault(updates_of(group), []).append(group)
    return Evidence(
        {ATTACK: pairings(method, bundles.load_groups(claim))},
        {ATTACK: pairings(method, groups.get(IN_DOMAIN, []))},
        {ATTACK: pairings(method, groups.get(CROSS_DOMAIN, []))},
        {updates: pairs for updates, of in task.items() if (pairs := pairings(method, of))},
        {of: f"{name} is not computed" for of, name in besides.items() if of not in there},
    )


def table(claim: str) -> list[list[str]]:
    """Every method of the alignment stage with the verdict on every condition."""
    names = [group.pipeline for group in bundles.load_groups(claim)]
    methods = [name for name in in_order(names) if not name.startswith("random_")]
    lines = [["method", *CONDITIONS]]
    for method in methods:
        found = assay(evidence(method, claim), Thresholds())
        lines.append([display_name(method), *map(cell, found)])
    return lines


def cell(condition: Condition) -> str:
    """Write a verdict with the figure that decides it."""
    ruling = condition.decisive
    word = "open" if condition.word == UNDECIDED else condition.word
    figure = f" {figure_of(ruling)}" if ruling.value == ruling.value else ""
    unit = {"percent": " %", "times": " times"}.get(condition.unit, "")
    of = "" if ruling.of in ("", ATTACK) else f" ({ruling.of})"
    why = f" ({ruling.why.partition(':')[0]})" if ruling.why and not figure else ""
    return f"{word}{':' if figure else ''}{figure}{unit if figure else ''}{of}{why}"


def figure_of(ruling: Ruling) -> str:
    if ruling.low != ruling.low:
        return f"{ruling.value:z.2f}"
    return f"{ruling.value:z.2f} [{ruling.low:z.2f}, {ruling.high:z.2f}]"


if __name__ == "__main__":
    print(answer.markdown(table("lab-alignment")))
