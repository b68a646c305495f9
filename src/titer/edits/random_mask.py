"""Random mask: Antidote's null, the control that its choice of weights has to beat.

    h_ij ~ U(0, 1)
    m_ij = 1 on the top entries of h, as many, and within the same groups, as Antidote's (arXiv 2408.09600)
    W   <- (1 - m) * W

W runs over what Antidote's W does. What an equal number of zeros does by itself, wherever they fall, this
edit does too; only what Antidote does beyond it is owed to the harmful data. One difference: Antidote leaves
an expert alone that no calibration row reaches, which this edit cannot know, for it looks at no row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from titer.composition import Matched
from titer.edits.antidote import Antidote, Cut, values, without
from titer.methods import About, Edit, Fidelity
from titer.weights.finetuned import Weight
from titer.weights.seeded import generator
from titer.weights.update import Update


@dataclass(frozen=True)
class RandomMask(Matched):
    """Zero as many entries of every group as `match` does, chosen at random: a null for arXiv 2408.09600."""

    match: Edit = field(default_factory=Antidote)  # the pruning whose counts are met
    seed: int = 0  # of the choice
    watching = False
    about: ClassVar[About] = About(
        title="random mask",
        paper="2408.09600",
        control=True,
        fidelity=Fidelity(equation="tests/test_random_mask.py"),
    )

    def __post_init__(self) -> None:
        if not isinstance(self.match, Antidote):
            raise ValueError(
                f"match={type(self.match).__name__}: a random mask meets the counts of antidote alone"
            )

    @property
    def pruning(self) -> Antidote:
        assert isinstance(self.match, Antidote)
        return self.match

    def prepare(self, weights: Sequence[Weight]) -> Cut | None:
        return self.pruning.cut(weights, self.scores) if self.pruning.group == "global" else None

    def edit(self, weight: Weight, state: Cut | None) -> Update | Tensor:
        h = self.scores(weight, values(weight, self.pruning.target))
        return without(
            weight,
            {part: self.pruning.top(f"{weight.name} {part}", h[part], state) for part in h},
            self.pruning.target,
        )

    def scores(self, weight: Weight, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw h by part, of every weight its own, whichever others there are: the same on any machine."""
        drawn = generator(self.seed, weight.name)
        return {
            part: torch.rand(value.shape, generator=drawn, dtype=torch.float64)
            for part, value in values.items()
        }
