"""Booster (arXiv 2409.01586, equation 3 and algorithm 1): align so that a harmful step gains little.

    min_w  f(w) + lam ( h(w) - h(w - alpha grad h(w) / ||grad h(w)||) )

f is the cross-entropy of refusals, h that of harmful answers; the bracket is what one normalized harmful step
would win. The gradient through the normalized step is dropped, as in the paper.

`align` is how f is followed: plainly, or as another alignment defense does, Vaccine in the paper. Where that
one trains some of the weights at an update, the bracket is of these alone. With `every` the bracket enters
each tau-th update alone, tau times as strong, and costs two passes in tau.

Departures from the authors' code:
1. The weights come back from a copy; adding the step and subtracting it again is inexact.
2. The norm has no 1e-7 added to it. A vanishing harmful gradient stops the run, since the method would do
   nothing.
3. The harmful batch has the size of the alignment batch, and both passes see the same one over all its
   micro-batches.

Compared with their trainer (git-disl/Booster 6421918c, float64, 2026-11-21), alone and over Vaccine: the same
gradient to 7e-15, but for the 1e-7 that they add to the norm.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from titer.composition import Composed
from titer.defenses.sft import SFT
from titer.methods import About, Aware, Defense, Fidelity, Harmful, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec

# regularized updates from one whose cosine of grad f and the bracket is logged to the next
LOOKS = 20


@dataclass(frozen=True)
class Booster(Composed):
    """Attenuate harmful perturbation at the alignment stage (Huang et al., arXiv 2409.01586)."""

    alpha: float = 0.1  # alpha, length of the simulated harmful step in weight space
    lam: float = 5.0  # lambda, weight of the regularizer
    every: int = 1  # tau, updates from one that is regularized to the next
    align: Defense = field(default_factory=SFT)  # how f is followed
    own = Needs(streams={"rows": Refusals, "harmful": Harmful})
    about: ClassVar[About] = About(
        title="Booster",
        paper="2409.01586",
        stage="align",
        passes="1 + 2/tau",
        fidelity=Fidelity(
            equation="tests/test_booster.py",
            code="git-disl/Booster 6421918c, float64, 2026-11-21",
        ),
        aware=Aware(
            "it evens out a step of size alpha along the harmful gradient, and larger and more steps go "
            "beyond it; of the defenses tried by TamperBench (#109) none withstood a search of these",
            updates=200,
            rate=3.0,
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strengths(self.alpha, self.lam)
        if self.every < 1:
            raise ValueError(f"every={self.every}: must be at least 1")
        if isinstance(self.align, Booster):
            raise ValueError(
                "align=booster: Booster regularizes how another method aligns, not itself"
            )

    @property
    def period(self) -> int:
        return math.lcm(self.every, self.align.period)

    def gradient(self, step: Step, state: Any) -> Vec:
        if step.update % self.every:
            return self.align.gradient(step, state)
        harmful = step.batch("harmful")  # the same batch in both passes
        g_h = step.grad(harmful)  # grad h(w)
        with step.moved(-self.alpha * g_h.unit()):  # w - alpha grad h / ||grad h||
            g_h_after = step.grad(harmful)
        g_f = self.align.gradient(step, state)  # grad f(w)
        bracket = (g_h - g_h_after).within(g_f.names())  # what it leaves alone stays untouched
        step.log(h=g_h.loss, h_after=g_h_after.loss)
        if (step.update // self.every) % LOOKS == 0:  # it reads all weights in float64
            step.log(cosine=g_f.cosine(bracket))
        return g_f + self.every * self.lam * bracket


def check_strengths(alpha: float, lam: float) -> None:
    """Raise where the step or the regularizer would turn around."""
    for name, value in (("alpha", alpha), ("lam", lam)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be at least 0, and finite")
