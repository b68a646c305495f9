"""SBR (Safety Anchor, arXiv 2605.05995): fine-tune while harmful prompts end in the states of the start.

    min_w  f(w) + lam d(w),    d = mean_x 1/D ||h(x; w) - h'(x)||^2

f is the cross-entropy of the user's rows. h(x; w), of D channels, is the hidden state at the last token of a
harmful prompt x, from which the first token of an answer is predicted. It is taken behind the model's final
norm, where the head makes logits of it. h'(x) is that of the model that the stage began with. At the start d
is 0 and has no gradient. The sum over channels is divided by D, and lam is 50, as in the authors' code.

Each update draws `prompts` of the defender's harmful rows, whose answers nothing reads. With
data.defense_rows=8 and prompts=8 every update has the same eight, as in their code.

The h' are read once, before the first update, when the model is what the stage begins with: a pass over the
distinct harmful prompts without logits and without a gradient, divided among the ranks. D numbers for every
prompt are kept, and no weights. With lam=0 nothing is read.

A prompt stands beside others there than in an update, and rounds otherwise. So d is at the start what
rounding leaves of 0: some 1e-14 in float32; in bfloat16 some 1e-5, whose gradient, times lam, counts beside
that of f until the states have moved further than they round.

along="refusal" holds the state along one direction u alone, after ProCon (arXiv 2509.06795):

    d = mean_x 1/D (u . (h(x; w) - h'(x)))^2,    u = (m - m') / ||m - m'||

m is the mean of h' over harmful prompts, m' over ordinary ones, which are the prompts of the user's rows: of
either at most 128, looked at before the first update without being drawn. This d is a part of the other one,
so lam is on the same scale. Harmful prompts among the user's shorten m - m' and do not turn it, as far as
they are like the defender's.

What d does not hold: the head, where all weights are trained, and what follows the first token of an answer.

Departures from the authors' code:
1. It adds d of the same eight prompts at every micro-batch. Here it is added once an update.
2. It keeps the h' of eight fixed prompts. Here those of all harmful prompts are kept, and the prompts of an
   update are others than those of the one before.
3. It finds the end of a prompt by counting tokens, which is right where pads are on the right.
4. The default of `prompts` is ours, for its cost. They have eight beside a micro-batch of eight rows.
5. along="refusal" is ours. Of ProCon the abstract alone was read: it takes the states of the rows that are
   trained on, and holds them more strongly early in the stage.

Compared with their trainer's loss (soyoaaa/SBR 188990b, LoRA and full, 30 updates with prompts=8, one
micro-batch, float64, 2026-11-29), with its casts to float32 taken out: the same gradient at every update to
2e-14, and to 8e-7 with them. The h' were computed anew at every update then, and not kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Encoded, Part, collate
from titer.methods import About, Answers, Defense, Fidelity, Harmful, Needs
from titer.training.before import list_harmful, read_before, recall
from titer.training.losses import Loss, answer_states, wide
from titer.training.step import Step
from titer.training.vector import Vec

MOST = 128  # prompts of a kind that the refusal direction is a mean over


@dataclass
class EndStates:
    """The states at the ends of the harmful prompts before the first update."""

    h: dict[str, Tensor]  # h', (1, D), by the prompt's name
    u: Tensor | None  # (D,), of length 1, where the states are held along it alone


@dataclass(frozen=True)
class Anchor(Defense):
    """Safety bottleneck regularization, SBR (Lu et al., arXiv 2605.05995)."""

    lam: float = 50.0  # lambda, weight of the distance
    prompts: int = 2  # harmful prompts of an update
    along: Literal["all", "refusal"] = "all"  # the directions in which the state is held
    about: ClassVar[About] = About(
        title="SBR",
        paper="2605.05995",
        stage="finetune",
        passes="1 + the prompts' share of the tokens",
        fidelity=Fidelity(
            equation="tests/test_anchor.py",
            code="soyoaaa/SBR 188990b, 30 updates, float64, 2026-11-29",
        ),
    )
    needs = Needs(streams={"rows": Answers, "harmful": Harmful})
    State: ClassVar[type | None] = EndStates

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam < math.inf:
            raise ValueError(f"lam={self.lam}: must be at least 0, and finite")
        if self.prompts < 1:
            raise ValueError(f"prompts={self.prompts}: give at least 1, or lam=0")

    def prepare(self, step: Step) -> EndStates | None:
        """Read the h' of the harmful prompts, and find u. With lam=0 there is nothing to read."""
        harmful = list_harmful(step, self.prompts)
        if self.lam == 0.0:
            return None
        h = read_states(step, harmful)
        return EndStates(h, find_direction(step, h) if self.along == "refusal" else None)

    def gradient(self, step: Step, state: EndStates | None) -> Vec:
        g_f = step.grad(step.batch("rows"))  # grad f
        step.log(f=g_f.loss)
        if state is None:
            return g_f
        g_d = step.grad(step.prompts("harmful", self.prompts), distance(state))  # grad d
        step.log(d=g_d.loss)
        return g_f + self.lam * g_d


def distance(before: EndStates) -> Loss:
    """Make a loss of 1/D ||h - h'||^2 over prompts, or of its part along a direction."""

    def loss(model: PreTrainedModel, part: Part) -> Tensor:
        h = end_states(model, part)  # (N, D)
        moved, u = h - recall(before.h, part).to(h), before.u
        square = moved.square().sum(1) if u is None else (moved * u.to(h)).sum(1).square()
        return square.sum() / h.shape[1]

    return loss


def find_direction(step: Step, h: Mapping[str, Tensor]) -> Tensor:
    """Return u, (D,), from the states of the harmful prompts. Raises where m and m' are the same."""
    ordinary = take_first(step, "rows")
    theirs = read_states(step, ordinary)
    apart = mean_state(h, take_first(step, "harmful")) - mean_state(theirs, ordinary)  # m - m'
    length = float(apart.norm())
    if not length > 0.0:
        raise ValueError(
            "along='refusal': harmful and ordinary prompts end in the same state, so no direction tells "
            "them apart; give along='all'"
        )
    return apart / length


def read_states(step: Step, rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Read the states (1, D) at the ends of the prompts of rows, by the prompts' names."""
    return read_before(step, [row.opening for row in rows], end_states)


def mean_state(h: Mapping[str, Tensor], rows: Sequence[Encoded]) -> Tensor:
    """Average the states at the ends of the prompts of rows: (D,)."""
    return recall(h, collate([row.opening for row in rows], pad=0)).mean(0)


def take_first(step: Step, stream: str) -> list[Encoded]:
    """Return the first rows of a stream, at most 128. None is drawn."""
    order = replace(step.streams[stream])  # with a position of its own
    return order.take(min(MOST, len(order.rows)))


def end_states(model: PreTrainedModel, part: Part) -> Tensor:
    """Return the states at the ends of prompts, in float32 at least: (N, D)."""
    return wide(answer_states(model, part))
