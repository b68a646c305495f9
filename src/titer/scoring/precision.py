"""Passes in float32 through a model whose weights are coarser, for what rounding would hide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from titer.training.layers import decoder_layers, unembedding


@contextmanager
def compute_in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's passes compute in float32, and afterwards its weights are the same tensors.

    A copy of a layer's weights is there only while that layer computes: a model that fills the
    device has no room for more. Raises, naming the model's class, where its layers are not found.
    """
    kept: dict[Tensor, Tensor] = {}

    def widen(module: nn.Module, given: Any, named: Any) -> Any:
        for tensor in (*module.parameters(), *module.buffers()):
            if _is_coarse(tensor) and tensor not in kept:
                kept[tensor] = tensor.data
                tensor.data = tensor.data.float()
        return tree_map(_to_float32, (given, named))

    def restore(*_: object) -> None:
        for tensor, data in kept.items():
            tensor.data = data
        kept.clear()

    handles = []
    try:
        for module in _parts(model):
            handles.append(module.register_forward_pre_hook(widen, with_kwargs=True))
            # before hooks that were there: one that divides a layer into shards takes its own weights
            handles.append(module.register_forward_hook(restore, prepend=True, always_call=True))
        yield
    finally:
        restore()
        for handle in handles:
            handle.remove()


def _parts(model: PreTrainedModel) -> list[nn.Module]:
    """Return modules that hold all weights among them and run one after another, none in another."""
    whole = list(dict.fromkeys([*decoder_layers(model), unembedding(model)]))
    inside = {part for module in whole for part in module.modules()}
    return whole + [
        module
        for module in model.modules()
        if module not in inside and [*module.parameters(False), *module.buffers(False)]
    ]


def _is_coarse(leaf: object) -> bool:
    return (
        isinstance(leaf, Tensor) and leaf.is_floating_point() and torch.finfo(leaf.dtype).bits < 32
    )


def _to_float32(leaf: Any) -> Any:
    return leaf.float() if _is_coarse(leaf) else leaf
