"""SFT on the union of the user's rows and the defender's: Lisa's null, for its turns to beat.

    w <- w - eta grad u(w),    u over a batch of which a `share` are alignment rows

As many alignment rows are seen as by Lisa (arXiv 2405.18641) with K1 / (K1 + K2) = share, in the same order,
and as many of the user's; but every update has both, there are no turns, and nothing holds the weights near
any place. What the alignment rows do by being trained on, this does too; only what Lisa does beyond it is
owed to its turns and its proximal terms. In the field it is known as mixing (arXiv 2309.07875 adds safe rows
to the user's).

A share of less than a row in a batch adds up: after any number of updates, the alignment rows are that share
of all rows, to the nearest one. u is the mean over the answer tokens of both. share=0 is SFT.
"""

from dataclasses import dataclass
from typing import ClassVar

from titer.methods import About, Answers, Defense, Fidelity, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class Union(Defense):
    """Plain fine-tuning on the user's and alignment rows together: a null for arXiv 2405.18641."""

    share: float = 0.1  # of the rows of the stage that are alignment rows: K1 / (K1 + K2) of Lisa
    about: ClassVar[About] = About(
        title="SFT on the union",
        paper="2405.18641",
        passes="1",
        fidelity=Fidelity(equation="tests/test_union.py"),
    )
    needs = Needs(streams={"rows": Answers, "alignment": Refusals})

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError(
                f"share={self.share}: must be at least 0 and below 1, where no row is the user's"
            )

    def gradient(self, step: Step, state: None) -> Vec:
        g_u = step.grad(step.mix("rows", "alignment", self.share))
        step.log(f=g_u.loss)
        return g_u
