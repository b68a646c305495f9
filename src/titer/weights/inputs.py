"""The inputs of a model's layers, watched in ordinary forward passes.

Nothing is kept but what the caller keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.weights.experts import Routed


def watch_inputs(
    model: PreTrainedModel,
    layers: Mapping[str, Any],
    parts: Iterable[tuple[Tensor, Tensor]],
    watch: Callable[[str, Tensor, Tensor, str], None],
) -> None:
    """Run forward passes, and call `watch` with every input of the linear `layers`.

    `parts` are tokens and masks, both (B, T). `watch` gets the layer's name, the input (B * T, in),
    a mask (B * T,) that is false at pads, and the name of the first layer that read the same tensor
    in this pass, as q, k and v do. Raises where a layer does not read every token, or none; but an
    expert's is watched on the tokens that reach it, (n, in) and (n,), and noted as `reached`.
    """
    real: Tensor
    # by id, which another tensor may have later
    first: dict[int, tuple[weakref.ref[Tensor], str]] = {}
    unread = {name for name, layer in layers.items() if not isinstance(layer, Routed)}

    def see(name: str, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        x, mask, width = inputs[0], real, layer.in_features
        if isinstance(layer, Routed):
            mask = real[layer.tokens]
            if not mask.any():
                return
            layer.reached = True
        elif x.numel() != len(real) * width:
            raise ValueError(
                f"{name!r} reads some of the tokens alone, as an expert's layer does: leave it out "
                "by targets"
            )
        known = first.get(id(x))
        if known is None or known[0]() is not x:
            first[id(x)] = known = weakref.ref(x), name
        unread.discard(name)
        # some families hand over (B * T, in) or (B, 1, T, in) for (B, T, in)
        watch(name, x.reshape(-1, width), mask, known[1])

    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            told = partial(see, name, layer)
            stack.callback(
                layer.register_forward_pre_hook(lambda _, inputs, told=told: told(inputs)).remove
            )
        for ids, mask in parts:
            real = mask.flatten().bool().to(model.device)
            first.clear()
            model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                use_cache=False,
            )
    if unread:
        raise ValueError(f"no token reached {min(unread)!r}: leave it out by targets")
