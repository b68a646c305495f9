"""Antidote (arXiv 2408.09600, algorithm 1): after fine-tuning, remove the weights that harmful data use most.

    h_ij = |W_ij| ||X_j||_2      Wanda score of weight j of row i; X_j: its input over all calibration tokens
    m_ij = 1 on the top fraction alpha of h
    W   <- (1 - m) * W

`target` says what W is:

* `factors`, the authors': the factors A and B of the fine-tuning adapter (for B the input is A x). A zero
  takes the merged model back towards the aligned one, and the adapter stays an adapter.
* `update`: the merged update W_finetuned - W_aligned, entry by entry. A zero is the aligned weight again.
* `base`: the weights of the fine-tuned model themselves, the authors' choice where no adapter was trained. A
  zero is a zero.

`group` says among which entries the top fraction is taken: a `row`, a whole `tensor`, or all of them
(`global`, which holds the scores that it takes in memory). X is taken from the unedited fine-tuned model,
over prompts and answers, in ordinary forward passes: of every feature the sum of squares is kept, and layers
that read the same input share it.

Departures from the authors' code:
1. `rounding="exact"` zeroes round(alpha n) of n entries. Their int() makes it a ceiling, `rounding="ceiling"`
   here: with r = 8 that zeroes at least 1 of 8 entries of every row of B, whatever alpha.
2. Pads are left out, so the result does not depend on how the calibration rows are batched.
3. `alpha` is what they call dense_ratio: the fraction that is zeroed.
4. `update`, `tensor` and `global` are not theirs.
5. An expert of a sparse model is a layer of its own, X the tokens that the router sends to it. One that no
   calibration row reaches has no scores and stays as it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.config import Names
from titer.data.batches import Batch
from titer.methods import About, Fidelity, Harmful, Needs, UpdateEdit
from titer.weights.experts import RoutedAdapter
from titer.weights.finetuned import Weight
from titer.weights.inputs import watch_inputs
from titer.weights.update import Update

Scoring = Callable[[Weight, Mapping[str, Tensor]], dict[str, Tensor]]
PIECE = 4194304  # entries whose squares are taken at once and held beside the forward pass


@dataclass(frozen=True)
class Cut:
    """The score above which entries of all weights are removed, and how many of those at it, by part."""

    threshold: float
    ties: Mapping[str, int]

    def mask(self, key: str, h: Tensor) -> Tensor:
        above, equal = h.double() > self.threshold, h.double() == self.threshold
        first = equal.flatten().cumsum(0).view_as(h) <= self.ties.get(key, 0)
        return above | (equal & first)


@dataclass(frozen=True)
class Antidote(UpdateEdit):
    """One-shot pruning of the harmful weights after fine-tuning (Huang et al., arXiv 2408.09600)."""

    alpha: float = 0.1  # alpha, the fraction that is set to zero
    # W: the factors of the adapter, the merged update, or the weights of the model themselves
    target: Literal["factors", "update", "base"] = "factors"
    # the entries among which the top fraction is taken: of a row, of a tensor, or all
    group: Literal["row", "tensor", "global"] = "row"
    rounding: Literal["exact", "ceiling"] = "exact"  # of alpha n; the authors' is the ceiling
    targets: Names = ("all",)  # names of layers, or of the last part of them
    entrywise = True
    about: ClassVar[About] = About(
        title="Antidote",
        paper="2408.09600",
        lean={"target": "update"},
        fidelity=Fidelity(equation="tests/test_edits.py"),
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha={self.alpha}: the fraction to remove must lie between 0 and 1")

    @property
    def needs(self) -> Needs:
        return Needs(
            rows=Harmful,
            watches="finetuned",
            targets=self.targets,
            factors=self.target == "factors",
        )

    @property
    def keeps_rank(self) -> bool:
        return self.target == "factors"

    def observe(
        self, model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        return feature_norms(model, layers, batches)

    def prepare(self, weights: Sequence[Weight]) -> Cut | None:
        return self.cut(weights, scores) if self.group == "global" else None

    def edit(self, weight: Weight, state: Cut | None) -> Update | Tensor | None:
        h = scores(weight, values(weight, self.target))
        if not h:
            return None
        return without(
            weight,
            {part: self.top(f"{weight.name} {part}", h[part], state) for part in h},
            self.target,
        )

    def count(self, n: int) -> int:
        """Count the entries to zero of n."""
        if self.rounding == "ceiling":
            return n - int(n * (1 - self.alpha))
        return math.floor(n * self.alpha + 0.5)

    def top(self, key: str, h: Tensor, cut: Cut | None) -> Tensor:
        """Make m, the mask of the entries to remove, by their scores (rows, cols)."""
        if cut is not None:
            return cut.mask(key, h)
        if self.group == "tensor":
            return top(h.reshape(1, -1), self.count(h.numel())).view_as(h)
        return top(h, self.count(h.shape[1]))

    def cut(self, weights: Sequence[Weight], scored: Scoring) -> Cut:
        """Find where to cut the scores of all weights together."""

        def pieces() -> Iterator[tuple[str, Tensor]]:
            for weight in weights:
                for part, h in scored(weight, values(weight, self.target)).items():
                    yield f"{weight.name} {part}", h.flatten()

        count = self.count(sum(h.numel() for _, h in pieces()))
        highest = torch.tensor([], dtype=torch.float64)
        for _, h in pieces():
            both = torch.cat([highest, h.double()])
            highest = both.topk(min(count, len(both))).values
        if count == 0:
            return Cut(math.inf, {})
        threshold = float(highest.min())
        left, ties = int((highest == threshold).sum()), dict[str, int]()
        for key, h in pieces():
            ties[key] = min(left, int((h.double() == threshold).sum()))
            left -= ties[key]
        return Cut(threshold, ties)


def values(weight: Weight, target: str) -> dict[str, Tensor]:
    """Read W by its parts: both factors of the update, the whole of it, or the fine-tuned weight."""
    if target == "base":
        return {"w": weight.finetuned}
    update = weight.update
    if target == "update":
        return {"w": update.dense()}
    assert update.a is not None, "no adapter was looked for"
    return {"a": update.a, "b": update.b}


def scores(weight: Weight, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """h = |W_ij| ||X_j||_2 by part; of an expert that no row reached, none."""
    if weight.seen == {}:
        return {}
    features = {"a": weight.seen["x"], "b": weight.seen.get("ax"), "w": weight.seen["x"]}
    return {part: value.abs() * features[part].to(value) for part, value in values.items()}


def without(weight: Weight, masks: Mapping[str, Tensor], target: str) -> Update | Tensor:
    """Make (1 - m) * W.

    Of the update an entry without it is the aligned one to the bit, an entry left alone the fine-tuned one.
    """
    if target == "base":
        return weight.finetuned.masked_fill(masks["w"], 0.0)
    if target == "update":
        return torch.where(masks["w"], weight.aligned, weight.finetuned)
    update = weight.update
    assert update.a is not None
    return replace(
        update, a=update.a.masked_fill(masks["a"], 0.0), b=update.b.masked_fill(masks["b"], 0.0)
    )


def top(scores: Tensor, count: int) -> Tensor:
    """Mask the `count` highest scores of each row; of equal ones the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :count], True)


def feature_norms(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
) -> dict[str, dict[str, Tensor]]:
    """Take ||X_j||_2 of every input feature j of `layers` over all real tokens of `batches`, in float64.

    By layer: `x` (in,) of its own input, and under an adapter `ax` (r,) of what B reads.
    Of an expert both are over the tokens that reach it, and there are none where no token does. Raises where
    another layer does not read every token.
    """
    from peft.tuners.lora import LoraLayer

    factors = {
        f"{name}, factor B": layer.b
        if isinstance(layer, RoutedAdapter)
        else layer.lora_B["default"]
        for name, layer in layers.items()
        if isinstance(layer, LoraLayer | RoutedAdapter)
    }
    # born before the passes: small tensors that outlive the large ones about them would leave their memory in
    # pieces
    widths: dict[str, Any] = {
        name: layer.in_features for name, layer in {**layers, **factors}.items()
    }
    total = {
        name: torch.zeros(width, dtype=torch.float64, device=model.device)
        for name, width in widths.items()
    }
    reads: dict[str, str] = {}  # by layer the first one that reads the same input

    def watch(name: str, x: Tensor, real: Tensor, first: str) -> None:
        reads[name] = first
        if first == name:
            total[name].add_(squares(x, real))

    watch_inputs(
        model,
        {**layers, **factors},
        ((part.ids, part.mask) for batch in batches for part in batch.parts),
        watch,
    )
    norms = {name: total[first].sqrt().cpu() for name, first in reads.items()}
    return {
        name: {
            part: norms[key]
            for part, key in (("x", name), ("ax", f"{name}, factor B"))
            if key in norms
        }
        for name in layers
    }


def squares(x: Tensor, real: Tensor) -> Tensor:
    """Sum the squares of x (B * T, in) over the tokens that are `real` (B * T,).

    A piece is summed in float32 or better, all of them in float64.
    """
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = -(-PIECE // x.shape[1])  # rounded up
    for part, mask in zip(x.split(rows), real.to(wide).split(rows), strict=True):
        total += part.to(wide).square().T @ mask
    return total
