"""WiSE-FT (arXiv 2109.01903): interpolate between the aligned and the fine-tuned weights.

    theta <- (1 - alpha) theta_aligned + alpha theta_finetuned

The fine-tuned weights are the aligned ones and an update, so this multiplies the update by alpha: 1 leaves
the fine-tuned model, 0 reverts to the aligned one. An adapter stays one; a weight that it holds whole is
left as it is, and the record names it. The paper interpolates between a zero-shot model and its
fine-tuning.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from titer.methods import About, Fidelity, Needs, UpdateEdit
from titer.weights.finetuned import Weight
from titer.weights.update import Update


@dataclass(frozen=True)
class WiseFT(UpdateEdit):
    """Interpolate between the weights before and after fine-tuning (Wortsman et al., arXiv 2109.01903)."""

    alpha: float = 0.5  # alpha, mixing coefficient: how much of the update stays
    needs = Needs(whole=True)
    keeps_rank = True
    about: ClassVar[About] = About(
        title="WiSE-FT", paper="2109.01903", fidelity=Fidelity(equation="tests/test_wise_ft.py")
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha={self.alpha}: the mixing coefficient must lie between 0 and 1")

    def edit(self, weight: Weight, state: Any) -> Update:
        return self.alpha * weight.update
