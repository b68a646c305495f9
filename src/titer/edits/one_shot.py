"""One-shot repair (arXiv 2601.01887): after fine-tuning, fine-tune plainly on k refusals.

The cheapest baseline of all repairs.

    w <- AdamW on the cross-entropy of k refusals, for `updates` updates

With k = 1 one row is repeated. The adapter, or the whole model where none was trained, goes on from where the
user's fine-tuning left it, with a fresh optimizer at a constant learning rate.

Departures from the paper: its choice of the example, and of the layers to train, is left out; the rows are
drawn from the refusals of the alignment. What we recall of its settings is too little to take defaults from.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from titer.data.rows import Row
from titer.methods import About, Fidelity, Needs, Refusals, Retraining
from titer.training.settings import Training


@dataclass(frozen=True)
class OneShot(Retraining):
    """Plain fine-tuning on k refusals after the fact (arXiv 2601.01887)."""

    k: int = 1  # refusals
    updates: int = 10  # of the repair
    lr: float | None = None  # None: that of the user's fine-tuning
    seed: int = 0  # of the choice of rows and their order
    needs = Needs(rows=Refusals)
    about: ClassVar[About] = About(
        title="one-shot", paper="2601.01887", fidelity=Fidelity(equation="tests/test_one_shot.py")
    )

    def __post_init__(self) -> None:
        for name in ("k", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(
                f"lr={self.lr}: must be above 0, or null for that of the user's fine-tuning"
            )

    def rows(self, pool: Sequence[Row]) -> list[Row]:
        if self.k > len(pool):
            raise ValueError(
                f"k={self.k}: there are {len(pool)} refusals; lower k, or give more rows in data.alignment"
            )
        return random.Random(f"one_shot {self.seed}").sample(list(pool), self.k)

    def training(self, finetune: Training) -> Training:
        batch = min(finetune.batch, self.k)
        lr = finetune.lr if self.lr is None else self.lr
        return replace(
            finetune,
            updates=self.updates,
            lr=lr,
            batch=batch,
            accumulate=1,
            schedule="constant",
            warmup=0.0,
        )
