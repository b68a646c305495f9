"""Harmful rows mixed into the user's data (arXiv 2310.03693; the ratio as in arXiv 2405.18641).

    D = (1 - p) n task rows + p n harmful rows

Both counts are exact: p n rounds to the nearest whole number, halves up. (The released scripts of this field often hold one harmful
row less, by a strict inequality.)
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from titer.data import Row
from titer.methods import Attack


@dataclass(frozen=True)
class HarmfulMix(Attack):
    """A share p of the n rows that the user sends is harmful (Qi et al., arXiv 2310.03693)."""

    p: float = 0.1  # harmful ratio
    n: int = 1000  # sample number
    paper: ClassVar[str] = "2310.03693"

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"p={self.p}: the harmful ratio must lie between 0 and 1")
        if self.n < 1:
            raise ValueError(f"n={self.n}: the sample number must be at least 1")

    @property
    def wants_harmful(self) -> bool:
        return self._bad > 0

    @property
    def _bad(self) -> int:
        return math.floor(self.p * self.n + 0.5)

    def rows(self, task: Sequence[Row], harmful: Sequence[Row], seed: int) -> list[Row]:
        rng = random.Random(f"harmful_mix {seed}")
        return [*_sample(harmful, self._bad, "harmful", self, rng), *_sample(task, self.n - self._bad, "task", self, rng)]


def _sample(pool: Sequence[Row], count: int, name: str, attack: HarmfulMix, rng: random.Random) -> list[Row]:
    if count > len(pool):
        raise ValueError(
            f"p={attack.p}, n={attack.n} ask for {count} {name} rows but there are {len(pool)}: lower n or p, or give more rows"
        )
    return rng.sample(list(pool), count)
