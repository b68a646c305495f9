"""Random Booster: Booster's null, the control that its harmful direction has to beat.

    g = grad f(w) + lam ( grad h(w) - grad h(w + alpha u) ),    u uniform on the unit sphere

As Booster (arXiv 2409.01586, equation 3), but the simulated step of length alpha goes along a random
direction u over the trainable weights, a new one at every update, instead of down the harmful gradient. What
the harmful rows and any step of this length do by themselves, this does too; only what Booster does beyond it
is owed to its direction.

u follows from the stage's seed and the update's number alone: ranks agree on it, and so does a run that was
interrupted.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import torch

from titer.defenses.booster import check_strengths
from titer.methods import About, Defense, Fidelity, Harmful, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec
from titer.weights.shards import like


@dataclass(frozen=True)
class RandomBooster(Defense):
    """Booster along a random direction: a null for arXiv 2409.01586."""

    alpha: float = 0.1  # alpha, length of the random step in weight space
    lam: float = 5.0  # lambda, weight of the regularizer
    about: ClassVar[About] = About(
        title="random Booster",
        paper="2409.01586",
        stage="align",
        control=True,
        passes="3",
        fidelity=Fidelity(equation="tests/test_random_booster.py"),
    )
    needs = Needs(streams={"rows": Refusals, "harmful": Harmful})

    def __post_init__(self) -> None:
        check_strengths(self.alpha, self.lam)

    def gradient(self, step: Step, state: None) -> Vec:
        harmful = step.batch("harmful")  # the same batch in both passes
        g_h = step.grad(harmful)  # grad h(w)
        with step.moved(self.alpha * direction(step)):  # w + alpha u
            g_h_after = step.grad(harmful)
        g_f = step.grad(step.batch("rows"))  # grad f(w)
        step.log(f=g_f.loss, h=g_h.loss, h_after=g_h_after.loss)
        return g_f + self.lam * (g_h - g_h_after)


def direction(step: Step) -> Vec:
    """Draw u, the direction of this update: normal in every coordinate, divided by its norm."""
    seed = random.Random(f"random_booster {step.streams['rows'].seed} {step.update}").getrandbits(
        63
    )
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same direction on any machine
    normal = {
        name: like(torch.randn(weight.shape, generator=generator), weight)
        for name, weight in step.parameters.items()
    }
    return Vec.of(normal).unit()
