"""Vectors over the trainable parameters: the arithmetic in which a defense states its gradient."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from titer.weights.norms import norm
from titer.weights.shards import local, norm_over, sum_over

Tensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Vec:
    """A linear combination of gradients, by parameter name.

    *Partial*: an absent name means that the parameter is not touched at this update: no step, no
    decay, no momentum. Zeros are something else: under AdamW a zero gradient still moves a weight
    by decay and momentum.

    *Lazy*: `g_f + lam * (g_h - g_h_after)` is a list of (scalar, tensors) pairs; nothing is
    computed until the loop folds it in place. So a method's body reads like its algorithm box and
    costs no temporary copies.

    `loss` is the objective at which a gradient was taken (nats per answer token); a combination has
    none.
    """

    terms: tuple[tuple[float, Tensors], ...]
    loss: float | None = None

    @staticmethod
    def of(tensors: Tensors, loss: float | None = None) -> Vec:
        """Make the vector of one gradient."""
        return Vec(((1.0, tensors),), loss)

    def __add__(self, other: Vec) -> Vec:
        terms = self.terms
        for scale, tensors in other.terms:
            terms = tuple(_join(terms, scale, tensors))
        return Vec(terms)

    def __mul__(self, scalar: float) -> Vec:
        return Vec(tuple((scale * scalar, tensors) for scale, tensors in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> Vec:
        return -1.0 * self

    def __sub__(self, other: Vec) -> Vec:
        return self + -other

    def within(self, names: Collection[str]) -> Vec:
        """Leave out what is under other names: there this vector is absent, not zero. Nothing is copied."""
        kept = set(names)
        parts = [
            (
                scale,
                tensors
                if tensors.keys() <= kept
                else {n: t for n, t in tensors.items() if n in kept},
            )
            for scale, tensors in self.terms
        ]
        return Vec(tuple((scale, tensors) for scale, tensors in parts if tensors))

    def names(self) -> list[str]:
        """Return the names of the parameters that it touches, in order."""
        return list(dict.fromkeys(name for _, tensors in self.terms for name in tensors))

    def value(self, name: str) -> Tensor:
        """Return the value at one name: a fresh float64 tensor of the parameter's shape."""
        parts = [scale * tensors[name].double() for scale, tensors in self.terms if name in tensors]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _tensors(self) -> Iterator[Tensor]:
        return (tensor for _, tensors in self.terms for tensor in tensors.values())

    def dot(self, other: Vec) -> float:
        """Return the inner product in float64, one parameter at a time.

        An absent name counts as zero.
        """
        theirs = set(other.names())
        mine = sum(
            float(local(self.value(name) * other.value(name)).sum())
            for name in self.names()
            if name in theirs
        )
        return sum_over(mine, self._tensors())

    def norm(self) -> float:
        """Return the L2 norm over all names, in float64. A single gradient is not copied for it."""
        if len(self.terms) > 1:
            return math.sqrt(self.dot(self))
        [(scale, tensors)] = self.terms
        mine = math.hypot(*(float(norm(local(tensor))) for tensor in tensors.values()))
        return abs(scale) * norm_over(mine, tensors.values())

    def cosine(self, other: Vec) -> float:
        """Return the cosine of the angle to another vector; 0 where either is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms else 0.0

    def unit(self) -> Vec:
        """Return this vector divided by its norm. Raises where the norm is zero."""
        norm = self.norm()
        if not norm > 0.0:
            raise ValueError(
                f"a vector of norm {norm} has no direction: the gradient it came from vanished"
            )
        return (1.0 / norm) * self

    def add_to(self, parameters: Tensors) -> None:
        """Add this vector to `parameters` in place, without a temporary copy."""
        with torch.no_grad():
            for scale, tensors in self.terms:
                torch._foreach_add_(
                    [parameters[name] for name in tensors], list(tensors.values()), alpha=scale
                )

    def fold(self) -> dict[str, Tensor]:
        """Return the value of every name, written over the first term that has it.

        No copy is made, and the vector cannot be used again.
        """
        with torch.no_grad():
            folded: dict[str, Tensor] = {}
            for scale, tensors in self.terms:
                fresh = [name for name in tensors if name not in folded]
                known = [name for name in tensors if name in folded]
                if fresh and scale != 1.0:
                    torch._foreach_mul_([tensors[name] for name in fresh], scale)
                folded |= {name: tensors[name] for name in fresh}
                if known:
                    torch._foreach_add_(
                        [folded[name] for name in known],
                        [tensors[name] for name in known],
                        alpha=scale,
                    )
            return folded

    def hand_to(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Fold it into the parameters' gradients, for an optimizer.

        An absent name gets None, so that AdamW leaves the weight alone.
        """
        folded = self.fold()
        for name, parameter in parameters.items():
            parameter.grad = folded.get(name)


def _join(
    terms: tuple[tuple[float, Tensors], ...], scale: float, tensors: Tensors
) -> Iterator[tuple[float, Tensors]]:
    """Add a term to others. Where they hold the same tensors, their scales are added up.

    Folding works in place, and must not read what it wrote: no two terms may hold the same tensor.
    """
    for before, mine in terms:
        if mine is tensors:
            yield before + scale, mine
            tensors = {}
            continue
        same = {name: tensor for name, tensor in mine.items() if tensors.get(name) is tensor}
        if not same:
            yield before, mine
            continue
        yield before + scale, same
        if rest := {name: tensor for name, tensor in mine.items() if name not in same}:
            yield before, rest
        tensors = {name: tensor for name, tensor in tensors.items() if name not in same}
    if tensors:
        yield scale, tensors
