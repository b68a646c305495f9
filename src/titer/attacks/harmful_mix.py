"""Harmful rows mixed into the user's data (arXiv 2310.03693; the ratio as in arXiv 2405.18641).

    D = (1 - p) n task rows + p n harmful rows

Both counts are exact: p n rounds to the nearest whole number, halves up. (The released scripts of
this field often hold one harmful row less, by a strict inequality.)
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from titer.data.mixture import check_mix, mix, share
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
        check_mix(self.p, self.n)

    @property
    def wants_harmful(self) -> bool:
        return share(self.p, self.n) > 0

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        return mix(task, own, "harmful", self.p, self.n, random.Random(f"harmful_mix {seed}"))
