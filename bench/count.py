"""The cost of an update, whatever the machine is busy with.

It is counted in operations, bytes kept for backward, and copies of the trainables.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from titer.training.count import Action, Alive, flops

__all__ = ["bytes_for_backward", "copies", "flops", "peak"]


class Held:
    """A tensor that a graph has saved; gone when the graph lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def bytes_for_backward(model: nn.Module, action: Action) -> int:
    """The most bytes that autograd graphs have saved for backward at one moment, each storage once
    and none of the model's own.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    holders: dict[int, int] = {}  # storage -> how often it is saved
    now = peak = 0

    def pack(tensor: Tensor) -> Held:
        nonlocal now, peak
        held = Held(tensor.detach())  # the tensor itself would keep its own graph alive
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in own:
            now += 0 if key in holders else size
            holders[key] = holders.get(key, 0) + 1
            peak = max(peak, now)
            weakref.finalize(held, release, key, size)
        return held

    def release(key: int, size: int) -> None:
        nonlocal now
        holders[key] -= 1
        if not holders[key]:
            del holders[key]
            now -= size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        action()
    return peak


def copies(model: nn.Module, action: Action) -> float:
    """The most copies of the trainable weights alive at one moment: gradients, saved weights, a
    defense's state.
    """
    trained = [
        parameter.untyped_storage().nbytes()
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    sizes = {size * wider for size in trained for wider in (1, 2)}  # one in float64 counts twice
    with Alive((*model.parameters(), *model.buffers()), sizes) as counted:
        action()
    return float(counted.peak / sum(trained))


def peak(lasting: Sequence[Tensor], action: Action) -> int:
    """The most bytes alive at one moment: what lasts, such as weights and the optimizer's moments,
    and all that the action makes.
    """
    with Alive(lasting) as counted:
        action()
    sizes = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in lasting
    }
    return int(counted.peak + sum(sizes.values()))
