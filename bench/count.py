"""The cost of an update, whatever the machine is busy with.

It is counted in operations, bytes kept for backward, and copies of the trainables.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Action = Callable[[], object]
CPU_ATTENTION = {  # the attention kernels that torch does not count
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


def flops(action: Action) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions, two per
    multiply-add, forward and backward.

    Not counted: all that is linear in the activations or in the weights (norms, nonlinearities,
    softmax, embeddings, the optimizer).
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        action()
    return int(counter.get_total_flops())


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


class Alive(TorchDispatchMode):
    """Follows the storages that operations return, but those of `lasting` tensors, for as long as
    they are alive.
    """

    def __init__(self, lasting: Iterable[Tensor], sizes: Container[int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes = sizes  # in bytes, of those that are followed; None: all
        self.own = {tensor.untyped_storage()._cdata for tensor in lasting}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0  # bytes

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        out = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        if key in self.own or (self.sizes is not None and size not in self.sizes):
            return
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.alive[key] = (StorageWeakRef(storage), size)
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))


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
