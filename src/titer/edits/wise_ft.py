"""WiSE-FT (arXiv 2109.01903): interpolate between the aligned and the fine-tuned weights.

    theta <- (1 - alpha) theta_aligned + alpha theta_finetuned

The fine-tuned weights are the aligned ones and the adapter's update, so this multiplies the update by alpha: 1 leaves the fine-tuned
model, 0 reverts to the aligned one. The paper interpolates between a zero-shot model and its fine-tuning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from titer.adapters import adapters, update_norm
from titer.data import Batch
from titer.methods import AdapterEdit, Changes


@dataclass(frozen=True)
class WiseFT(AdapterEdit):
    """Interpolate in weight space between before and after fine-tuning (Wortsman et al., arXiv 2109.01903)."""

    alpha: float = 0.5  # alpha, mixing coefficient: how much of the update stays
    paper: ClassVar[str] = "2109.01903"

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha={self.alpha}: the mixing coefficient must lie between 0 and 1")

    def edit(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Changes:
        return scaled(model, self.alpha)


def scaled(model: PreTrainedModel, c: float) -> Changes:
    """Multiply the fine-tuning update by c: (alpha / r) B A becomes c (alpha / r) B A, in the factor B."""
    norm_before = update_norm(model)
    changed: dict[str, int] = {}
    sizes: dict[str, int] = {}
    with torch.no_grad():
        for name, adapter in adapters(model).items():
            b = c * adapter.b.weight
            changed[f"{name}.b"] = int((b != adapter.b.weight).sum())
            sizes[f"{name}.b"] = b.numel()
            adapter.b.weight.copy_(b)
    return Changes(changed, sizes, norm_before, update_norm(model))
