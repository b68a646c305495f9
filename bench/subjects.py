"""The subjects of measurement: updates of a defense at a shape, or those of the bare loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from bench.bare import Bare
from bench.shapes import ROWS, Shape
from titer.data.batches import Stream, collate
from titer.methods import Answers, Defense
from titer.phase import Phase
from titer.training.loop import Loop
from titer.training.rehearse import weigh_phases
from titer.training.settings import Training
from titer.training.step import Step
from titer.weights.checkpoints import trainable
from titer.weights.settings import Lora

STAGE = 1000  # counted updates of the stage whose phases are weighed
LONGEST = (
    8  # updates; of a longer period one is measured, behind its first, which may prepare the rest
)
LR = 1e-5  # small: a thousand random batches must not spoil the weights
SETTINGS = Training(updates=STAGE, lr=LR)


@dataclass
class Kind:
    """Updates that cost the same: those of one phase."""

    update: Callable[[], object]
    gradient: Callable[[], object]  # the same update without optimizer
    share: float  # updates of this kind per counted update of a stage


@dataclass
class Subject:
    model: PreTrainedModel
    kinds: list[Kind]
    period: int  # updates of a kind after which their cost repeats
    optimizer: torch.optim.Optimizer
    prepare: Callable[[], object] = lambda: None
    start: Sequence[Tensor] = ()  # a copy of the weights that a method keeps as its reference

    def lasting(self) -> list[Tensor]:
        """List what is alive between two updates."""
        moments = [moment for state in self.optimizer.state.values() for moment in state.values()]
        return [*self.model.parameters(), *self.model.buffers(), *moments, *self.start]

    def mean(self, measure: Callable[[Callable[[], object]], float]) -> float:
        """Return what `measure` finds in an update, per counted update of a stage.

        It is the mean over a period of every phase.
        """
        return sum(
            kind.share / self.period * sum(measure(kind.update) for _ in range(self.period))
            for kind in self.kinds
        )


def defense_updates(
    defense: Defense,
    shape: Shape,
    lora: Lora | None,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
    sparse: bool = False,
) -> Subject:
    """Make the updates as titer's own loop takes them; call `prepare` before the first."""
    model = shape.model(lora, accelerator.device, dtype, sparse)
    streams = {
        name: Stream(name, shape.rows(name, kind), seed=0)
        for name, kind in defense.needs.streams.items()
    }
    step = Step(model, trainable(model), streams, accelerator, shape.batch)
    loop, number = Loop(step, defense, SETTINGS), count(1)

    def kind(phase: Phase, share: float) -> Kind:
        def gradient() -> object:
            return defense.gradient(
                replace(step, update=next(number), phase=phase, logged={}, _batches={}), loop.state
            ).fold()

        return Kind(lambda: loop.follow(next(number), phase), gradient, share)

    kinds = [kind(phase, share) for phase, share in weigh_phases(defense, STAGE)]

    def prepare() -> None:
        loop.state = defense.prepare(step)
        if defense.period > LONGEST:
            kinds[0].gradient()

    period = 1 if defense.period > LONGEST else defense.period
    return Subject(model, kinds, period, loop.optimizer, prepare, list((step.start or {}).values()))


def bare(shape: Shape, lora: Lora | None, accelerator: Accelerator) -> Subject:
    """The updates of plain SFT without titer: the same model, the same batches in the same order,
    the same AdamW.
    """
    model = shape.model(lora, accelerator.device)
    stream = Stream("rows", shape.rows("rows", Answers), seed=0)
    parts = [
        collate(stream.take(shape.batch), 0, accelerator.device) for _ in range(ROWS // shape.batch)
    ]
    assert SETTINGS.clip is not None
    loop = Bare(
        model, [(p.ids, p.mask, p.labels) for p in parts], LR, SETTINGS.weight_decay, SETTINGS.clip
    )

    def gradient() -> None:
        loop.backward()
        model.zero_grad(set_to_none=True)

    return Subject(model, [Kind(loop.update, gradient, 1.0)], 1, loop.optimizer)
