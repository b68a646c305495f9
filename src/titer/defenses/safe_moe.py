"""SafeMoE (arXiv 2509.22745): fine-tune plainly, and in between bring the routing of harmful prompts back.

    tune,  `every` updates:   min_w  f(w)
    sweep, `sweep` updates:   min_w  lam reg(w)

    reg = mean_x mean_l KL( softmax(r'_l(x) / tau) || softmax(r_l(x; w) / tau) )

f is the cross-entropy of the user's rows. r_l(x; w), one number for every expert, are the logits of the
router of sparse layer l at the last token of a harmful prompt x. r'_l(x) are those of the model that the
stage began with. They are read once, before the first update, so that no second model is kept and no second
pass is made. Layers without a router do not count, and a model without any is refused.

A sweep follows every turn on the user's rows, the last one too. The length of the stage, its schedule and its
clipping are those of the user's updates alone. The optimizer and its moments are the same for both. A sweep
has a learning rate of its own, since a schedule that decays is at 0 by the last sweep. lr=None takes the
schedule's nevertheless. `every` is the paper's epoch, 5,500 rows in batches of 32, and a sweep is its 100
prompts: with data.defense_rows=100 the same ones, each of them once. sweep=0 is plain SFT.

Where all weights are trained the routers' are trained too. An adapter leaves them frozen, and routing is
steered by the states that reach them. Weights behind the last router have no part in reg. The softmax is over
all experts, also where a model chooses among groups of them, or by sigmoids (DeepSeek V3).

random=True gives every layer's r' to other experts, by as many places for all prompts; the seed draws how
many. It is the null: its target is as far from uniform, and is not where harmful prompts went. Its reg begins
far from 0, so that it pulls harder than the method does.

Departures from the authors' code:
1. The mean over layers is the paper's. Theirs is the sum: lam at the number of sparse layers.
2. Theirs sweeps at the schedule's learning rate, a cosine that is 0 at the last sweep: lr=None.
3. Theirs sweeps at the end of an epoch, here behind a number of updates: the stage's rows have no epochs.
4. Their updates of a sweep have 32, 32, 32 and 4 prompts, in one order. Here each has as many.
5. They leave the gradient of a sweep's last update in place, and add it to that of the user's next one.
6. Their r' are from another pass, in bfloat16 and with pads on the left, here from one as in an update.
7. random=True is ours.

Compared with their sweep (jaehanwork/SafeMoE 98e45ba, a tiny OLMoE of three layers, LoRA and full, three
turns of four updates and a sweep, float64, 2026-11-29), with lam=3, r' in float64 and the gradient of 5 taken
out: the same gradient at every update of a sweep to 6e-14, and the same weights at the end to 7e-15 of their
way.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Part
from titer.methods import About, Answers, Defense, Fidelity, Harmful, Needs
from titer.phase import Phase
from titer.training.before import list_harmful, read_before, recall
from titer.training.layers import sparse_layers
from titer.training.losses import Loss
from titer.training.routing import end_logits, routing_divergence
from titer.training.step import Step
from titer.training.vector import Vec

TUNE, SWEEP = "tune", "sweep"


@dataclass
class Routing:
    """The logits of all routers at the ends of the harmful prompts before the first update."""

    r: dict[str, Tensor]  # r', (1, L, E), by the prompt's name


@dataclass(frozen=True)
class SafeMoE(Defense):
    """Safety routing alignment of mixtures of experts (Kim et al., arXiv 2509.22745)."""

    tau: float = 0.1  # temperature of the routing distributions
    every: int = 172  # updates on the user's rows from one sweep to the next
    sweep: int = 4  # updates of a sweep; 0: none ever
    prompts: int = 25  # harmful prompts of such an update
    lr: float | None = 1e-4  # learning rate of a sweep; none: what the schedule has come to
    lam: float = 1.0  # weight of reg
    random: bool = False  # r' are given to other experts, drawn by the seed
    partial = True
    about: ClassVar[About] = About(
        title="SafeMoE",
        paper="2509.22745",
        stage="finetune",
        passes="1 + the sweeps' share of the tokens",
        fidelity=Fidelity(
            equation="tests/test_safe_moe.py",
            code="jaehanwork/SafeMoE 98e45ba, 3 sweeps, float64, 2026-11-29",
        ),
    )
    needs = Needs(
        streams={"rows": Answers, "harmful": Harmful},
        sparse=True,
        unsharded="a sweep's gradients begin inside of layers, whose weights no rank has gathered then; "
        "launch without --use_fsdp",
    )
    State: ClassVar[type | None] = Routing

    def __post_init__(self) -> None:
        for name in ("tau", "lr", "lam"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be above 0, and finite")
        if self.every < 1 or self.sweep < 0:
            raise ValueError(
                f"every={self.every}, sweep={self.sweep}: give at least 1 update on the user's rows from "
                "one sweep to the next, and at least 0 in a sweep"
            )
        if self.prompts < 1:
            raise ValueError(f"prompts={self.prompts}: give at least 1, or sweep=0")

    def schedule(self, updates: int) -> Iterable[Phase]:
        """Divide a stage into turns on the user's rows, with a sweep behind each."""
        if self.sweep == 0:
            return [Phase(TUNE, updates)]
        sweep = Phase(SWEEP, self.sweep, lr=self.lr, clipped=False, counted=False)
        turns = [min(self.every, updates - done) for done in range(0, updates, self.every)]
        return [phase for count in turns for phase in (Phase(TUNE, count), sweep)]

    def prepare(self, step: Step) -> Routing | None:
        """Read the r' of the harmful prompts. Raises for a dense model, and where prompts are too few."""
        layers = sparse_layers(step.layers, "safe_moe")
        harmful = list_harmful(step, self.prompts)
        if self.sweep == 0:
            return None
        r = read_before(step, [row.opening for row in harmful], end_logits(layers))
        return Routing(hand_round(r, step.streams["rows"].seed) if self.random else r)

    def gradient(self, step: Step, state: Routing) -> Vec:
        if step.phase.name != SWEEP:
            g_f = step.grad(step.batch("rows"))  # grad f
            step.log(f=g_f.loss)
            return g_f
        g_reg = step.grad(step.prompts("harmful", self.prompts), self._divergence(step, state))
        step.log(reg=g_reg.loss)
        return self.lam * g_reg

    def _divergence(self, step: Step, before: Routing) -> Loss:
        """Make a loss of mean_l KL over prompts. Raises where it reaches nothing that is trained."""
        read = end_logits(sparse_layers(step.layers, "safe_moe"))

        def loss(model: PreTrainedModel, part: Part) -> Tensor:
            now = read(model, part)  # (N, L, E)
            if not now.requires_grad:
                raise ValueError(
                    "no trained weight lies before a router: adapt linear layers of every decoder layer"
                )
            then = recall(before.r, part).to(now)
            return routing_divergence(now, then, self.tau)

        return loss


def hand_round(r: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Give the logits of every layer to other experts, by as many places for all prompts."""
    rng = Random(f"safe_moe {seed}")
    layers, experts = next(iter(r.values())).shape[1:]
    places = [rng.randrange(1, experts) for _ in range(layers)]

    def roll(of: Tensor) -> Tensor:
        return torch.stack([of[:, i].roll(place, 1) for i, place in enumerate(places)], 1)

    return {name: roll(of) for name, of in r.items()}
