"""RESTA (arXiv 2402.11746): after fine-tuning, add a safety vector to the weights.

    v      = theta_aligned - theta_unsafe       theta_unsafe: the aligned model fine-tuned on harmful rows
    theta <- theta_finetuned + gamma v

With `drop` the update since the aligned model is made sparse first, by DARE (arXiv 2311.03099), which is the
paper's RESTA_d:

    delta  = theta_finetuned - theta_aligned
    delta <- m * delta / (1 - d)                every entry of m is 0 with probability d, else 1
    theta <- theta_aligned + delta + gamma v

All of it is stated in whole weights. The sum of two adapters is that of their products B A, never of their
factors, so its rank is higher and a whole model comes out.

Departures from the paper:
1. The defaults are ours: gamma = 0.5, no DARE. The vector's strength has to be tuned to task and model.
2. An entry's fate is drawn from `seed` and the weight's name: the same on any machine, whichever other
   weights there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from titer.methods import About, Fidelity, Needs, UpdateEdit
from titer.weights.finetuned import FineTuned, Weight
from titer.weights.seeded import generator
from titer.weights.update import Update


@dataclass(frozen=True)
class RESTA(UpdateEdit):
    """Task arithmetic: away from what harmful fine-tuning adds (Bhardwaj et al., arXiv 2402.11746)."""

    gamma: float = 0.5  # gamma, strength of the safety vector
    # d, probability that an entry of the fine-tuning update is dropped; 0: no DARE
    drop: float = 0.0
    seed: int = 0  # of what is dropped
    needs = Needs(references=("unsafe",), whole=True)
    about: ClassVar[About] = About(
        title="RESTA", paper="2402.11746", fidelity=Fidelity(equation="tests/test_resta.py")
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma}: must be at least 0, and finite")
        check_drop(self.drop)

    def prepare(self, weights: Sequence[Weight]) -> None:
        """Raise where the safety vector has weights that this edit does not work on: a part would be left
        out.
        """
        unsafe = weights[0].references["unsafe"]
        assert isinstance(unsafe, FineTuned)
        more = {*unsafe.factors, *unsafe.whole} - {weight.name for weight in weights}
        if more:
            raise ValueError(
                f"the unsafe model {unsafe.files.name!r} was trained on {len(more)} weights that are left "
                f"as they are in the fine-tuned one, such as {min(more)!r}: train it on the same layers, "
                "and on none as a whole"
            )

    def edit(self, weight: Weight, state: None) -> Update:
        v = -1.0 * weight.update_of("unsafe")
        return dare(weight.update, self.drop, self.seed, weight.name) + self.gamma * v


def dare(update: Update, drop: float, seed: int, name: str) -> Update:
    """Drop and rescale, as DARE does (arXiv 2311.03099).

    An entry of the whole update is dropped with probability d, else divided by 1 - d.
    """
    if drop == 0.0:
        return update
    delta = update.dense()
    drawn = torch.rand(delta.shape, generator=generator(seed, name), dtype=torch.float64)
    return Update((delta / (1.0 - drop)).masked_fill(drawn < drop, 0.0))


def check_drop(drop: float) -> None:
    if not 0.0 <= drop < 1.0:
        raise ValueError(
            f"drop={drop}: the probability that an entry is dropped must lie between 0 and 1, and below 1"
        )
