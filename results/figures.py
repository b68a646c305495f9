"""The figures of the docs, drawn from the bundles."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from results import answer
from results.bundles import load_groups
from titer.findings.captions import LAB
from titer.findings.worlds import pool
from titer.report import probes, tradeoff

WORLD = "data.world=1"  # of the probes, which are of one attack each
TERMS = ("sft", "repnoise", "adversarial_loss", "lox", "booster+lox")
MOE = ("sft", "lisa", "anchor", "safe_moe", "safe_moe, other experts")
STEPS = ("sft", "vaccine", "t_vaccine", "booster", "booster+t_vaccine")


def draw_frontier(claim: str) -> str:
    found = [each for each in pool(load_groups(claim)) if "random" not in each.pipeline]
    found = [each for each in found if each.pipeline != "sft"]
    return tradeoff.svg([*found, *answer.rivals()], "Mild attack, six worlds", LAB, "plane")


def draw_probes(claim: str, names: Sequence[str]) -> str:
    """The probes of some pipelines' attacks in one world."""
    looks: Mapping[str, Sequence[Mapping[str, Any]]] = {
        of.pipeline: of.last[0].fact("probes")
        for of in load_groups(claim, WORLD)
        if of.pipeline in names
    }
    return probes.svg(looks, LAB, "why")


FIGURES: dict[str, Callable[[], str]] = {
    "docs/frontier.svg": partial(draw_frontier, "lab-edits"),
    "docs/alignment-frontier.svg": partial(draw_frontier, "lab-alignment"),
    # all of them in one would hide each other
    "docs/probes-steps.svg": partial(draw_probes, "lab-alignment", STEPS),
    "docs/probes-terms.svg": partial(draw_probes, "lab-alignment", TERMS),
    "docs/moe-probes.svg": partial(draw_probes, "lab-moe", MOE),
}
