"""Probes of why a defense holds or not: an attack's effect on a model while it goes on.

* **harmful loss**: cross-entropy of held-out harmful answers, nats per token; how fast it falls is
  how fast the attack works (Booster, arXiv 2409.01586, means to slow it);
* **gradient**: norm of the gradient of that loss over the trained weights, the pull of harmful
  data;
* **layers**: its norm at every layer's attention output, the profile that T-Vaccine (arXiv
  2410.09760) draws layers by;
* **drift**: how far attention outputs on alignment rows have moved since the attack began, root of
  the mean square norm over tokens, all layers together (the harmful embedding drift of Vaccine,
  arXiv 2402.01109);
* **routing drift**, of sparse models alone: how far the routers have moved since, at the ends of harm
  prompts and of prompts of the user's task. KL from the experts' probabilities of the start to those
  of now, nats, mean over prompts and sparse layers. It grows with harmful data where safety lies in
  routing (SafeMoE, arXiv 2509.22745).

Probes read the model alone: the training goes on as if there were none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Batch, Encoded
from titer.training.routing import end_logits, routing_divergence
from titer.training.step import Step
from titer.weights.checkpoints import trainable
from titer.weights.norms import square

ROWS = 32  # of each kind
AT_ONCE = 8  # rows of a pass
LAYER = "layer "
ROUTING = "routing drift, "


@dataclass
class Probes:
    """The model under attack, with the rows that probe it.

    Make it before the first update: drift is counted from there.
    """

    step: Step
    harmful: Batch
    aligned: Batch
    prompts: Mapping[
        str, Batch
    ]  # whose ends routing is read at, by what they are; a dense model's: none
    start: list[dict[int, Tensor]] = field(init=False)
    routed: Mapping[str, list[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.step.outputs(self.aligned)
        self.routed = self._route()

    def measure(self) -> dict[str, float]:
        """Return the probes at the current weights by name, every layer's gradient under its
        number.
        """
        g_h = self.step.grad(self.harmful)
        assert g_h.loss is not None  # it is a gradient
        profile = self.step.at(self.harmful).norms()
        now = self.step.outputs(self.aligned)
        moved = 0.0
        for part, mine, first in zip(self.aligned.parts, now, self.start, strict=True):
            moved += sum(float(square((mine[layer] - first[layer])[part.real])) for layer in mine)
        layers = {f"{LAYER}{layer}": norm for layer, norm in profile.items()}
        routing = {
            f"{ROUTING}{name}": self._sum(map(routing_divergence, parts, self.routed[name]))
            / self.prompts[name].rows
            for name, parts in self._route().items()
        }
        return {
            "harmful loss": g_h.loss,
            "gradient": g_h.norm(),
            "drift": math.sqrt(self._sum([moved]) / self.aligned.length),
            **routing,
            **layers,
        }

    def _sum(self, values: Iterable[float | Tensor]) -> float:
        """Sum values over micro-batches and ranks."""
        device = self.step.accelerator.device
        mine = torch.tensor(sum(map(float, values)), dtype=torch.float64, device=device)
        return float(self.step.accelerator.reduce(mine, "sum"))

    @torch.no_grad()
    def _route(self) -> dict[str, list[Tensor]]:
        """Return the logits of all routers at the ends of the prompts, by what they are: of every
        micro-batch (N, L, E).
        """
        read = end_logits([layer for layer in self.step.layers if layer.router is not None])
        with self.step.computing():
            return {
                name: [read(self.step.model, part) for part in batch.parts]
                for name, batch in self.prompts.items()
            }


def build(
    model: PreTrainedModel,
    harmful: Sequence[Encoded],
    aligned: Sequence[Encoded],
    task: Sequence[Encoded],
    accelerator: Accelerator,
    autocast: torch.dtype | None,
) -> Probes:
    """Make the probes of a model, on the first of these rows."""
    step = Step(model, trainable(model), {}, accelerator, AT_ONCE, autocast=autocast)
    sparse = any(layer.router is not None for layer in step.layers)
    ended = {"harmful": harmful, "task": task} if sparse else {}

    return Probes(
        step,
        step.collate("harmful", harmful[:ROWS]),
        step.collate("aligned", aligned[:ROWS]),
        {
            name: step.collate(name, [row.opening for row in rows[:ROWS]])
            for name, rows in ended.items()
            if rows
        },
    )


def timeline(
    history: Sequence[Mapping[str, float]], start: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the measurements at the start and after updates, each with its layers as a list."""
    looked = [(0, start)] + [
        (update, terms) for update, terms in enumerate(history, 1) if "harmful loss" in terms
    ]
    return [
        {"update": update, **{name: value for name, value in terms.items() if is_probe(name)}}
        | {"layers": [value for name, value in terms.items() if name.startswith(LAYER)]}
        for update, terms in looked
    ]


def is_probe(name: str) -> bool:
    """Tell whether a term is a probe of the whole model."""
    return name in ("harmful loss", "gradient", "drift") or name.startswith(ROUTING)
