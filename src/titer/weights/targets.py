"""Layers by name: a target is the whole name of a layer, the last part of it, or `all`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from titer.errors import unknown

ALL = "all"


def matches(layer: str, target: str) -> bool:
    """Say whether a target is a layer's name or ends it.

    `q_proj` and `attn.q_proj` match `h.0.attn.q_proj`; `proj` does not.
    """
    return f".{layer}".endswith(f".{target}")


def last_parts(layers: Iterable[str]) -> set[str]:
    """Return the last part of every layer's name: the shortest target for it."""
    return {layer.rsplit(".", 1)[-1] for layer in layers}


def select(names: Iterable[str], targets: Collection[str]) -> list[str]:
    """Return the weights whose layers the targets name, in the order of `names`.

    A weight's layer is its name without `.weight`. Raises where there is no target, or one
    matches no layer.
    """
    layers = {name.removesuffix(".weight"): name for name in names}
    if not targets:
        raise ValueError(f"targets is empty: name layers, or give {ALL!r}")
    for target in targets:
        if target != ALL and not any(matches(layer, target) for layer in layers):
            raise unknown("target", target, last_parts(layers))
    return [
        name
        for layer, name in layers.items()
        if ALL in targets or any(matches(layer, target) for target in targets)
    ]
