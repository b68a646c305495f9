"""EWC (arXiv 1612.00796): what mattered to the defender's rows at the start stays near where it was.

    min_w  f(w) + lam/2 sum_i F_i (w_i - w'_i)^2,    F_i ~ mean_r (d log p(r) / d w_i)^2 at w'

f is the cross-entropy of the user's rows, w' the weights that the stage began with. log p(r) is the
log-likelihood of the answer of an alignment row r, all of its tokens together; the mean is over `samples` of
these rows, one gradient each. F is computed once, before the first update. It is divided by its mean over all
that is trained, so that lam is the pull on a weight of middling importance, and is comparable over models,
adapters and lengths of answers. F = 1 everywhere is the distance to the start: `lisa` with k1=0, warmup=0 and
rho=lam, which is the null for F to beat. lam=0 is SFT.

F is over what is trained, with an adapter over its factors. A fresh one has B = 0, so no gradient reaches A:
F is 0 there, and A is free to move. What is held near the start is B alone, and so what the adapter adds,
B A, as long as A stays of its size. The mean counts the zeros, so that on B it is above 1.

Departures from the paper:
1. It takes F as it is. Here F has a mean of 1: as it is, lam would depend on how well the rows are known, on
   their lengths and on the number of weights.
2. The Fisher information is an expectation over the model's own answers. Here the answers are those of the
   rows, as in most code (the empirical one).

The field's baseline of that name (git-disl/Lisa 68e36595, git-disl/Antidote 26e2ade2) is another one. Its F
is a sum over batches of the squared gradient of a batch's mean, so that rows cancel one another before they
are squared, and it is not normalised; its term has no 1/2; its first update follows the gradient of the last
of those batches too; and it trains the adapter of the alignment further, where here a fresh one is trained.
With batches of one row, answers of one length, lam for what is left, and after the first update, it has the
same F and the same gradient as here, to 1e-15 (a tiny Llama with an adapter, float64, 2026-11-29).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from titer.methods import About, Answers, Defense, Fidelity, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec
from titer.weights.shards import local, sum_over


@dataclass
class Importance:
    """The normalised diagonal of the Fisher information at the start."""

    f: dict[str, Tensor]  # F, by parameter


@dataclass(frozen=True)
class EWC(Defense):
    """Elastic weight consolidation on alignment rows (Kirkpatrick et al., arXiv 1612.00796)."""

    lam: float = 1.0  # lambda, weight of the term; the default is ours
    samples: int = 128  # alignment rows that F is the mean over; all, where there are no more
    about: ClassVar[About] = About(
        title="EWC",
        paper="1612.00796",
        stage="finetune",
        passes="1",
        fidelity=Fidelity(equation="tests/test_ewc.py"),
    )
    needs = Needs(streams={"rows": Answers, "alignment": Refusals}, references=("start",))
    State: ClassVar[type | None] = Importance

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam}: must be at least 0, and finite")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: F is a mean over at least 1 row")

    def prepare(self, step: Step) -> Importance:
        f = {name: torch.zeros_like(weight) for name, weight in step.parameters.items()}
        for _ in range(min(self.samples, len(step.streams["alignment"].rows))):
            row = step.draw("alignment", 1)
            g = row.tokens * step.grad(row)  # of -log p(r), a mean over its tokens before
            for name, value in g.fold().items():
                f[name].addcmul_(value, value)
        mine = sum(float(local(of).double().sum()) for of in f.values())
        mean = sum_over(mine, f.values()) / sum(of.numel() for of in f.values())
        if not mean > 0.0:
            raise ValueError(
                f"the Fisher information has a mean of {mean}: no alignment row tells which weights matter"
            )
        return Importance({name: of.div_(mean) for name, of in f.items()})

    def gradient(self, step: Step, state: Importance) -> Vec:
        g_f = step.grad(step.batch("rows"))
        step.log(f=g_f.loss)
        if self.lam == 0.0:
            return g_f
        return g_f + self.lam * pull(step, state).within(g_f.names())


def pull(step: Step, state: Importance) -> Vec:
    """Return F (w - w'), the gradient of 1/2 sum F (w - w')^2. The root of twice that sum is logged."""
    assert step.start is not None  # it is asked for
    pulled: dict[str, Tensor] = {}
    square = 0.0
    with torch.no_grad():
        for name, weight in step.parameters.items():
            moved = weight - step.start[name]
            pulled[name] = state.f[name] * moved
            square += float((local(pulled[name]) * local(moved)).sum())
    step.log(drift=math.sqrt(sum_over(square, pulled.values())))
    return Vec.of(pulled)
