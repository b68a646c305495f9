"""Antidote (arXiv 2408.09600, algorithm 1): after fine-tuning, remove the weights that matter most on harmful data.

    h_ij = |W_ij| ||X_j||_2      Wanda score of weight j of row i; X_j is its input feature over all calibration tokens
    m_ij = 1 on the top fraction alpha of each row of h
    W   <- (1 - m) * W

The authors' form: W runs over the factors A and B of the fresh fine-tuning adapter alone (for B the input is A x), so a
zero takes the merged model back towards the aligned one. X is taken from the unedited model, over prompts and answers.

Departures from the authors' code:
1. `rounding="exact"` zeroes round(alpha cols) entries of a row. Their int() makes it a ceiling, `rounding="ceiling"` here: with
   r = 8 that zeroes at least 1 of 8 entries of every row of B, whatever alpha.
2. Pads are left out, so the result does not depend on how the calibration rows are batched.
3. `alpha` is what they call dense_ratio: the fraction that is zeroed.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.adapters import adapters, update_norm
from titer.data import Batch
from titer.methods import AdapterEdit, Changes, Harmful, Kind


@dataclass(frozen=True)
class Antidote(AdapterEdit):
    """One-shot pruning of the harmful weights after fine-tuning (Huang et al., arXiv 2408.09600)."""

    alpha: float = 0.1  # alpha, the fraction of each row that is set to zero
    rounding: Literal["exact", "ceiling"] = "exact"
    paper: ClassVar[str] = "2408.09600"
    data: ClassVar[Kind | None] = Harmful

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha={self.alpha}: the fraction to remove must lie between 0 and 1")

    def edit(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Changes:
        factors = {f"{name}.{side}": getattr(found, side) for name, found in adapters(model).items() for side in ("a", "b")}
        norm_before = update_norm(model)
        features = feature_norms(model, factors, batches)  # ||X_j||_2
        changed: dict[str, int] = {}
        with torch.no_grad():
            for name, factor in factors.items():
                h = factor.weight.abs() * features[name].to(factor.weight)  # (rows, cols)
                m = top(h, self.count(h.shape[1]))
                changed[name] = int((factor.weight[m] != 0).sum())
                factor.weight.masked_fill_(m, 0.0)
        sizes = {name: factor.weight.numel() for name, factor in factors.items()}
        return Changes(changed, sizes, norm_before, update_norm(model))

    def count(self, cols: int) -> int:
        """How many entries of a row of `cols` are zeroed."""
        if self.rounding == "ceiling":
            return cols - int(cols * (1 - self.alpha))
        return math.floor(cols * self.alpha + 0.5)


def top(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` highest scores of each row; of equal ones the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :count], True)


def feature_norms(model: PreTrainedModel, layers: Mapping[str, nn.Linear], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """||X_j||_2 of every input feature j of `layers` over all tokens of `batches`, pads left out: (in,), float64."""
    squares = {name: torch.zeros(layer.in_features, dtype=torch.float64) for name, layer in layers.items()}
    real: Tensor  # (B, T), the mask of the batch in flight

    def watch(name: str, x: Tensor) -> None:
        tokens = x.reshape(*real.shape, x.shape[-1])  # (B, T, in); some families hand over (B*T, in) or (B, 1, T, in)
        squares[name] += (tokens.double().square() * real[..., None]).sum((0, 1)).cpu()

    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0]))
            stack.callback(handle.remove)
        for part in (part for batch in batches for part in batch.parts):
            real = part.mask.to(model.device)
            model(input_ids=part.ids.to(model.device), attention_mask=real, use_cache=False)
    return {name: square.sqrt() for name, square in squares.items()}
