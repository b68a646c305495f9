"""KL to the start: fine-tune while predictions stay near those of the model that the stage began with.

    min_w  f(w) + lam k(w),    k = mean_t KL(p'_t || p_t(w))

f is the cross-entropy of the user's rows. p_t is the prediction of answer token t, over the whole vocabulary,
and p'_t that of the model that the stage began with. The mean is over the answer tokens of the update's rows,
which are the defender's alignment rows (on="alignment") or the user's own (on="rows").

It is the plainest way to hold a model to itself. On the user's rows it is one of the regularizers that arXiv
2508.06249 compares against emergent misalignment. On alignment rows the same k has its gradient taken by
SafeGrad (arXiv 2508.07172), which also takes from the user's gradient what goes against it.

On the user's rows both terms share one pass; on alignment rows k has a pass of its own. The reference is the
model's own weights of the start, put in place for a pass without a graph, so no second model is in memory.
Logits are of answer tokens alone. At the start k and its gradient are exactly 0.

Departures:
1. Of arXiv 2508.06249 the abstract alone was read, and its authors' code was not to be had: which of the two
   models stands first in their KL is not known here. The direction is SafeGrad's.
2. The default of lam is ours.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Part
from titer.methods import About, Answers, Defense, Fidelity, Kind, Needs, Refusals
from titer.training.losses import Loss, answer_logits, kl_divergence, token_entropies
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class KL(Defense):
    """KL divergence to the start, as a regularizer (Kaczér et al., arXiv 2508.06249)."""

    lam: float = 1.0  # lambda, weight of the divergence
    on: Literal["alignment", "rows"] = (
        "alignment"  # whose answers: the defender's rows, or the user's
    )
    about: ClassVar[About] = About(
        title="KL to the start",
        paper="2508.06249",
        stage="finetune",
        passes="2 + 1/3 on alignment rows, 1 + 1/3 on the user's",
        lean={"on": "rows"},
        fidelity=Fidelity(equation="tests/test_kl.py"),
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam}: must be at least 0, and finite")

    @property
    def needs(self) -> Needs:
        streams: dict[str, Kind] = {"rows": Answers}
        if self.on == "alignment":
            streams["alignment"] = Refusals
        return Needs(streams=streams, references=("start",))

    def gradient(self, step: Step, state: None) -> Vec:
        rows = step.batch("rows")
        if self.on == "rows" and self.lam > 0.0:
            sums: list[Tensor] = []
            g = step.grad(rows, self._both(step, sums))  # grad (f + lam k)
            f, k = step.sum_over_ranks(sums, 2)
            step.log(f=f / rows.tokens, k=k / rows.tokens)
            return g
        g_f = step.grad(rows)  # grad f
        step.log(f=g_f.loss)
        if self.lam == 0.0:
            return g_f
        g_k = step.grad(step.batch("alignment"), divergence(step))  # grad k
        step.log(k=g_k.loss)
        return g_f + self.lam * g_k

    def _both(self, step: Step, sums: list[Tensor]) -> Loss:
        """Make a loss of f + lam k. Of every micro-batch `sums` gets the sums of both."""

        def loss(model: PreTrainedModel, part: Part) -> Tensor:
            with step.reference():
                before = answer_logits(model, part)
            now = answer_logits(model, part)
            f, k = token_entropies(now, part).sum(), kl_divergence(now, before)
            sums.append(torch.stack([f.detach().double(), k.detach().double()]))
            return f + self.lam * k

        return loss


def divergence(step: Step, temperature: float = 1.0) -> Loss:
    """Make a loss of KL(p' || p) over answer tokens, p' being that of the model that the stage began with.

    Both are of logits divided by the temperature.
    """

    def loss(model: PreTrainedModel, part: Part) -> Tensor:
        with step.reference():
            before = answer_logits(model, part)
        return kl_divergence(answer_logits(model, part) / temperature, before / temperature)

    return loss
