"""Random mask: Antidote's null, the control that its choice of weights has to beat.

    h_ij ~ U(0, 1)
    m_ij = 1 on the top entries of each row of h, as many as Antidote's (arXiv 2408.09600, algorithm 1)
    W   <- (1 - m) * W

W runs over the same factors A and B of the fine-tuning adapter. What an equal number of zeros does by itself, wherever they fall, this
edit does too; only what Antidote does beyond it is owed to the harmful data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from titer.adapters import adapters, update_norm
from titer.data import Batch
from titer.edits.antidote import Antidote, top
from titer.methods import AdapterEdit, Changes, Edit


@dataclass(frozen=True)
class RandomMask(AdapterEdit):
    """Zero as many entries of every row as `match` does, chosen at random: a null for arXiv 2408.09600."""

    match: Edit = field(default_factory=Antidote)  # the pruning whose counts are met
    seed: int = 0  # of the choice
    paper: ClassVar[str] = "2408.09600"

    def __post_init__(self) -> None:
        if not isinstance(self.match, Antidote):
            raise ValueError(f"match={type(self.match).__name__}: a random mask meets the counts of antidote alone")

    def edit(self, model: PreTrainedModel, batches: Sequence[Batch]) -> Changes:
        assert isinstance(self.match, Antidote)
        factors = {f"{name}.{side}": getattr(found, side) for name, found in adapters(model).items() for side in ("a", "b")}
        norm_before = update_norm(model)
        generator = torch.Generator().manual_seed(self.seed)  # on the CPU: the same choice on any machine
        changed: dict[str, int] = {}
        with torch.no_grad():
            for name, factor in factors.items():
                h = torch.rand(factor.weight.shape, generator=generator)  # (rows, cols)
                m = top(h, self.match.count(h.shape[1])).to(factor.weight.device)
                changed[name] = int((factor.weight[m] != 0).sum())
                factor.weight.masked_fill_(m, 0.0)
        sizes = {name: factor.weight.numel() for name, factor in factors.items()}
        return Changes(changed, sizes, norm_before, update_norm(model))
