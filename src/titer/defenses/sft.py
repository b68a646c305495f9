"""Plain supervised fine-tuning: the baseline of every defense, and what the user does.

    w <- w - eta grad f(w)

f is the mean cross-entropy of the answer tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from titer.methods import About, Defense, Fidelity
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class SFT(Defense):
    """Fine-tuning on answers, as in the attack's paper (arXiv 2310.03693)."""

    about: ClassVar[About] = About(
        title="SFT",
        paper="2310.03693",
        control=True,
        passes="1",
        fidelity=Fidelity(equation="tests/test_step.py"),
    )

    def gradient(self, step: Step, state: None) -> Vec:
        g_f = step.grad(step.batch("rows"))
        step.log(f=g_f.loss)
        return g_f
