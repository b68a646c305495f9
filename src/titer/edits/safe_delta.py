"""Safe Delta (arXiv 2505.12038): take what a safety budget allows, and make up for what that costs.

    H      = 2 X X^T                           X (in, tokens): an input in the aligned model, on refusals
    cost_m = delta_m^2 / (2 [H^-1]_mm)         safety that entry m of delta = W_finetuned - W_aligned costs
    take entries by falling delta_m^2 / cost_m = 2 [H^-1]_mm while their costs add up to no more than
    eps    = s mean_m 1 / (2 [H^-1]_mm)
    W     <- W_aligned + taken * delta + C     C moves entries that are not taken: W X stays near W_aligned X

C is the Optimal Brain Surgeon's, its columns decided from left to right as in SparseGPT: with H^-1 = U^T U, U
upper triangular,

    W_aligned - W = E U,    E = 0 where an entry is not taken
    ||(W_aligned - W) X||_F^2 = ||E||_F^2 but for the damping

so an entry that is taken moves those to the right of it. All rows of a layer have the same H, so whole
columns are taken one after the other, and part of the last: one triangular solve gives E for the rows that
took that one, another for the rest.

The authors' code, and not the paper, has it that
* [H^-1]_mm is U_mm^2, the entry of the inverse for the columns that are still free; so ||E||_F^2 / 2 is the
  safety lost;
* `block` columns at a time are selected, delta as the blocks before left it, each block with a part of the
  budget;
* the `protected` fraction of a block's entries, those of smallest U_mm, is never taken;
* what is no linear layer's weight is the aligned model's again: of a whole model embeddings, norms and
  biases.

Departures from the authors' code:
1. `constants="own"` gives a block its share of the columns, so that the blocks of a layer have the paper's
   eps together. Theirs, `constants="authors"`, is s / 2 rows / 4096 for each block: the same for the 4096 x
   4096 layers of Llama-2-7B, and no others.
2. Every column compensates the next; theirs takes four at a time, which do not compensate one another.
3. Of the column that is taken in part the first rows are; theirs are those that an unstable sort puts first.
4. A feature that is always zero has the damping for its H, so it is taken first; they set it to 1, whatever
   the scale of H.
5. Where the protected fraction comes to less than one entry, none is protected; their code then takes none.
6. A head with a weight of its own is a linear layer; theirs is the aligned model's again.
7. Rows are the alignment data's, evenly spaced, without pads. Theirs are the aligned model's own refusals in
   four prompt templates.
8. An expert of a sparse model is a layer of its own, X the tokens that the router sends to it. Of one that
   no refusal reaches the whole update is taken: nothing says that it costs safety.

H is (in, in) for every distinct input, in memory for all layers at once, in float32 for models of 16 bits,
else float64: that makes 22 GB for Llama-2-7B in 16 bits.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import Batch
from titer.methods import About, Fidelity, Needs, Refusals, UpdateEdit
from titer.weights.finetuned import Weight
from titer.weights.inputs import watch_inputs


@dataclass
class Tally:
    """A count of what was taken so far."""

    entries: int = 0  # of linear layers
    taken: int = 0
    reverted: int = 0  # other tensors


@dataclass(frozen=True)
class SafeDelta(UpdateEdit):
    """Take what a safety budget allows of the update, and compensate for it (Lu et al., arXiv 2505.12038)."""

    s: float = 0.1  # s, scale of the safety budget
    # how a block of columns gets its part of the budget
    constants: Literal["own", "authors"] = "own"
    compensate: bool = True  # C; the paper's ablation leaves it out
    protected: float = 0.15  # fraction of a block's entries that is never taken
    block: int = 2048  # columns that are selected together
    samples: int = 128  # rows whose inputs make H
    damping: float = 0.01  # added to the diagonal of H, in parts of its mean
    needs = Needs(rows=Refusals, watches="aligned", whole=True)
    about: ClassVar[About] = About(
        title="Safe Delta",
        paper="2505.12038",
        fidelity=Fidelity(equation="tests/test_safe_delta.py"),
    )

    def __post_init__(self) -> None:
        if not self.s >= 0.0:
            raise ValueError(f"s={self.s}: the scale of the budget must be at least 0")
        if not 0.0 <= self.protected <= 1.0:
            raise ValueError(
                f"protected={self.protected}: the fraction that is never taken must lie between 0 and 1"
            )
        if not 0.0 < self.damping < math.inf:
            raise ValueError(f"damping={self.damping}: H has no inverse without a positive damping")
        if self.block < 1:
            raise ValueError(f"block={self.block}: give at least one column")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: give at least one row")

    def observe(
        self, model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch]
    ) -> Mapping[str, Tensor]:
        """Factor the H of every linear layer into its U; those that read the same input share it."""
        linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
        if not linear:
            raise ValueError(
                f"safe_delta weighs updates of linear layers, and none of {len(layers)} layers is one: "
                "choose another edit"
            )
        h, reads = hessians(model, linear, batches, self.samples)
        for name in h:
            h[name] = self.factor(h[name])  # at once, so that never more than one H is there twice
        return {name: h[reads[name]] if name in reads else torch.empty(0) for name in linear}

    def factor(self, h: Tensor) -> Tensor:
        """Compute U, upper triangular, with H^-1 = U^T U after damping."""
        damped = h + self.damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
        u: Tensor = torch.linalg.cholesky(
            torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True
        )
        return u

    def prepare(self, weights: Sequence[Weight]) -> Tally:
        return Tally()

    def edit(self, weight: Weight, state: Tally) -> Tensor:
        w = weight.aligned
        if weight.seen is None:
            state.reverted += 1
            return w
        if not weight.seen.numel():  # an expert that no refusal reaches: its update costs no safety
            state.entries, state.taken = state.entries + w.numel(), state.taken + w.numel()
            return weight.finetuned
        finetuned, u = weight.finetuned, weight.seen.to(w)
        rows, columns = w.shape
        for start in range(0, columns, self.block):
            end = min(start + self.block, columns)
            delta, d = (finetuned - w)[:, start:end], u.diagonal()[start:end]
            order = d.argsort(descending=True, stable=True)
            count = self.count(delta[:, order], d[order], (end - start) / columns)
            whole, rest = divmod(count, rows)
            for part, taken in (
                (slice(rest), order[: whole + 1]),
                (slice(rest, rows), order[:whole]),
            ):
                taken = start + taken.sort().values
                if self.compensate:
                    off = (w - finetuned)[part, taken]
                    e = torch.linalg.solve_triangular(
                        u[taken][:, taken], off, upper=True, left=False
                    )  # (rows, taken)
                    w[part, start:] -= e @ u[taken, start:]
                w[part, taken] = finetuned[part, taken]
            state.taken += count
        state.entries += w.numel()
        return w

    def count(self, delta: Tensor, d: Tensor, share: float) -> int:
        """Count the entries of a block to take, column after column.

        `share` is the block's of the columns; `d` the diagonal of U.
        """
        rows, n = len(delta), delta.numel()
        part = share if self.constants == "own" else rows / 4096 / 2
        eps = self.s * part * (1 / (2 * d.square())).mean()
        cost = delta.square() / (2 * d.square())
        spent = cost.T.flatten().double().cumsum(0)
        return min(int((spent <= eps).sum()), n - int(self.protected * n))

    def facts(self, state: Tally) -> Mapping[str, float]:
        return {
            "share of entries taken": state.taken / state.entries,
            "other tensors reverted": state.reverted,
        }


def hessians(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Sequence[Batch], samples: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Sum H = 2 X X^T over all tokens of at most `samples` rows, by the first layer that reads an input.

    The second mapping names that first layer, by layer.
    """
    h: dict[str, Tensor] = {}
    reads: dict[str, str] = {}

    def watch(name: str, x: Tensor, real: Tensor, first: str) -> None:
        reads[name] = first
        if first == name:
            tokens = x[real].to(torch.float32 if x.dtype.itemsize == 2 else torch.float64)
            square = 2 * (tokens.T @ tokens).cpu()
            h[name] = h[name] + square if name in h else square

    watch_inputs(model, layers, sample_rows(batches, samples), watch)
    return h, reads


def sample_rows(batches: Sequence[Batch], samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens and mask of `samples` rows evenly spaced over all, batch by batch; of all if fewer."""
    parts = [part for batch in batches for part in batch.parts]
    total = sum(len(part.ids) for part in parts)
    wanted = {i * total // samples for i in range(samples)}
    start = 0
    for part in parts:
        kept = [i for i in range(len(part.ids)) if start + i in wanted]
        start += len(part.ids)
        if kept:
            yield part.ids[kept], part.mask[kept]
