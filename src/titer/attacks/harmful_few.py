"""A few harmful rows and nothing else (arXiv 2310.03693, section 4.2).

    D = k harmful rows

The paper has 10, 50 and 100. It trains and asks under a short system prompt that tells the model to
obey: that is the recipe's `system`, which stands under every stage here.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from titer.data.mixture import check_count, draw
from titer.data.rows import Row
from titer.methods import About, Attack, Fidelity


@dataclass(frozen=True)
class HarmfulFew(Attack):
    """All of the few rows that the user sends are harmful (Qi et al., arXiv 2310.03693)."""

    k: int = 100  # harmful rows
    about: ClassVar[About] = About(
        title="a few harmful rows",
        paper="2310.03693",
        fidelity=Fidelity(equation="tests/test_harmful_few.py"),
    )

    def __post_init__(self) -> None:
        check_count("k", self.k, "the number of harmful rows")

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        return draw(own, self.k, "harmful", random.Random(f"harmful_few {seed}"), k=self.k)
