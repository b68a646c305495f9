"""Half: follow a share of the gradient of plain fine-tuning (arXiv 2310.03693).

    w <- w - eta share grad f(w)

An example of a plug-in, and no defense: AdamW divides the share away again.
"""

from dataclasses import dataclass
from typing import ClassVar

from titer.methods import About, Defense
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class Half(Defense):
    """A share of the gradient of plain fine-tuning (arXiv 2310.03693)."""

    share: float = 0.5  # the share of the gradient that is followed
    about: ClassVar[About] = About(title="Half", paper="2310.03693", passes="1")

    def gradient(self, step: Step, state: None) -> Vec:
        g_f = step.grad(step.batch("rows"))
        step.log(f=g_f.loss)
        return self.share * g_f
