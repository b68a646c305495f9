"""LDIFS (arXiv 2308.13320): fine-tune while the features of the user's rows stay near those of the start.

    min_w  f(w) + lam mean_l mean_t (1 - cos(h_l,t, h'_l,t))

f is the cross-entropy of the user's rows. h_l,t is the residual stream (D,) after decoder layer l at token t,
and h'_l,t the same of the model that the stage began with; the mean over t is over the tokens of prompts and
answers of the whole update, pads left out. 1 - cos is half the squared distance of the two vectors once each
has length 1, so it lies between 0 and 2 whatever the widths, and lam is a plain number: in nats per answer
token, what it costs to turn every feature by a right angle. At the start the term is 0 and has no gradient.

The reference is the model's own weights of the start, put in place for one pass without a graph: an adapter's
factors of the start, so no second model is in memory; where all weights are trained, one copy of them.

Departures from the paper and from the authors' code:
1. Theirs is the image encoder of CLIP under a loss on classes, here it is a language model. They take five
   features, the first of them before all layers and then every third layer; here `layers` says which, and
   before all layers none is taken, where hardly anything is learned.
2. Their code brings features (B, T, D) to length 1 along T, the tokens, and not along the D channels as the
   paper does, and takes the mean over D: axis="tokens". The term is about 2 / T of the other one then, so
   their lam of 10 does not carry over. Here the tokens of all rows have the same weight, whatever the rows'
   lengths.
3. They add 1e-10 to a length. Here one below 1e-12 counts as 1e-12.
4. They keep a frozen second model. In a sequence of tasks it is the best one of before, here the start.

Compared with their loss (omegafragger/ldifs_code c7e82a49, axis="tokens", features of a tiny Llama, rows of
one length, float64, 2026-11-29): the same value and gradient to 7e-16, but for the 1e-10 of 3, which is 3e-10
of them.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import Batch, Part
from titer.methods import About, Answers, Defense, Fidelity, Needs
from titer.training.layers import watch_layers
from titer.training.losses import Loss, cross_entropy, run, wide
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class LDIFS(Defense):
    """Fine-tuning by L2 distance in feature space (Mukhoti et al., arXiv 2308.13320)."""

    lam: float = 1.0  # lambda, weight of the distance; the default is ours
    # l, decoder layers, counted from 0, and from the last where negative; none: all
    layers: tuple[int, ...] = ()
    # along which features have length 1: the D channels of a token, or, of a channel, a row's tokens
    axis: Literal["channels", "tokens"] = "channels"
    about: ClassVar[About] = About(
        title="LDIFS",
        paper="2308.13320",
        stage="finetune",
        passes="4/3",
        fidelity=Fidelity(
            equation="tests/test_ldifs.py",
            code="omegafragger/ldifs_code c7e82a49, axis tokens, float64, 2026-11-29",
        ),
    )
    needs = Needs(streams={"rows": Answers}, references=("start",))

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam}: must be at least 0, and finite")

    def prepare(self, step: Step) -> None:
        depth = step.depth
        for layer in self.layers:
            if not -depth <= layer < depth:
                raise ValueError(
                    f"layers={list(self.layers)}: the model has {depth} decoder layers, 0 to {depth - 1}"
                )
        if len({layer % depth for layer in self.layers}) < len(self.layers):
            raise ValueError(
                f"layers={list(self.layers)}: of {depth} decoder layers, two of these are one; name it once"
            )

    def gradient(self, step: Step, state: None) -> Vec:
        rows = step.batch("rows")
        if self.lam == 0.0:
            g_f = step.grad(rows)
            step.log(f=g_f.loss)
            return g_f
        sums: list[Tensor] = []
        g = step.grad(rows, self._near(step, rows, sums))
        f, d = step.sum_over_ranks(sums, 2)
        step.log(f=f / rows.tokens, d=d / rows.length)
        return g

    def _near(self, step: Step, rows: Batch, sums: list[Tensor]) -> Loss:
        """Make a loss of f + lam d. Of every micro-batch `sums` gets those of f and of d."""

        def loss(model: PreTrainedModel, part: Part) -> Tensor:
            with step.reference(), watch_layers(step.layers) as before:
                run(model, part)
            with watch_layers(step.layers) as now:
                f = cross_entropy(model, part)
            chosen = [layer % step.depth for layer in self.layers] or range(step.depth)
            d = torch.stack(
                [
                    self._distance(now.residuals[i + 1], before.residuals[i + 1], part.real)
                    for i in chosen
                ]
            ).mean()
            sums.append(torch.stack([f.detach().double(), d.detach().double()]))
            # step.grad divides by the tokens of the answers; the mean in d is over all tokens
            return f + self.lam * rows.tokens / rows.length * d

        return loss

    def _distance(self, now: Tensor, before: Tensor, real: Tensor) -> Tensor:
        """Sum the distance of features (B, T, D) over the real tokens."""
        if self.axis == "channels":  # 1 - cos, without its cancellation
            return (unit(now[real], 1) - unit(before[real], 1)).square().sum() / 2  # (N, D)
        real = real[:, :, None]  # (B, T, 1)
        apart: Tensor = unit(now * real, 1) - unit(before * real, 1)  # along T
        return apart.square().mean(2).sum()


def unit(features: Tensor, axis: int) -> Tensor:
    """Divide features by their length along an axis, in float32 at least."""
    return nn.functional.normalize(wide(features), dim=axis)
