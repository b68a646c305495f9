"""SPPFT (arXiv 2408.17003): fine-tune around the layers in which harmful prompts part from ordinary ones.

    w_l <- w_l - eta grad_l f(w)  outside of the safety layers,    w_l <- w_l  within them

    gap_l = angle(mean cos(n_l, m_l)) - angle(mean cos(n_l, n'_l))

f is the cross-entropy of the user's rows. n_l and m_l are the hidden states (D,) behind decoder layer l at
the last token of an ordinary and of a harmful prompt, where the model is about to answer; n'_l is that of
another ordinary prompt. The means are over all pairs of `prompts` of either kind, in the model that the stage
begins with. The safety layers are those from where the gap appears to where it is flat again for the first
time: the layer that widens it most, and around it all in a row that widen it by at least the share `flat` of
that. `layers` names them instead, as the paper's own search finds them, say.

Harmful prompts are the defender's. Ordinary ones are those of its alignment rows to which it has no harmful
answer: so give it harmful answers to all that it refuses. Where it has none to some of them, these count as
ordinary, and the gap is the smaller for it. Ordinary prompts of many kinds are as far from one another as
from harmful ones. Then there is no gap, and the stage is refused: `layers` has to name the safety layers. So
it is in the embedded lab.

The weights of the safety layers are frozen, those of an adapter on them too: none of their gradients is
computed, so an update costs no more than one of SFT. random=True freezes as many layers in a row elsewhere,
of those that share the fewest with the safety layers, drawn by the seed: the null, for where these lie to
beat. Where they are more than half of all, the two share some, and the null is the weaker for it.

Departures from the paper and from the authors' code:
1. In the paper the gap gives a first range. Its ends are then moved, to where the number of harmless prompts
   that are refused with the weights inside scaled is the largest. That takes answers to some hundred prompts
   for every range that is tried, and is not done here.
2. The paper reads the range off a curve by eye; `flat` is ours.
3. All pairs of prompts count, where theirs are 500 that are drawn.
4. A layer is frozen as a whole. Their code leaves the weights of its norms in training.
5. The state behind the last layer is taken before the model's last norm, theirs after it.
6. Their script trains all weights, and freezes the layers between `begin_num` and `end_num`, neither of the
   two included.

Compared with their code (listen0425/Safety-Layers 8af5b13, as a fork keeps it, a tiny Llama of six layers,
float64, 2026-11-29): the cosines of the same pairs to 5e-16, the gap of all pairs to 5e-14 degrees, and the
same layers frozen, but for 4.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import ClassVar

import torch
from torch import Tensor, nn

from titer.data.batches import Encoded
from titer.methods import About, Answers, Defense, Fidelity, Harmful, Needs, Refusals
from titer.training.step import Step
from titer.training.vector import Vec
from titer.training.writers import prompt_states


@dataclass
class SafetyLayers:
    """The layers that are frozen."""

    first: int
    last: int
    # degrees, behind every layer; none where the layers are given
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SPPFT(Defense):
    """Safely partial-parameter fine-tuning (Li et al., arXiv 2408.17003)."""

    # the first and the last safety layer, counted from 0, and from the last where negative; none:
    # found by the gap
    layers: tuple[int, int] | None = None
    prompts: int = 100  # of either kind that the gap is of; all, where there are no more
    flat: float = 0.25  # share of the largest rise of the gap below which it counts as flat
    random: bool = False  # as many layers elsewhere, drawn by the seed
    partial = True
    about: ClassVar[About] = About(
        title="SPPFT",
        paper="2408.17003",
        stage="finetune",
        passes="at most 1",
        lean={"layers": [2, 3]},
        fidelity=Fidelity(
            equation="tests/test_sppft.py",
            code="listen0425/Safety-Layers 8af5b13, gap and frozen layers, float64, 2026-11-29",
        ),
    )
    State: ClassVar[type | None] = SafetyLayers

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise ValueError(
                f"prompts={self.prompts}: two ordinary prompts are a pair, give at least 2"
            )
        if not 0.0 < self.flat <= 1.0:
            raise ValueError(f"flat={self.flat}: a share above 0 and at most 1")

    @property
    def needs(self) -> Needs:
        found = {} if self.layers else {"alignment": Refusals, "harmful": Harmful}
        return Needs(streams={"rows": Answers, **found})

    def prepare(self, step: Step) -> SafetyLayers:
        found = self._find(step) if self.layers is None else self._given(step, *self.layers)
        if self.random:
            more = found.last - found.first
            # how many layers a range that begins so shares with the safety layers
            shared = {
                first: max(more + 1 - abs(first - found.first), 0)
                for first in range(step.depth - more)
                if first != found.first
            }
            others = [first for first in shared if shared[first] == min(shared.values())]
            if not others:
                raise ValueError(
                    f"random=True: of {step.depth} decoder layers no other {more + 1} lie in a row; freeze "
                    "fewer"
                )
            rng = Random(f"sppft {step.streams['rows'].seed}")
            found.first = rng.choice(others)
            found.last = found.first + more
        return found

    def gradient(self, step: Step, state: SafetyLayers) -> Vec:
        with step.without(range(state.first, state.last + 1)):
            g_f = step.grad(step.batch("rows"))
        step.log(f=g_f.loss, first=state.first, last=state.last)
        if state.gaps:
            step.log(gap=state.gaps[state.last])
        return g_f

    def _given(self, step: Step, *layers: int) -> SafetyLayers:
        depth = step.depth
        first, last = (layer + depth if layer < 0 else layer for layer in layers)
        if not 0 <= first <= last < depth:
            raise ValueError(
                f"layers={list(layers)}: give the first and the last of some of the model's {depth} "
                f"decoder layers, 0 to {depth - 1}"
            )
        return SafetyLayers(first, last)

    def _find(self, step: Step) -> SafetyLayers:
        """Find the safety layers by the gap. Raises where there is none to be found."""
        harmful = epoch(step, "harmful")
        known = {row.ids[: row.answer] for row in harmful}
        ordinary = [row for row in epoch(step, "alignment") if row.ids[: row.answer] not in known]
        if len(ordinary) < 2:
            raise ValueError(
                f"{len(ordinary)} of the alignment rows' prompts are ordinary ones, without a harmful "
                "answer: add some, or give layers=[first, last]"
            )
        with step.computing():
            states = [
                prompt_states(step.model, of[: self.prompts]).transpose(0, 1)  # (N, L + 1, D)
                for of in (ordinary, harmful)
            ]
        gap = gaps(*states).tolist()
        first, last = widest(gap, self.flat)
        return SafetyLayers(first, last, gap[1:])


def epoch(step: Step, stream: str) -> list[Encoded]:
    """Draw an epoch of a stream, and return a row of every prompt, in the order of their first ones."""
    rows = step.streams[stream]
    first: dict[tuple[int, ...], Encoded] = {}
    for row in rows.take(len(rows.rows)):
        first.setdefault(row.ids[: row.answer], row)
    return list(first.values())


def gaps(ordinary: Tensor, harmful: Tensor) -> Tensor:
    """Return the gap before every layer and after the last one, in degrees: (L + 1,)."""
    n, m = (nn.functional.normalize(states, dim=2) for states in (ordinary, harmful))
    count = len(n)
    among = (n.sum(0).square().sum(1) - count) / (count * (count - 1))  # mean cos(n, n')
    across = (n.mean(0) * m.mean(0)).sum(1)  # mean cos(n, m)
    return torch.rad2deg(across.clamp(-1, 1).arccos() - among.clamp(max=1).arccos())


def widest(gap: list[float], flat: float) -> tuple[int, int]:
    """Return the first and the last of the layers in a row that widen the gap, around the one that
    does most. Raises where the gap is none behind them.
    """
    rises = [after - before for before, after in pairwise(gap)]
    most = max(rises)
    at = rises.index(most)
    flats = [i for i, rise in enumerate(rises) if rise < flat * most]
    before, after = ([i for i in flats if i < at], [i for i in flats if i > at])
    first, last = max(before, default=-1) + 1, min(after, default=len(rises)) - 1
    if not (most > 0.0 and gap[last + 1] > 0.0):
        raise ValueError(
            "no layer parts harmful prompts from ordinary ones by more than these are apart: give "
            "ordinary ones that differ from them in little else, or layers=[first, last]"
        )
    return first, last
