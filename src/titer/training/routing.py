"""How a sparse model routes prompts: by the logits of its routers at their last tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Part
from titer.training.layers import Layer, watch_routers
from titer.training.losses import kl_divergence, run, wide


def end_logits(layers: Sequence[Layer]) -> Callable[[PreTrainedModel, Part], Tensor]:
    """Make a pass that returns the logits of all routers at the ends of prompts: (N, L, E)."""

    def read(model: PreTrainedModel, part: Part) -> Tensor:
        with watch_routers(layers) as seen:
            run(model, part)
        return torch.stack([wide(logits)[part.answered] for logits in seen], 1)

    return read


def routing_divergence(now: Tensor, then: Tensor, tau: float = 1.0) -> Tensor:
    """Return the sum over prompts of mean_l KL(softmax(then / tau) || softmax(now / tau)), in nats.

    Both are logits (N, L, E).
    """
    return kl_divergence(now.flatten(0, 1) / tau, then.flatten(0, 1) / tau) / now.shape[1]
