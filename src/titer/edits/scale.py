"""Scaling: the control that any edit of the fine-tuning update has to beat.

    (alpha / r) B A  <-  c (alpha / r) B A,    c = ||update after the matched edit||_F / ||update before||_F

Removing weights, or projecting them, also shrinks the update, and a smaller update alone is closer to the
aligned model. This edit shrinks it by as much, without choosing anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from titer.composition import Matched
from titer.edits.antidote import Antidote
from titer.methods import About, Edit, Fidelity, UpdateEdit
from titer.weights.finetuned import Weight
from titer.weights.update import Update


@dataclass(frozen=True)
class Scale(Matched):
    """Scale the fine-tuning update to the norm that it has after `match`: the control of arXiv 2408.09600."""

    match: Edit = field(default_factory=Antidote)  # the edit whose norm is met
    keeps_rank = True
    about: ClassVar[About] = About(
        title="scale",
        paper="2408.09600",
        control=True,
        fidelity=Fidelity(equation="tests/test_edits.py"),
    )

    def __post_init__(self) -> None:
        if not isinstance(self.match, UpdateEdit):
            raise ValueError(
                f"match={type(self.match).__name__}: scaling meets the norm after an edit of the fine-tuning "
                "update alone"
            )
        if isinstance(self.match, Scale):
            raise ValueError(
                "match=scale: a scaling to the norm after a scaling is that scaling again; give the edit "
                "that it matches"
            )

    def prepare(self, weights: Sequence[Weight]) -> float:
        """Compute c."""
        state = self.held.prepare(weights)
        before = after = 0.0
        for weight in weights:
            before += weight.update.norm() ** 2
            after += self.after(weight, self.held.edit(weight, state)) ** 2
        if before == 0.0:
            raise ValueError("the fine-tuning update is zero: there is nothing to scale")
        return float((after / before) ** 0.5)

    def after(self, weight: Weight, result: Update | Tensor | None) -> float:
        """Take the norm of the update that the matched edit leaves."""
        if isinstance(result, Tensor):
            return Update(result - weight.aligned).norm()
        return (weight.update if result is None else result).norm()

    def edit(self, weight: Weight, state: float) -> Update:
        return state * weight.update

    def facts(self, state: float) -> Mapping[str, Any]:
        return {"c": state}
