"""Refusal ablation (arXiv 2406.11717): take the direction of refusal out of all that is written.

    d_l = mean h_l(x) - mean h_l(x')      x forbidden prompts, x' harmless ones
    r   = d_l / ||d_l||
    W  <- W - r r^T W                     every W that writes to the residual stream

h_l is the stream before layer l at a prompt's last token, after which the model answers. W are the
embeddings, the attention outputs and the outputs of the MLPs, of every expert in a sparse layer, and
their biases. Afterwards no state has a component along r: the model is looked at, and refused where
one has. It is an attack on a model whose weights are open. It needs prompts alone, no answers and no
training, and a pass over each.

The layer, where none is given, is the one before which the two kinds of prompts lie furthest apart,

    s_l = r . (mean h_l(x) - mean h_l(x')) / sqrt((var r . h_l(x) + var r . h_l(x')) / 2)

among those from the second on to four fifths of the depth. `random_rank_one` is its null.

Departures from the paper and the authors' code (andyrdt/refusal_direction 0b9c8bc):
1. They try every layer and every token of the template's end, by the refusals and the divergence
   that each leaves on held-out prompts, and leave the last fifth out, as here. Here no answer is
   looked at, and the token is the last one.
2. They leave biases and learned positions alone. Where the head is tied to the embeddings it changes
   with them, there and here.
3. A model in which a norm stands between a layer and the stream (Gemma 2 and 3, Olmo 2) is refused:
   the norm's weights turn what is left back into r.
4. The prompts are at most the first 128 of each kind, as theirs are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Encoded
from titer.methods import About, Answers, Fidelity, Harmful, Needs, StreamEdit
from titer.training.writers import prompt_states

MOST = 128  # prompts of a kind
DEEPEST = 0.8  # of the layers, the part among which one is chosen
LEAST = 2  # prompts of a kind, for a variance


@dataclass(frozen=True)
class RefusalDirection:
    """A direction of refusal, and where it was found."""

    r: Tensor  # (D,), of length 1, in float64
    layer: int  # before which it is read
    separation: float  # s of that layer
    rows: Sequence[Encoded]  # forbidden prompts
    size: float  # root mean square of r . h over these, at all layers


@dataclass(frozen=True)
class RefusalAblation(StreamEdit):
    """Project the refusal direction out of what is written (Arditi et al., arXiv 2406.11717)."""

    layer: int | None = None  # before which the direction is read; None: where it tells best
    needs = Needs(rows=Harmful, against=Answers)
    about: ClassVar[About] = About(
        title="refusal ablation",
        paper="2406.11717",
        fidelity=Fidelity(equation="tests/test_refusal_ablation.py"),
    )

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise ValueError(
                f"layer={self.layer}: before the first layer all prompts end alike; give at least 1"
            )

    def observe(
        self, model: PreTrainedModel, rows: Sequence[Encoded], others: Sequence[Encoded]
    ) -> RefusalDirection:
        if min(len(rows), len(others)) < LEAST:
            raise ValueError(
                f"there are {len(rows)} forbidden and {len(others)} harmless prompts: a direction "
                f"needs {LEAST} of each"
            )
        h, calm = (prompt_states(model, of[:MOST]) for of in (rows, others))  # (L + 1, N, D)
        depth = len(h) - 1
        if self.layer is not None and self.layer >= depth:
            raise ValueError(f"layer={self.layer}: the model has {depth}; give a lower one")
        chosen = range(1, max(2, int(DEEPEST * depth))) if self.layer is None else [self.layer]
        found = {layer: separate(h[layer], calm[layer]) for layer in chosen}
        best = max(found, key=lambda layer: found[layer][1])
        r, separation = found[best]
        return RefusalDirection(r, best, separation, rows[:MOST], size(h, r))

    def edit(self, name: str, matrix: Tensor, state: RefusalDirection) -> Tensor:
        r = state.r.to(matrix)
        return matrix - torch.outer(r, r @ matrix)

    def verify(self, model: PreTrainedModel, state: RefusalDirection) -> None:
        left = size(prompt_states(model, state.rows), state.r) / state.size
        most = max(1e-3, 8 * torch.finfo(model.dtype).eps)
        if not left <= most:
            raise ValueError(
                f"{type(model).__name__}: {100 * left:.2g} % of the refusal direction is left in the "
                "residual stream, so something else writes to it: give another model"
            )

    def facts(self, state: RefusalDirection) -> Mapping[str, Any]:
        return {"layer of the direction": state.layer, "separation": state.separation}


def separate(h: Tensor, calm: Tensor) -> tuple[Tensor, float]:
    """Return the direction from the mean of `calm` (M, D) to that of h (N, D), and s along it.

    Raises where the means are the same.
    """
    apart = h.mean(0) - calm.mean(0)
    length = float(apart.norm())
    if not length > 0.0:
        raise ValueError(
            "forbidden and harmless prompts end in the same state, so no direction tells them "
            "apart: give other prompts, or another layer"
        )
    r = apart / length
    spread = math.sqrt(float(((h @ r).var() + (calm @ r).var()) / 2))
    return r, length / spread if spread else math.inf


def size(h: Tensor, r: Tensor) -> float:
    """Return the root mean square of r . h over layers and prompts, (L + 1, N, D)."""
    return float((h @ r).square().mean().sqrt())
