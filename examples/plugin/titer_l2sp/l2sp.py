"""L2sp (L2-SP, arXiv 1802.01483): fine-tune while every weight is pulled back to where it began.

    min_w  f(w) + lam/2 ||w - w'||^2

f is the cross-entropy of the rows that the stage trains on, w' the weights that the stage began with.
The norm is over all that is trained, with an adapter over its factors. lam=0 is SFT.

Written by `titer new` to start from: put your own method and its paper in the place of this one.

Departures from the paper:
1. It lets the weights of a new layer decay to zero, by a coefficient of their own. Here no layer is new.
2. The default of lam is ours.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from titer.methods import About, Answers, Defense, Fidelity, Needs
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class L2sp(Defense):
    """A pull of every weight to where the stage began (Li et al., arXiv 1802.01483)."""

    lam: float = 1.0  # lambda, strength of the pull
    about: ClassVar[About] = About(
        title="l2sp",
        paper="1802.01483",
        stage="finetune",
        passes="1",
        fidelity=Fidelity(equation="tests/test_l2sp.py"),
    )
    needs = Needs(streams={"rows": Answers}, references=("start",))

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam}: must be at least 0, and finite")

    def gradient(self, step: Step, state: None) -> Vec:
        g_f = step.grad(step.batch("rows"))
        step.log(f=g_f.loss)
        if self.lam == 0.0:
            return g_f
        return g_f + self.lam * moved(step).within(g_f.names())


def moved(step: Step) -> Vec:
    """Return w - w', the gradient of 1/2 ||w - w'||^2."""
    assert step.start is not None  # it is asked for
    with torch.no_grad():
        return Vec.of({name: w - step.start[name] for name, w in step.parameters.items()})
