"""Tensors at the outputs of attention layers, one for every micro-batch of an update.

They are gradients there, or perturbations made of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from titer.data.batches import Batch, Part
from titer.weights.norms import norm


@dataclass(frozen=True, eq=False)
class Acts:
    """A vector with one tensor (B, T, D) per micro-batch and layer, in the activations' dtype.

    *Lazy*: a scalar is kept beside the tensors, one per micro-batch, and applied where the vector
    is added to an output; no copy is made. The norm is over micro-batches, layers and ranks
    together.

    `loss` is the objective at which a gradient was taken (nats per answer token). Vectors made from
    it have none.
    """

    batch: Batch  # whose micro-batches the tensors belong to
    parts: Sequence[Mapping[int, Tensor]]  # per micro-batch of this rank, by layer
    # per layer: the sum of squares over the micro-batches of all ranks
    squares: Mapping[int, float]
    scales: Sequence[float]  # per micro-batch
    loss: float | None = None

    def norms(self) -> dict[int, float]:
        """Return the L2 norm of every layer's tensors, over micro-batches and ranks.

        Only an unscaled vector has them: scale it afterwards.
        """
        self._check_unscaled()
        return {layer: math.sqrt(square) for layer, square in self.squares.items()}

    def norm(self) -> float:
        """Return the L2 norm over micro-batches, layers and ranks together.

        Only an unscaled vector has one.
        """
        self._check_unscaled()
        return math.sqrt(sum(self.squares.values()))

    def unit(self) -> Acts:
        """Return this vector divided by its norm. Raises where the norm is zero or not finite."""
        norm = self.norm()
        return replace(self, scales=(1.0 / _some(norm),) * len(self.parts), loss=None)

    def units(self) -> Acts:
        """Return the vector in which every micro-batch is divided by its own norm over layers.

        Raises where one of these norms is zero or not finite.
        """
        self._check_unscaled()
        norms = [
            math.hypot(*(float(norm(tensor)) for tensor in part.values())) for part in self.parts
        ]
        return replace(self, scales=tuple(1.0 / _some(norm) for norm in norms), loss=None)

    def __rmul__(self, scalar: float) -> Acts:
        return replace(self, scales=tuple(scalar * scale for scale in self.scales), loss=None)

    def perturb(self, part: Part, layer: int, output: Tensor) -> Tensor:
        """Return a layer's output plus this vector. The gradient passes through it unchanged.

        Raises for a micro-batch of another batch than the one that this vector was computed on.
        """
        for mine, tensors, scale in zip(self.batch.parts, self.parts, self.scales, strict=True):
            if mine is part:
                return torch.add(output, tensors[layer], alpha=scale)
        raise ValueError(
            "a perturbation is for the batch that it was computed on, from the stream "
            f"{self.batch.stream!r}"
        )

    def _check_unscaled(self) -> None:
        assert all(scale == 1.0 for scale in self.scales), (
            "norms are those of the tensors as they were computed: take them before scaling"
        )


def _some(norm: float) -> float:
    if not 0.0 < norm < math.inf:
        raise ValueError(
            f"a gradient of norm {norm} at the layers has no direction: nothing can be perturbed "
            "along it"
        )
    return norm
