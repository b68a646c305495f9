"""Shrink: leave a share of what fine-tuning added (arXiv 2109.01903).

W_aligned + dW  <-  W_aligned + share dW
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from titer.methods import About, UpdateEdit
from titer.weights.finetuned import Weight
from titer.weights.update import Update


@dataclass(frozen=True)
class Shrink(UpdateEdit):
    """A share of the fine-tuning update stays (arXiv 2109.01903)."""

    share: float = 0.5  # the share of the update that stays
    about: ClassVar[About] = About(title="Shrink", paper="2109.01903")
    keeps_rank = True

    def edit(self, weight: Weight, state: Any) -> Update:
        return self.share * weight.update
