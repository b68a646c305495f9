"""Scaling: the control that any edit of the fine-tuning update has to beat.

    (alpha / r) B A  <-  c (alpha / r) B A,    c = ||update after the matched edit||_F / ||update before||_F

Removing weights, or projecting them, also shrinks the update, and a smaller update alone is closer to the aligned model. This
edit shrinks it by as much, without choosing anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import Batch
from titer.edits.antidote import Antidote
from titer.methods import Edit, Kind, UpdateEdit
from titer.weights.finetuned import Weight
from titer.weights.update import Update


@dataclass(frozen=True)
class Scale(UpdateEdit):
    """Multiply the fine-tuning update by the one constant that gives it the norm it has after `match`: the control of arXiv 2408.09600."""

    match: Edit = field(default_factory=Antidote)  # the edit whose norm is met
    paper: ClassVar[str] = "2408.09600"

    def __post_init__(self) -> None:
        if not isinstance(self.match, UpdateEdit):
            raise ValueError(
                f"match={type(self.match).__name__}: scaling meets the norm after an edit of the fine-tuning update alone"
            )

    @property
    def matched(self) -> UpdateEdit:
        assert isinstance(self.match, UpdateEdit)
        return self.match

    @property
    def data(self) -> Kind | None:
        return self.matched.data

    @property
    def targets(self) -> Sequence[str]:
        return self.matched.targets

    @property
    def everything(self) -> bool:
        return self.matched.everything

    @property
    def references(self) -> Sequence[str]:
        return self.matched.references

    @property
    def forwards(self) -> Literal["finetuned", "aligned"] | None:
        return self.matched.forwards

    @property
    def needs_factors(self) -> bool:
        return self.matched.needs_factors

    @property
    def keeps_rank(self) -> bool:
        return True

    def seen(
        self, model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
    ) -> Mapping[str, Any]:
        return self.matched.seen(model, layers, batches)

    def plan(self, weights: Sequence[Weight]) -> float:
        """c."""
        plan = self.matched.plan(weights)
        before = after = 0.0
        for weight in weights:
            before += weight.update.norm() ** 2
            after += self.after(weight, self.matched.edited(weight, plan)) ** 2
        if before == 0.0:
            raise ValueError("the fine-tuning update is zero: there is nothing to scale")
        return float((after / before) ** 0.5)

    def after(self, weight: Weight, result: Update | Tensor | None) -> float:
        """Norm of the update that the matched edit leaves."""
        if isinstance(result, Tensor):
            return Update(result - weight.aligned).norm()
        return (weight.update if result is None else result).norm()

    def edited(self, weight: Weight, plan: float) -> Update:
        return plan * weight.update

    def told(self, plan: float) -> Mapping[str, float]:
        return {"c": plan}
