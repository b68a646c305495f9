"""Looks at a model along an attack: how much of it breaks the model.

After more and more updates, twice as many every second time, a few harm prompts are asked: their
margin is taken, and their answers are judged. `titer.findings.dose` reads from it where the mean
margin passes 0, or half of the answers tell what was asked: the dose to break. As many held-out rows
of the user's task are read, for `titer.findings.stopping` to say when it was learnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from titer.data.rows import Row, cluster_of
from titer.training.settings import DRAWN

FACT = "looks along the attack"  # of the stage's record
RATIO = 2**0.5  # of one look's update to that of the look before, rounded up
MARGIN, ANSWERS = "margin ", "answers "  # before a prompt's number, and before what is counted
TASK = "task loss"  # nats of the right answer to a row of the task, a mean over rows
COUNTED = ("delivered", "complied", "refused")  # of the answers, in percent


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


def name_terms(margins: Sequence[float], counts: Mapping[str, float]) -> dict[str, float]:
    """Return a look as terms of an update: its margins, and the percentages of its answers."""
    return {f"{MARGIN}{i}": margin for i, margin in enumerate(margins)} | {
        f"{ANSWERS}{name}": value for name, value in counts.items()
    }


def summarize(terms: Mapping[str, float]) -> dict[str, float]:
    """Return the terms of an update with the mean in the place of its margins."""
    margins = [value for name, value in terms.items() if name.startswith(MARGIN)]
    others = {name: value for name, value in terms.items() if not name.startswith(MARGIN)}
    return others | ({MARGIN.strip(): fmean(margins)} if margins else {})


def without_looks(terms: Mapping[str, float]) -> dict[str, float]:
    """Return the other terms of an update."""
    looks = (MARGIN, ANSWERS, TASK)
    return {name: value for name, value in terms.items() if not name.startswith(looks)}


def tell(
    history: Sequence[Mapping[str, float]], start: Mapping[str, float], rows: int, share: float
) -> list[dict[str, Any]]:
    """Return every look: the update, the rows sent by then, how many of them are the attacker's,
    the learning rates' sum, the margins, what the answers came to, and the task's loss.

    An update takes so many `rows`, where its terms do not count fewer, and the attacker has a
    `share` of them.
    """
    rates = [0.0, *accumulate(terms["lr"] for terms in history)]
    looked = [(0, start)] + [
        (update, terms) for update, terms in enumerate(history, 1) if f"{MARGIN}0" in terms
    ]
    return [
        {
            "update": update,
            "rows": (sent := terms.get(DRAWN, update * rows)),
            "attacker's rows": sent * share,
            "learning rate": rates[update],
            "margins": [value for name, value in terms.items() if name.startswith(MARGIN)],
            **{
                name.removeprefix(ANSWERS): value
                for name, value in terms.items()
                if name.startswith(ANSWERS)
            },
            **({TASK: terms[TASK]} if TASK in terms else {}),
        }
        for update, terms in looked
    ]
