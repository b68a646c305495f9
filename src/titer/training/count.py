"""Count passes and updates, whatever the machine is busy with: operations, bytes alive, kernels.

A model need not be there to be counted. Its weights may lie on the meta device, where a tensor has
a shape and no values (`Imagined`): then the loop, a defense's gradient and the optimizer run as
they are, in seconds, however large the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

from titer.attributes import swap

Action = Callable[[], object]
aten = torch.ops.aten
CPU_ATTENTION: dict[Any, Any] = {  # the attention kernels that torch does not count
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}
FORMULAS = dict(flop_registry) | {
    kernel: shape_wrapper(formula) for kernel, formula in CPU_ATTENTION.items()
}


@dataclass(frozen=True)
class Effort:
    """What a machine has to do: kernels to start, operations to make, bytes to move."""

    kernels: float = 0.0  # but those that only look at a tensor otherwise
    flops: float = 0.0  # of matrix products, convolutions and attention, two per multiply-add
    moved: float = 0.0  # bytes, of what kernels return, and of what those with operations read
    # of the operations, those with the weight that makes logits: it is wide, and its rows are few
    head: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.kernels + other.kernels,
            self.flops + other.flops,
            self.moved + other.moved,
            self.head + other.head,
        )

    def __mul__(self, times: float) -> Effort:
        return Effort(
            self.kernels * times, self.flops * times, self.moved * times, self.head * times
        )

    __rmul__ = __mul__

    def shrink(self, share: float) -> Effort:
        """Return the work with a share of the tokens, by as many kernels."""
        return Effort(self.kernels, share * self.flops, share * self.moved, share * self.head)


class Alive(TorchDispatchMode):
    """Follows the storages that operations return, but those of `lasting` tensors, for as long as
    they are alive, and the work that was done.
    """

    def __init__(
        self,
        lasting: Iterable[Tensor],
        sizes: Container[int] | None = None,
        head: torch.Size | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        lasting = list(lasting)
        self.sizes = sizes  # in bytes, of those that are followed; None: all
        self.head = (head, head[::-1]) if head else ()  # shapes of the weight that makes logits
        self.own = {tensor.untyped_storage()._cdata for tensor in lasting}
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.shapes = {shape for each in lasting for shape in (each.shape, each.shape[::-1])}
        self.now = self.peak = 0  # bytes
        # of them, those of tensors that have no shape of a lasting one
        self.activations_now = self.activations = 0
        self.work = Effort()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        out = self.call(function, arguments, keywords or {})
        made = _tensors(out)
        for tensor in made:
            self._see(tensor)
        if not function.is_view:
            formula = FORMULAS.get(function.overloadpacket)
            flops = formula(*arguments, **(keywords or {}), out_val=out) if formula else 0
            touched = [*made, *_tensors(arguments)] if formula else made
            is_head = any(each.shape in self.head for each in touched)
            moved = sum(each.nbytes for each in touched)
            self.work += Effort(1, flops, moved, flops if is_head else 0)
        return out

    def call(self, function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        """Do the operation."""
        return function(*arguments, **keywords)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size, key = storage.nbytes(), storage._cdata
        if key in self.own or key in self.alive:
            return
        if self.sizes is not None and size not in self.sizes:
            return

        activation = 0 if tensor.shape in self.shapes else size

        def release(_: object) -> None:
            del self.alive[key]
            self.now -= size
            self.activations_now -= activation

        self.alive[key] = weakref.ref(storage, release)
        self.now += size
        self.activations_now += activation
        self.peak = max(self.peak, self.now)
        self.activations = max(self.activations, self.activations_now)


class Imagined(Alive):
    """Does with tensors on the meta device what a CPU or a GPU would do with real ones.

    Tensors of both kinds may meet: what has no values makes a result that has none. Where a number
    is asked for, it is 1, and a condition holds; so a method whose work depends on values is counted
    at one course of it. Attention is counted by the kernel that never holds all its scores.
    """

    def call(self, function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        tensors = [each for each in tree_leaves((arguments, keywords)) if isinstance(each, Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            if keywords.get("generator") and _is_meta(keywords.get("device")):
                keywords = keywords | {"generator": None}  # one of the CPU
            return function(*arguments, **keywords)
        if function is aten._local_scalar_dense.default:
            return torch.ones((), dtype=tensors[0].dtype).item()
        if function is aten.equal.default:
            return True
        if function is aten._to_copy.default and not _is_meta(keywords.get("device", "meta")):
            dtype = keywords.get("dtype") or tensors[0].dtype
            return torch.ones((), dtype=dtype).expand(tensors[0].shape)
        if all(tensor.is_meta for tensor in tensors):
            return function(*arguments, **keywords)
        if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            arguments = (arguments[0], _places(arguments[1]), *arguments[2:])
        bare_arguments, bare_keywords = tree_map(_without_values, (arguments, keywords))
        out = function(*bare_arguments, **bare_keywords)
        into = arguments[0] if function._schema.is_mutable else None
        return into if isinstance(into, Tensor) else out  # a real one stays what it was


OWN = nn.functional.scaled_dot_product_attention


def attend(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """Compute attention; of tensors on the meta device by the kernel that never holds all scores,
    as devices do. Torch itself would take them for tensors that have no such kernel.
    """
    if not query.is_meta:
        return OWN(query, key, value, *arguments, **keywords)
    out: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        query,
        key,
        value,
        is_causal=keywords.get("is_causal", False),
        attn_mask=keywords.get("attn_mask"),
        scale=keywords.get("scale"),
    )[0]
    return out


def attention() -> AbstractContextManager[None]:
    """Inside, attention is that of `attend`, also where a backward pass computes it again."""
    return swap(nn.functional, "scaled_dot_product_attention", attend)


def _tensors(found: Any) -> list[Tensor]:
    leaves = [found] if isinstance(found, Tensor) else tree_leaves(found)
    return [each for each in leaves if isinstance(each, Tensor)]


def _is_meta(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return indices with every mask that has values as the places that it takes."""
    return [
        place
        for index in indices
        for place in (
            index.nonzero().unbind(1)
            if index is not None and index.dtype is torch.bool and not index.is_meta
            else [index]
        )
    ]


def _without_values(leaf: Any) -> Any:
    """Return a tensor's shape, on the meta device; what is no tensor as it is."""
    return leaf.to("meta") if isinstance(leaf, Tensor) and not leaf.is_meta else leaf


def flops(action: Action) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions, two per
    multiply-add, forward and backward.

    Not counted: all that is linear in the activations or in the weights (norms, nonlinearities,
    softmax, embeddings, the optimizer).
    """
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        action()
    return int(counter.get_total_flops())
