"""SBR (Safety Anchor, arXiv 2605.05995): fine-tune while harmful prompts end in the states of the start.

    min_w  f(w) + lam d(w),    d = mean_x 1/D ||h(x; w) - h'(x)||^2

f is the cross-entropy of the user's rows. h(x; w), of D channels, is the hidden state at the last token of a
harmful prompt x, from which the first token of an answer is predicted. It is taken behind the model's final
norm, where the head makes logits of it. h'(x) is that of the model that the stage began with. At the start d
is 0 and has no gradient. The sum over channels is divided by D, and lam is 50, as in the authors' code.

Each update draws `prompts` of the defender's harmful rows, whose answers nothing reads. Their h' are computed
then, by a pass of the weights of the start over these prompts alone, without logits and without a graph. With
data.defense_rows=8 and prompts=8 every update has the same eight, as in their code.

along="refusal" holds the state along one direction u alone, after ProCon (arXiv 2509.06795):

    d = mean_x 1/D (u . (h(x; w) - h'(x)))^2,    u = (m - m') / ||m - m'||

m is the mean of h' over harmful prompts, m' over ordinary ones, which are the prompts of the user's rows: of
either at most 128, looked at before the first update without being drawn. This d is a part of the other one,
so lam is on the same scale. Harmful prompts among the user's shorten m - m' and do not turn it, as far as
they are like the defender's.

What d does not hold: the head, where all weights are trained, and what follows the first token of an answer.

Departures from the authors' code:
1. It adds d of the same eight prompts at every micro-batch. Here it is added once an update.
2. It keeps h' of its fixed prompts. Here the prompts of an update are others than those of the one before.
3. It finds the end of a prompt by counting tokens, which is right where pads are on the right.
4. The default of `prompts` is ours, for its cost. They have eight beside a micro-batch of eight rows.
5. along="refusal" is ours. Of ProCon the abstract alone was read: it takes the states of the rows that are
   trained on, and holds them more strongly early in the stage.

Compared with their trainer's loss (soyoaaa/SBR 188990b, LoRA and full, 30 updates with prompts=8, one
micro-batch, float64, 2026-11-29), with its casts to float32 taken out: the same gradient at every update to
2e-14, and to 8e-7 with them.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Batch, Part
from titer.methods import About, Answers, Defense, Fidelity, Harmful, Needs
from titer.training.losses import Loss, answer_states, pad_of, wide
from titer.training.step import Step
from titer.training.vector import Vec

MOST = 128  # prompts of a kind that the refusal direction is a mean over


@dataclass
class Direction:
    u: Tensor  # (D,), of length 1


@dataclass(frozen=True)
class Anchor(Defense):
    """Safety bottleneck regularization, SBR (Lu et al., arXiv 2605.05995)."""

    lam: float = 50.0  # lambda, weight of the distance
    prompts: int = 2  # harmful prompts of an update
    along: Literal["all", "refusal"] = "all"  # the directions in which the state is held
    about: ClassVar[About] = About(
        title="SBR",
        paper="2605.05995",
        passes="1 + 4/3 of the prompts' share of the tokens",
        fidelity=Fidelity(
            equation="tests/test_anchor.py",
            code="soyoaaa/SBR 188990b, 30 updates, float64, 2026-11-29",
        ),
    )
    needs = Needs(streams={"rows": Answers, "harmful": Harmful}, references=("start",))
    State: ClassVar[type | None] = Direction

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam}: must be at least 0, and finite")
        if self.prompts < 1:
            raise ValueError(f"prompts={self.prompts}: give at least 1, or lam=0")

    def prepare(self, step: Step) -> Direction | None:
        count = len(step.streams["harmful"].rows)
        if self.prompts > count:
            raise ValueError(
                f"prompts={self.prompts}: the defender has {count} harmful rows; give at most so many"
            )
        if self.along == "all":
            return None
        apart = mean_state(step, "harmful") - mean_state(step, "rows")  # m - m'
        length = float(apart.norm())
        if not length > 0.0:
            raise ValueError(
                "along='refusal': harmful and ordinary prompts end in the same state, so no direction tells "
                "them apart; give along='all'"
            )
        return Direction(apart / length)

    def gradient(self, step: Step, state: Direction | None) -> Vec:
        g_f = step.grad(step.batch("rows"))  # grad f
        step.log(f=g_f.loss)
        if self.lam == 0.0:
            return g_f
        g_d = step.grad(step.prompts("harmful", self.prompts), distance(step, state))  # grad d
        step.log(d=g_d.loss)
        return g_f + self.lam * g_d


def distance(step: Step, along: Direction | None) -> Loss:
    """Make a loss of 1/D ||h - h'||^2 over prompts, or of its part along a direction."""

    def loss(model: PreTrainedModel, part: Part) -> Tensor:
        with step.reference():
            before = answer_states(model, part)
        moved = wide(answer_states(model, part)) - wide(before)  # (N, D)
        size = moved.shape[1]
        square = moved.square().sum(1) if along is None else (moved * along.u).sum(1).square()
        return square.sum() / size

    return loss


def mean_state(step: Step, stream: str) -> Tensor:
    """Average the states (D,) at the ends of a stream's first prompts, on every rank. None is drawn."""
    order = replace(step.streams[stream])  # with a position of its own
    rows = [row.opening for row in order.take(min(MOST, len(order.rows)))]
    chunks = [rows[i : i + step.batch_size] for i in range(0, len(rows), step.batch_size)]
    batch = Batch.of(stream, chunks, pad_of(step.model), step.accelerator.device)
    with torch.no_grad(), step.computing():
        states = [wide(answer_states(step.model, part)) for part in batch.parts]
    return torch.cat(states).mean(0)
