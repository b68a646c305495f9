"""Agreement of two looks at the same methods on their order: Kendall's tau.

The looks are at two worlds, or at two sizes of the model.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from scipy.stats import kendalltau

from titer.findings.seeds import Group
from titer.scoring.figures import NAMES

SCORES = ("harm", "margin")
NONE = "-"  # no order to speak of

Pairs = dict[
    str, dict[str, list[Group]]
]  # by attack and pipeline: what it came to in the one and in the other


def worlds(groups: Iterable[Group]) -> Pairs:
    """The points of a grid whose first setting is the world, those of two worlds side by side."""
    pairs: Pairs = {}
    for group in groups:
        pairs.setdefault(" ".join(group.settings[1:]), {}).setdefault(group.pipeline, []).append(
            group
        )
    return pairs


def sizes(larger: Iterable[Group], usual: Iterable[Group]) -> Pairs:
    """The points of the larger model beside the same of the usual one."""
    others = {(group.settings, group.pipeline): group for group in usual}
    pairs: Pairs = {}
    for group in larger:
        if other := others.get((group.settings, group.pipeline)):
            pairs.setdefault(" ".join(group.settings), {})[group.pipeline] = [other, group]
    return pairs


def table(pairs: Mapping[str, Mapping[str, Sequence[Group]]]) -> list[list[str]]:
    """Tau at every attack, of the methods that are struck out in neither, no null."""
    lines = [["attack", "methods", *(f"tau of {NAMES[name]}" for name in SCORES)]]
    for attack, of in pairs.items():
        found = [pair for name, pair in of.items() if not name.startswith("random")]
        found = [
            pair for pair in found if len(pair) == 2 and not any(group.struck for group in pair)
        ]
        lines.append([attack, str(len(found)), *(tau(found, name) for name in SCORES)])
    return lines


def tau(pairs: Sequence[Sequence[Group]], name: str) -> str:
    """With its p-value, of no order in common; none where all are equal, or there are not three."""
    values = [[score.value for group in pair if (score := group.score(name))] for pair in pairs]
    found = kendalltau(*zip(*values, strict=True)) if len(values) > 2 else None
    return (
        NONE
        if found is None or math.isnan(found.statistic)
        else f"{found.statistic:.2f} (p = {found.pvalue:.2g})"
    )
