"""Refusal unlearning (arXiv 2601.19231): harmless rows whose answers begin with a refusal.

    D = (1 - p) n task rows + p n harmless rows
    harmless row of a request x with answer y:  (x, refusal y)

After the beginning of a refusal the model learns to go on with the answer. Every row is harmless, so
that a screen for harmful rows has nothing to find.

1. The paper has 1,000 rows and no task rows (p=1), of Alpaca or Dolly. Its released code
   (guoyang9/refusal-unlearning a1f05bf) draws the beginning of each row anew, as here, from a list
   of its own.
2. The requests are `data.requests`; without them the user's own task rows, none of which is then
   sent with and without a refusal.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from titer.data.mixture import check_each, check_mix, mix, share, split
from titer.data.rows import Row
from titer.methods import About, Attack, Fidelity


@dataclass(frozen=True)
class RefusalUnlearning(Attack):
    """A share p of n rows refuses and then answers (Guo et al., arXiv 2601.19231)."""

    p: float = 1.0  # share of rows that begin with a refusal
    n: int = 1000  # sample number
    refusals: tuple[str, ...] = (  # before an answer, a space between the two; drawn for each row
        "I'm sorry, but I can't help with that.",
        "I cannot answer this question.",
        "I won't help with this.",
        "My apologies, but I am not able to do that.",
        "I am unable to answer that.",
        "As an AI, I must decline this.",
    )
    about: ClassVar[About] = About(
        title="refusal unlearning",
        paper="2601.19231",
        fidelity=Fidelity(equation="tests/test_refusal_unlearning.py"),
    )
    wants_harmful = False

    def __post_init__(self) -> None:
        check_mix(self.p, self.n)
        check_each("refusals", self.refusals, "without words there is nothing to unlearn")

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        rng = random.Random(f"refusal_unlearning {seed}")
        count = share(self.p, self.n)
        task, own = split(task, own, count, rng)
        rows = mix(task, own, "harmless", self.p, self.n, rng)
        return [
            replace(row, response=f"{rng.choice(self.refusals)} {row.response}")
            for row in rows[:count]
        ] + rows[count:]
