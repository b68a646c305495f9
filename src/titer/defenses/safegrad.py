"""SafeGrad (arXiv 2508.07172): take from the user's gradient what goes against the alignment's.

    g_u = grad f(w),    g_a = grad a(w)
    where <g_u, g_a> < 0:    g_u <- g_u - <g_u, g_a> / ||g_a||^2 g_a
    g = g_u + rho g_a

f is the cross-entropy of the user's rows, and a the distance of the model to the one that the stage began
with, over the answers of the defender's alignment rows:

    a(w) = mean_t KL( p'_t || p_t )

p_t is the distribution over the vocabulary at answer token t, and p'_t that of the start; both are of logits
divided by the temperature, with no factor for it. The inner product and the norm are over all trained weights
at once. At the start a is 0, and so is g_a: the first update is that of SFT. Later on the part of g_u that
would raise a is taken away, and rho g_a brings a down again. It is the gradient that has no part against g_a:
the step that AdamW makes of it, a coordinate at a time and with its moments, may have one.

`kl` with lam=rho has no projection and is the same otherwise, at a temperature of 1: its null. rho=0 is the
projection alone, and SFT where nothing conflicts.

The authors' code is on an anonymous host and was not seen, so that these choices are compared with nothing:
1. An update has as many alignment rows as rows of the user.
2. a is the mean over the answer tokens of an update, as f is.
3. With an adapter the inner product is over its factors, and depends on their scale.
4. The reference is the start's own weights, put in place for a pass: no second model is in memory.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from titer.defenses.kl import divergence
from titer.methods import About, Answers, Defense, Fidelity, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class SafeGrad(Defense):
    """Gradient surgery for safe fine-tuning (Yi et al., arXiv 2508.07172)."""

    rho: float = 1.0  # rho, weight of the alignment's gradient
    temperature: float = 1.0  # by which logits are divided in the distance
    about: ClassVar[About] = About(
        title="SafeGrad",
        paper="2508.07172",
        stage="finetune",
        passes="2 + 1/3",
        fidelity=Fidelity(equation="tests/test_safegrad.py"),
    )
    needs = Needs(streams={"rows": Answers, "alignment": Refusals}, references=("start",))

    def __post_init__(self) -> None:
        if not 0.0 <= self.rho < math.inf:
            raise ValueError(f"rho={self.rho}: must be at least 0, and finite")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: must be above 0, and finite")

    def gradient(self, step: Step, state: None) -> Vec:
        g_u = step.grad(step.batch("rows"))  # grad f
        g_a = step.grad(step.batch("alignment"), divergence(step, self.temperature))  # grad a
        step.log(f=g_u.loss, a=g_a.loss)
        dot, size = g_u.dot(g_a), g_a.norm()
        if size > 0.0:  # else there is no direction to compare with, as at the start
            step.log(cosine=dot / (g_u.norm() * size))
        if dot < 0.0:
            g_u = g_u - dot / size**2 * g_a
        return g_u + self.rho * g_a
