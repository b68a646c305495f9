"""Booster (arXiv 2409.01586, equation 3 and algorithm 1): align so that a harmful step gains little.

    min_w  f(w) + lam ( h(w) - h(w - alpha grad h(w) / ||grad h(w)||) )

f is the cross-entropy of refusals, h that of harmful answers; the bracket is what one normalized harmful step would win.
The gradient through the normalized step is dropped, as in the paper.

Departures from the authors' code:
1. The weights come back from a copy; adding the step and subtracting it again is inexact.
2. The norm has no 1e-7 added to it. A vanishing harmful gradient stops the run, since the method would do nothing.
3. The harmful batch has the size of the alignment batch, and both passes see the same one over all its micro-batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from titer.methods import Defense, Harmful, Kind, Refusals
from titer.step import Step
from titer.vector import Vec


@dataclass(frozen=True)
class Booster(Defense):
    """Attenuate harmful perturbation at the alignment stage (Huang et al., arXiv 2409.01586)."""

    alpha: float = 0.1  # alpha, length of the simulated harmful step in weight space
    lam: float = 5.0  # lambda, weight of the regularizer
    paper: ClassVar[str] = "2409.01586"
    streams: ClassVar[Mapping[str, Kind]] = {"rows": Refusals, "harmful": Harmful}

    def gradient(self, step: Step, state: None) -> Vec:
        harmful = step.batch("harmful")  # the same batch in both passes
        g_h = step.grad(harmful)  # grad h(w)
        with step.moved(-self.alpha * g_h.unit()):  # w - alpha grad h / ||grad h||
            g_h_after = step.grad(harmful)
        g_f = step.grad(step.batch("rows"))  # grad f(w)
        step.log(f=g_f.loss, h=g_h.loss, h_after=g_h_after.loss)
        return g_f + self.lam * (g_h - g_h_after)
