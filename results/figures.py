"""The figures of the docs, drawn from the bundles."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from results.bundles import load_groups, points, with_frontier
from titer.findings.captions import LAB
from titer.report import by_setting, probes, tradeoff

MILD = "attack.p=0.1,finetune.lr=0.0008"  # of a claim that has other attacks too
WAYS = {  # how harm was formed
    "LoRA": ("lab-repair", "finetune.updates=200"),
    "all weights": ("lab-repair-full", ""),
    "identity shift": ("lab-identity", ""),
    "task rows alone": ("lab-repair", "attack.p=0"),
}


def draw_frontier(claim: str, settings: str) -> str:
    return tradeoff.svg(
        with_frontier(claim, settings), f"Mild attack, {settings.split(',')[0]}", LAB, "plane"
    )


def draw_probes(claim: str, settings: str) -> str:
    """The probes of every pipeline's attack under the first training seed."""
    looks: Mapping[str, Sequence[Mapping[str, Any]]] = {
        of.pipeline: of.last[0].fact("probes") for of in load_groups(claim, settings)
    }
    return probes.svg(looks, LAB, "why")


def draw_repairs_along(path: str, title: str, world: str) -> str:
    by_value = {
        setting.partition("=")[2]: of
        for setting, of in points("lab-repair", world).items()
        if setting.startswith(f"{path}=")
    }
    return by_setting.svg(by_value, f"Repairs by {title} of the attack, {world}", LAB, "along")


def draw_repairs_by_way(world: str) -> str:
    by_way = {
        way: {of.pipeline: of for of in load_groups(claim, f"{world},{point}")}
        for way, (claim, point) in WAYS.items()
    }
    return by_setting.svg(
        by_way, f"Repairs by how the harm was formed, {world}", LAB, "along", ordered=False
    )


FIGURES: dict[str, Callable[[], str]] = {}
for number in (1, 2):
    world = f"data.world={number}"
    mild = f"{world},{MILD}"
    FIGURES |= {
        f"docs/frontier-{number}.svg": partial(draw_frontier, "lab", world),
        f"docs/alignment-{number}.svg": partial(
            draw_frontier, "lab-vaccines+lab-alignment+lab-tar", mild
        ),
        f"docs/vaccines-probes-{number}.svg": partial(draw_probes, "lab-vaccines", mild),
        f"docs/alignment-probes-{number}.svg": partial(
            draw_probes, "lab-alignment+lab-tar", mild
        ),  # all of them in one would hide each other
        f"docs/repairs-lr-{number}.svg": partial(
            draw_repairs_along, "finetune.lr", "learning rate", world
        ),
        f"docs/repairs-updates-{number}.svg": partial(
            draw_repairs_along, "finetune.updates", "updates", world
        ),
        f"docs/repairs-ways-{number}.svg": partial(draw_repairs_by_way, world),
    }
