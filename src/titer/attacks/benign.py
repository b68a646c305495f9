"""The user's task alone (arXiv 2310.03693, section 4.4): what fine-tuning does without an attacker.

    D = n task rows

It is the control of every other attack, and one in itself where the task undoes the alignment. The
paper fine-tunes on the whole of Alpaca or Dolly, without their rows on safety.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from titer.data.mixture import check_count, draw
from titer.data.rows import Row
from titer.methods import About, Attack, Fidelity


@dataclass(frozen=True)
class Benign(Attack):
    """None of the n rows that the user sends is an attacker's (Qi et al., arXiv 2310.03693)."""

    n: int = 1000  # sample number
    about: ClassVar[About] = About(
        title="benign fine-tuning",
        paper="2310.03693",
        fidelity=Fidelity(equation="tests/test_benign.py"),
    )
    wants_harmful = False

    def __post_init__(self) -> None:
        check_count("n", self.n, "the sample number")

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        return draw(task, self.n, "task", random.Random(f"benign {seed}"), n=self.n)
