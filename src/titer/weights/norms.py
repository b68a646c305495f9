"""Norms in float64, whatever the dtype of a tensor: half precision cannot hold a sum of squares."""

from __future__ import annotations

import torch
from torch import Tensor


def norm(tensor: Tensor) -> Tensor:
    """Return the L2 norm over all entries, which of a matrix is its Frobenius norm.

    It is a float64 scalar on the tensor's device.
    """
    result: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return result


def square(tensor: Tensor) -> Tensor:
    """Return the sum of squares over all entries: a float64 scalar on the tensor's device."""
    return norm(tensor) ** 2
