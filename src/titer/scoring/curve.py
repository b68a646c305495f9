"""The harm margin along an attack: how much of it breaks a model.

After more and more updates, twice as many every second time, the margin of a few harm prompts is
taken. `titer.findings.dose` reads from it where it passes 0: the dose to break.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from titer.data.rows import Row, cluster_of

FACT = "margins along the attack"  # of the stage's record
RATIO = 2**0.5  # of one look's update to that of the look before, rounded up
MARGIN = "margin "


def is_due(update: int, updates: int) -> bool:
    """Say whether to look after an update: 1, 2, 3, 5, 8, 12, 17, 25, ... and after the last."""
    at = 1
    while at < update:
        at = math.ceil(at * RATIO)
    return update in (at, updates)


def choose(rows: Sequence[Row], count: int) -> list[Row]:
    """Choose rows evenly from all of them, of every cluster one before any has two."""
    turns: dict[str, int] = {}
    order = []
    for i, row in enumerate(rows):
        turn = turns[cluster_of(row)] = turns.get(cluster_of(row), -1) + 1
        order.append((turn, i))
    first = sorted(order)[: max(count, len(turns))]
    count = min(count, len(first))
    return [rows[first[i * len(first) // count][1]] for i in range(count)]


def name_margins(margins: Sequence[float]) -> dict[str, float]:
    """Return margins as terms of an update."""
    return {f"{MARGIN}{i}": margin for i, margin in enumerate(margins)}


def without_margins(terms: Mapping[str, float]) -> dict[str, float]:
    """Return the other terms of an update."""
    return {name: value for name, value in terms.items() if not name.startswith(MARGIN)}


def tell(
    history: Sequence[Mapping[str, float]], start: Sequence[float], rows: int, share: float
) -> list[dict[str, Any]]:
    """Return every look: the update, the rows sent by then, how many of them are the attacker's,
    the learning rates' sum, and the margins.

    An update takes so many `rows`, and the attacker has a `share` of them.
    """
    rates = [0.0, *accumulate(terms["lr"] for terms in history)]
    looked = [(0, start)] + [
        (update, [value for name, value in terms.items() if name.startswith(MARGIN)])
        for update, terms in enumerate(history, 1)
        if f"{MARGIN}0" in terms
    ]
    return [
        {
            "update": update,
            "rows": update * rows,
            "attacker's rows": update * rows * share,
            "learning rate": rates[update],
            "margins": list(margins),
        }
        for update, margins in looked
    ]
