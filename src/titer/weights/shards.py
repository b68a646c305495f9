"""Weights that are divided among ranks (FSDP2): of each a rank holds some rows, as a `DTensor`.

All ranks have to call these functions at the same point, but for `local`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Tell whether tensors are divided among ranks. All of them are, or none."""
    return isinstance(next(iter(tensors), None), DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds: the whole of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all ranks, one that was sharded on the CPU."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return a whole tensor, which every rank has, divided as `pattern` is, in its dtype and there."""
    if not isinstance(pattern, DTensor):
        return tensor.to(pattern)
    there = tensor.to(device=pattern.device, dtype=pattern.dtype)
    mesh, placements = pattern.device_mesh, pattern.placements
    return distribute_tensor(there, mesh, placements, src_data_rank=None)


def norm_over(value: float, tensors: Collection[Tensor]) -> float:
    """Return the L2 norm over ranks of what each has one of, its parts of tensors."""
    return math.sqrt(sum_over(value**2, tensors)) if is_sharded(tensors) else value


def sum_over(value: float, tensors: Iterable[Tensor]) -> float:
    """Sum over ranks what each has computed of its parts of tensors; of whole ones it is the value."""
    first = next(iter(tensors), None)
    if not isinstance(first, DTensor):
        return value
    total = torch.tensor(value, dtype=torch.float64, device=first.device)
    distributed.all_reduce(total, group=first.device_mesh.get_group())
    return float(total)
