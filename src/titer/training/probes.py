"""Probes of why a defense holds or not: an attack's effect on a model while it goes on.

* **harmful loss**: cross-entropy of held-out harmful answers, nats per token; how fast it falls is
  how fast the attack works (Booster, arXiv 2409.01586, means to slow it);
* **gradient**: norm of the gradient of that loss over the trained weights, the pull of harmful
  data;
* **layers**: its norm at every layer's attention output, the profile that T-Vaccine (arXiv
  2410.09760) draws layers by;
* **drift**: how far attention outputs on alignment rows have moved since the attack began, root of
  the mean square norm over tokens, all layers together (the harmful embedding drift of Vaccine,
  arXiv 2402.01109).

Probes read the model alone: the training goes on as if there were none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Batch, Encoded
from titer.training.losses import pad_of
from titer.training.step import Step
from titer.weights.checkpoints import trainable
from titer.weights.norms import square

ROWS = 32  # of each kind
AT_ONCE = 8  # rows of a pass
LAYER = "layer "


@dataclass
class Probes:
    """The model under attack, with the rows that probe it.

    Make it before the first update: drift is counted from there.
    """

    step: Step
    harmful: Batch
    aligned: Batch
    start: list[dict[int, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.step.outputs(self.aligned)

    def measure(self) -> dict[str, float]:
        """Return the probes at the current weights by name, every layer's gradient under its
        number.
        """
        g_h = self.step.grad(self.harmful)
        assert g_h.loss is not None  # it is a gradient
        profile = self.step.at(self.harmful).norms()
        now = self.step.outputs(self.aligned)
        total = 0.0
        for part, mine, first in zip(self.aligned.parts, now, self.start, strict=True):
            total += sum(
                float(square((mine[layer] - first[layer])[part.mask.bool()])) for layer in mine
            )
        tokens = sum(int(part.mask.sum()) for part in self.aligned.parts)
        layers = {f"{LAYER}{layer}": norm for layer, norm in profile.items()}
        return {
            "harmful loss": g_h.loss,
            "gradient": g_h.norm(),
            "drift": math.sqrt(total / tokens),
            **layers,
        }


def build(
    model: PreTrainedModel,
    harmful: Sequence[Encoded],
    aligned: Sequence[Encoded],
    accelerator: Accelerator,
    autocast: torch.dtype | None,
) -> Probes:
    """Make the probes of a model, on the first of these rows."""
    step = Step(model, trainable(model), {}, accelerator, AT_ONCE, autocast=autocast)
    return Probes(
        step,
        *(
            _batch(rows[:ROWS], name, model, accelerator)
            for name, rows in (("harmful", harmful), ("aligned", aligned))
        ),
    )


def timeline(
    history: Sequence[Mapping[str, float]], start: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the measurements at the start and after updates, each with its layers as a list."""
    looked = [(0, start)] + [
        (update, terms) for update, terms in enumerate(history, 1) if "harmful loss" in terms
    ]
    return [
        {"update": update, **{name: terms[name] for name in ("harmful loss", "gradient", "drift")}}
        | {"layers": [value for name, value in terms.items() if name.startswith(LAYER)]}
        for update, terms in looked
    ]


def _batch(
    rows: Sequence[Encoded], name: str, model: PreTrainedModel, accelerator: Accelerator
) -> Batch:
    chunks = [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]
    return Batch.of(name, chunks, pad_of(model), accelerator.device)
