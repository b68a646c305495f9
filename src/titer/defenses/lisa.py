"""Lisa (arXiv 2405.18641): align and tune in turn, neither of them far from where the other ended.

    align, K1 updates:   min_w  a(w) + rho/2 ||w - w_tune||^2     w_tune, where tuning ended last
    tune,  K2 updates:   min_w  f(w) + rho/2 ||w - w_align||^2    w_align, where aligning ended last

a is the cross-entropy of the defender's alignment rows, f that of the user's (f and h in the paper). Aligning
comes first. Either state begins where the other ended, so its anchor is where it began itself: one copy of
the trained weights is kept, which is taken as a state begins. In the first `warmup` of the stage there is no
proximal term, but states and their anchors go on. A user's row is drawn while tuning alone: those seen, and
their order, are those of SFT with as many updates as there are of tuning.

The distance is over what is trained: with an adapter over its factors (space="weights"), so that rho
depends on their scale. space="product" takes it over what an adapter adds to its layer W,

    ||s (B A - B' A')||_F^2,    s = alpha / r

by matrices of its rank, so that factors which make the same product are as near.

k1=0 is SFT with a proximal term to the start, and with rho=0 plain SFT; rho=0 alone is bi-state optimization.
K1 and K2 are counted in optimizer updates, and both kinds count towards the length of the stage, which may
end in either state.

Departures from the authors' code:
1. It counts micro-batches, so that a switch may fall into an update. Here it never does.
2. It draws a batch of the user's rows at every update, and throws it away while aligning, so that
   K1 / (K1 + K2) of an epoch is skipped. Here no row is.
3. The paper has no warm-up; theirs is a tenth of the stage and one update. warmup=0 is the paper.
4. Theirs trains in training mode, with dropout. It accepts K2 = 0, which never learns the user's task.
5. Its README has the anchors swapped; its trainer has them as above.
6. space="product" is ours.

Compared with their trainer's step (git-disl/Lisa 68e36595, LoRA and full, 40 updates of four turns, float64,
2026-11-29), with a loss in float64, no dropout and the one update of 3: the same gradient at every update to
5e-14.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal

import torch
from torch import Tensor

from titer.methods import About, Answers, Defense, Fidelity, Kind, Needs, Refusals
from titer.phase import Phase
from titer.training.step import Step
from titer.training.vector import Vec
from titer.weights.adapters import find_adapters, has_adapter
from titer.weights.shards import local, norm_over

ALIGN, TUNE = "align", "tune"
EARLY = "early "  # begins the name of a phase in the warm-up, which has no proximal term


@dataclass
class Origin:
    """The weights at which the present state began, and that state's name."""

    weights: dict[str, Tensor]  # by parameter
    state: str = ""


@dataclass(frozen=True)
class Lisa(Defense):
    """Lazy safety alignment: bi-state optimization with proximal terms (Huang et al., arXiv 2405.18641)."""

    k1: int = 100  # K1, updates on alignment rows in a turn; 0: none ever
    k2: int = 900  # K2, updates on the user's rows in a turn
    rho: float = 1.0  # rho, weight of the proximal term
    warmup: float = (
        0.1  # share of the stage's updates, at its beginning, that have no proximal term
    )
    space: Literal["weights", "product"] = "weights"  # whose distance it is
    about: ClassVar[About] = About(
        title="Lisa",
        paper="2405.18641",
        stage="finetune",
        passes="1",
        fidelity=Fidelity(
            equation="tests/test_lisa.py",
            code="git-disl/Lisa 68e36595, 40 updates, float64, 2026-11-29",
        ),
    )
    streams: ClassVar[dict[str, Kind]] = {"rows": Answers, "alignment": Refusals}
    State: ClassVar[type | None] = Origin

    def __post_init__(self) -> None:
        if self.k1 < 0 or self.k2 < 1:
            raise ValueError(
                f"k1={self.k1}, k2={self.k2}: give at least 0 updates on alignment rows, and at least 1 "
                "on the user's"
            )
        if not 0.0 <= self.rho < math.inf:
            raise ValueError(f"rho={self.rho}: must be at least 0, and finite")
        if not 0.0 <= self.warmup <= 1.0:
            raise ValueError(f"warmup={self.warmup}: a share lies between 0 and 1")

    @property
    def needs(self) -> Needs:
        product = "space='product' multiplies whole factors of adapters; take space='weights'"
        return Needs(self.streams, unsharded=product if self.space == "product" else "")

    def prepare(self, step: Step) -> Origin:
        if self.space == "product" and not has_adapter(step.model):
            raise ValueError(
                "space='product' is the distance of what an adapter adds to its layers, and all weights are "
                "trained here: set finetune.lora, or space='weights'"
            )
        return Origin({name: weight.detach().clone() for name, weight in step.parameters.items()})

    def schedule(self, updates: int) -> Iterable[Phase]:
        """Divide a stage into its states. Raises where it would end before the user's first row."""
        if updates <= self.k1:
            raise ValueError(
                f"k1={self.k1}: a stage of {updates} updates ends before its first one on the user's rows; "
                "lower k1, or train longer"
            )
        early = round(self.warmup * updates)

        def name(update: int) -> str:
            state = ALIGN if update % (self.k1 + self.k2) < self.k1 else TUNE
            return EARLY + state if update < early else state

        return [Phase(of, len(list(run))) for of, run in groupby(map(name, range(updates)))]

    def gradient(self, step: Step, state: Origin) -> Vec:
        name = step.phase.name.removeprefix(EARLY)
        if name != state.state:  # it begins, where the other one ended
            self._begin(step, state, name)
        g = step.grad(step.batch("alignment" if name == ALIGN else "rows"))  # grad a or grad f
        step.log(**{"a" if name == ALIGN else "f": g.loss})
        if self.rho == 0.0 or step.phase.name.startswith(EARLY):
            return g
        drift = weight_drift(step, state) if self.space == "weights" else product_drift(step, state)
        return g + self.rho * drift.within(g.names())

    def _begin(self, step: Step, state: Origin, name: str) -> None:
        state.state = name
        with torch.no_grad():
            for of, weight in step.parameters.items():
                state.weights[of].copy_(weight)


def weight_drift(step: Step, origin: Origin) -> Vec:
    """Return w - w', the gradient of 1/2 ||w - w'||^2. Its norm is logged.

    Every weight's norm is taken as soon as it is subtracted, while it is still in the cache, and not
    in float64: over all weights that would cost as much as the subtraction once more.
    """
    drift: dict[str, Tensor] = {}
    norms: list[Tensor] = []
    for name, weight in step.parameters.items():
        moved = drift[name] = weight.detach() - origin.weights[name]
        wide = torch.promote_types(moved.dtype, torch.float32)  # half cannot hold squares
        norms.append(torch.linalg.vector_norm(local(moved), dtype=wide))
    step.log(drift=norm_over(float(torch.stack(norms).double().norm()), drift.values()))
    return Vec.of(drift)


def product_drift(step: Step, origin: Origin) -> Vec:
    """Return the gradient of 1/2 ||s (B A - B' A')||^2, over B and A of every layer.

    The root of the sum of squares is logged. No matrix of the layer's shape is formed. Every expert's
    product counts by itself.
    """
    names = {id(weight): name for name, weight in step.parameters.items()}
    found: dict[str, Tensor] = {}
    square = 0.0
    with torch.no_grad():
        for of in find_adapters(step.model).values():
            name_b, name_a = names[id(of.b)], names[id(of.a)]
            now = of.read(of.b.double(), of.a.double())  # (out, r), (r, in), of experts stacked
            start = of.read(origin.weights[name_b].double(), origin.weights[name_a].double())
            moved = now + -1.0 * start  # s (B A - B' A'), of rank 2r
            assert now.a is not None  # it is an adapter's
            assert moved.a is not None
            square += moved.dot(moved)
            found[name_b], found[name_a] = torch.empty_like(of.b), torch.empty_like(of.a)
            g = of.read(found[name_b], found[name_a])  # views
            assert g.a is not None
            g.b.copy_(of.scaling * (moved.b @ (moved.a @ now.a.mT)))
            g.a.copy_(of.scaling * ((now.b.mT @ moved.b) @ moved.a))
    step.log(drift=math.sqrt(max(square, 0.0)))
    return Vec.of(found)
