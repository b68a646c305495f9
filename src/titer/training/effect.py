"""The effect of a training stage: how far its weights moved, and how far its loss fell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from titer.weights import adapters
from titer.weights.norms import norm

ENDS = 20  # updates averaged at either end: the loss of one batch is mostly the batch's


def loss_fall(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of f over the first and the last updates, with their difference's error.

    The error is the standard error. f is the loss on the stage's own rows. The result is empty
    where the method logs f at fewer than two updates.
    """
    f = [terms["f"] for terms in history if "f" in terms]
    k = min(ENDS, len(f) // 2)
    if k == 0:
        return {}
    first, last = f[:k], f[-k:]
    error = (
        math.sqrt((statistics.variance(first) + statistics.variance(last)) / k) if k > 1 else 0.0
    )
    return {"first": sum(first) / k, "last": sum(last) / k, "error": error, "updates": k}


def copy_trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trainable weights on the CPU.

    A GPU may have no room for one beside the optimizer.
    """
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def weight_change(model: nn.Module, start: Mapping[str, Tensor] | None) -> float:
    """Return ||w - w_start|| / ||w_start|| over the trained weights.

    Without a start, it is taken over the weights that the model's adapter changes.
    """
    if start is None:
        return adapters.update_norm(model) / adapters.base_norm(model)
    now = dict(model.named_parameters())
    change = [
        float(norm(now[name].detach().float() - before.to(now[name].device).float()))
        for name, before in start.items()
    ]
    return math.hypot(*change) / math.hypot(*(float(norm(w)) for w in start.values()))
