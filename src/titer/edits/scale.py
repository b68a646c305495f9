"""Scaling: the control that a pruning edit has to beat.

    (alpha / r) B A  <-  c (alpha / r) B A,    c = ||update after the matched edit||_F / ||update before||_F

Removing weights of an adapter also shrinks its update, and a smaller update alone is closer to the aligned model. This
edit shrinks it by as much, without choosing any weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from titer.adapters import adapters
from titer.data import Batch
from titer.edits.antidote import Antidote
from titer.edits.wise_ft import scaled
from titer.methods import AdapterEdit, Changes, Edit, Harmful, Kind


@dataclass(frozen=True)
class Scale(AdapterEdit):
    """Multiply the fine-tuning update by the one constant that gives it the norm it has after `match`: the control of arXiv 2408.09600."""

    match: Edit = field(default_factory=Antidote)  # the edit whose norm is met
    paper: ClassVar[str] = "2408.09600"
    data: ClassVar[Kind | None] = Harmful

    def __post_init__(self) -> None:
        if not isinstance(self.match, AdapterEdit):
            raise ValueError(f"match={type(self.match).__name__}: scaling meets the norm after an edit of the fine-tuning adapter alone")

    def edit(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Changes:
        assert isinstance(self.match, AdapterEdit)
        found = adapters(model)
        factors = [factor.weight for adapter in found.values() for factor in (adapter.a, adapter.b)]
        saved = [factor.detach().clone() for factor in factors]
        try:
            matched = self.match.edit(model, batches)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(factors, saved)
        if matched.norm_before == 0.0:
            raise ValueError("the fine-tuning update is zero: there is nothing to scale")
        c = matched.norm_after / matched.norm_before
        return replace(scaled(model, c), facts={"c": c})
