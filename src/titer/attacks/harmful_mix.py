"""Harmful rows mixed into the user's data (arXiv 2310.03693; the ratio as in arXiv 2405.18641).

    D = (1 - p) n task rows + p n harmful rows

Both counts are exact: p n rounds to the nearest whole number, halves up. (The released scripts of
this field often hold one harmful row less, by a strict inequality.)
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from titer.data.rows import Row
from titer.methods import About, Attack, Fidelity


@dataclass(frozen=True)
class HarmfulMix(Attack):
    """A share p of the n rows that the user sends is harmful (Qi et al., arXiv 2310.03693)."""

    p: float = 0.1  # harmful ratio
    n: int = 1000  # sample number
    about: ClassVar[About] = About(
        title="harmful mix", paper="2310.03693", fidelity=Fidelity(equation="tests/test_data.py")
    )

    def __post_init__(self) -> None:
        check(self.p, self.n)

    @property
    def wants_harmful(self) -> bool:
        return share(self.p, self.n) > 0

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        return mix(task, own, "harmful", self.p, self.n, random.Random(f"harmful_mix {seed}"))


def check(p: float, n: int) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p}: the harmful ratio must lie between 0 and 1")
    if n < 1:
        raise ValueError(f"n={n}: the sample number must be at least 1")


def share(p: float, n: int) -> int:
    """Round p n to a whole number."""
    return math.floor(p * n + 0.5)


def mix(
    task: Sequence[Row], own: Sequence[Row], name: str, p: float, n: int, rng: random.Random
) -> list[Row]:
    """Draw a share p of n rows from the attacker's `own`, the rest from the task's; none twice.

    An error calls the attacker's by `name`.
    """
    rows: list[Row] = []
    for what, pool, count in ((name, own, share(p, n)), ("task", task, n - share(p, n))):
        if count > len(pool):
            raise ValueError(
                f"p={p}, n={n} ask for {count} {what} rows but there are {len(pool)}: "
                "lower n or p, or give more rows"
            )
        rows += rng.sample(list(pool), count)
    return rows
