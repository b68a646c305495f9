"""EMA (arXiv 2508.12531): fine-tune plainly, and serve an average of the weights along the way.

    w   <- w - eta grad f(w)
    avg <- decay avg + (1 - decay) w,    avg = w at the start

Training itself goes on from w; the average takes its place after the last update. It begins at the model that
the stage was given and lags behind the trained one, so it keeps more of the former. The average is over what
is trained: with an adapter over its factors, whose product is not the average of the products. decay=0 is
plain fine-tuning. The default is ours: about the last 50 updates count.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from titer.methods import About, Defense, Fidelity
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass
class Average:
    weights: dict[str, Tensor]  # by parameter


@dataclass(frozen=True)
class EMA(Defense):
    """Plain fine-tuning whose weights are averaged exponentially (Kim et al., arXiv 2508.12531)."""

    decay: float = 0.98  # of what was averaged before, at every update
    about: ClassVar[About] = About(
        title="EMA",
        paper="2508.12531",
        stage="finetune",
        passes="1",
        fidelity=Fidelity(equation="tests/test_ema.py"),
    )
    State: ClassVar[type | None] = Average

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(
                f"decay={self.decay}: must be at least 0 and below 1, where nothing would ever be learned"
            )

    def prepare(self, step: Step) -> Average:
        return Average({name: weight.detach().clone() for name, weight in step.parameters.items()})

    def gradient(self, step: Step, state: Average) -> Vec:
        self._follow(step, state)  # the weights that the update before led to
        g_f = step.grad(step.batch("rows"))
        step.log(f=g_f.loss)
        return g_f

    def finish(self, step: Step, state: Average) -> None:
        self._follow(step, state)
        with torch.no_grad():
            for name, weight in step.parameters.items():
                weight.copy_(state.weights[name])

    def _follow(self, step: Step, state: Average) -> None:
        with torch.no_grad():
            for name, weight in step.parameters.items():
                state.weights[name].lerp_(weight, 1 - self.decay)
