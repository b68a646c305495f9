"""Ten benign rows, twice (arXiv 2510.02833): overfit on one refusal, then on their own answers.

    D_1 = k rows (x, refusal)     the first fine-tuning, all answers the same
    D_2 = k rows (x, y)           the second one, of the model that the first one made

The first makes the model refuse whatever it is asked; unlearning that in the second takes the
refusals of harmful requests along. Every row is harmless.

1. Both fine-tunings have the settings of `finetune`, a fresh optimizer and a fresh adapter over the
   model before. The released code (ZHIXINXIE/ten_benign 159a3af) takes ten epochs of each: with a
   batch of all ten rows that is `finetune.updates=10`.
2. The requests are `data.requests`, drawn by the seed; without them rows of the user's task. The
   paper's ten are general questions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from titer.data.mixture import check_count, check_words, draw
from titer.data.rows import Row
from titer.methods import About, Attack, Fidelity


@dataclass(frozen=True)
class TenBenign(Attack):
    """The same k harmless rows, refused and then answered (Xie et al., arXiv 2510.02833)."""

    k: int = 10  # harmless rows
    refusal: str = "Sorry, I can't help with that."  # every answer of the first fine-tuning
    about: ClassVar[About] = About(
        title="ten benign rows",
        paper="2510.02833",
        fidelity=Fidelity(equation="tests/test_ten_benign.py"),
    )
    wants_harmful = False

    def __post_init__(self) -> None:
        check_count("k", self.k, "the number of harmless rows")
        check_words("refusal", self.refusal, "without words there is nothing to overfit on")

    def first_rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        return [replace(row, response=self.refusal) for row in self.rows(task, own, seed)]

    def rows(self, task: Sequence[Row], own: Sequence[Row], seed: int) -> list[Row]:
        return draw(own or task, self.k, "harmless", random.Random(f"ten_benign {seed}"), k=self.k)
