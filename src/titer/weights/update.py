"""The update that training added to a weight, in an adapter's low-rank factors or whole.

Edits are stated in its arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Update:
    """An update of a weight: scaling b a, or scaling b where there is no `a`.

    Either way, an operation on b alone acts on the update's rows. Those of all experts of a layer
    may be stacked in a leading dimension.
    """

    b: Tensor  # (out, r); without a the weight's own shape
    a: Tensor | None = None  # (r, in)
    scaling: float = 1.0  # alpha / r of an adapter

    def dense(self) -> Tensor:
        """Return the whole update, in the weight's shape."""
        return self.scaling * (self.b if self.a is None else self.b @ self.a)

    def __rmul__(self, c: float) -> Update:
        return replace(self, b=c * self.b)

    def __add__(self, other: Update) -> Update:
        """Return the sum.

        Where both have factors it has stacked factors, of the sum of their ranks.

        A's and B's are never added to one another.
        """
        if self.a is None or other.a is None:
            return Update(self.dense() + other.dense())
        return Update(
            torch.cat([self.scaling * self.b, other.scaling * other.b], -1),
            torch.cat([self.a, other.a], -2),
        )

    def dot(self, other: Update) -> float:
        """Return tr(U^T V), of stacks its sum.

        Factors are multiplied through matrices of their rank: no (out, in) product is formed.
        """
        b, other_b = self.b, other.b
        if self.a is not None and other.a is not None:
            inner = ((b.mT @ other_b) * (self.a @ other.a.mT)).sum()
        elif self.a is not None:
            inner = (b * (other_b @ self.a.mT)).sum()
        elif other.a is not None:
            return other.dot(self)
        else:
            inner = (b * other_b).sum()
        return self.scaling * other.scaling * float(inner)

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return math.sqrt(max(self.dot(self), 0.0))

    def cosine(self, other: Update) -> float:
        """Return the cosine of the angle to another update; 0 where either is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms else 0.0
