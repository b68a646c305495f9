"""Weights that are divided among ranks (FSDP2): of each a rank holds some rows, as a `DTensor`.

All ranks have to call these functions at the same point, but for `local`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Tell whether tensors are divided among ranks. All of them are, or none."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds: the whole of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return a whole tensor, which every rank has, divided as `pattern` is, in its dtype and there."""
    if not isinstance(pattern, DTensor):
        return tensor.to(pattern)
    there = tensor.to(device=pattern.device, dtype=pattern.dtype)
    mesh, placements = pattern.device_mesh, pattern.placements
    return distribute_tensor(there, mesh, placements, src_data_rank=None)


def norm_over(value: float, tensors: Iterable[Tensor]) -> float:
    """Return the L2 norm over ranks of what each has one of, its parts of tensors."""
    found = list(tensors)
    return math.sqrt(sum_over(value**2, found)) if is_sharded(found) else value


def sum_over(value: float, tensors: Iterable[Tensor]) -> float:
    """Sum over ranks what each has computed of its parts of tensors; of whole ones it is the value."""
    first = next((tensor for tensor in tensors if isinstance(tensor, DTensor)), None)
    if first is None:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=first.device)
    distributed.all_reduce(total, group=first.device_mesh.get_group())
    return float(total)
