"""All parameters that write to a model's residual stream, and edits of them in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import Encoded, by_length, collate
from titer.methods import Changes, StreamEdit
from titer.training.layers import Writer, layers, watch_layers
from titer.training.losses import pad_of, run, wide
from titer.weights.norms import norm

AT_ONCE = 16  # rows of a pass
# between what a layer computes and the stream: a direction that is taken out before it comes back
BETWEEN = ("post_feedforward_layernorm", "post_mlp_layernorm")


def stream_writers(model: PreTrainedModel) -> dict[str, Writer]:
    """Return the parameters that write to the stream: embeddings, attention outputs, MLPs' outputs.

    Of a sparse layer they are those of every expert; biases are among them. A head that is tied to
    the embeddings is one of them. Raises where a norm stands between them and the stream.
    """
    found = {
        f"{name}.weight": Writer(cast(nn.Parameter, of.weight), 1)
        for name, of in _embeddings(model).items()
    }
    for layer in layers(model):
        between = [name for name, _ in layer.module.named_children() if name in BETWEEN]
        if between:
            raise ValueError(
                f"{type(model).__name__}: {between[0]!r} stands between what a layer writes and the "
                "residual stream, so no edit of weights takes a direction out of it: give another "
                "model"
            )
        found |= layer.writers()
    return found


def _embeddings(model: PreTrainedModel) -> dict[str, nn.Embedding]:
    """Return the embeddings as wide as the stream, of tokens and of positions, by name."""
    decoder = {id(of) for of in cast(Any, model).get_decoder().modules()}
    tokens = cast(Any, model).get_input_embeddings()
    return {
        name: of
        for name, of in model.named_modules()
        if isinstance(of, nn.Embedding)
        and id(of) in decoder
        and of.embedding_dim == tokens.embedding_dim
    }


def rewrite_stream(
    edit: StreamEdit, model: PreTrainedModel, rows: Sequence[Encoded], others: Sequence[Encoded]
) -> Changes:
    """Edit a model in memory, in float32 or better, each parameter rounded once to its own dtype.

    Raises where the edit cannot be applied to the model.
    """
    writers = stream_writers(model)
    state = edit.observe(model, rows, others)
    changed, sizes, moved = dict[str, int](), dict[str, int](), dict[str, float]()
    for name, (parameter, axis) in (
        (name, (of.parameter, of.axis)) for name, of in writers.items()
    ):
        old = parameter.detach().clone()
        across = old.movedim(axis, 0)  # (D, ...)
        exact = across.to(torch.float64 if old.dtype.itemsize > 2 else torch.float32)
        new = edit.edit(name, exact.flatten(1) if exact.ndim > 1 else exact[:, None], state)
        if not new.isfinite().all():
            raise ValueError(
                f"{name!r} comes out with values that are not finite: look at the model"
            )
        with torch.no_grad():
            parameter.copy_(new.view(across.shape).movedim(0, axis))
        changed[name], sizes[name] = int((parameter != old).sum()), old.numel()
        moved[name] = float(norm(wide(parameter.detach()) - wide(old)))
    edit.verify(model, state)
    return Changes(changed, sizes, moved, 0.0, math.hypot(*moved.values()), edit.facts(state))


def prompt_states(model: PreTrainedModel, rows: Sequence[Encoded]) -> Tensor:
    """Read the residual stream at the last tokens of prompts, in float64 on the CPU: (L + 1, N, D).

    It is the stream before every layer, and after the last one.
    """
    found: dict[int, Tensor] = {}
    parts = layers(model)
    with torch.no_grad():
        for chosen in by_length([len(row.opening.ids) for row in rows], AT_ONCE):
            part = collate([rows[i].opening for i in chosen], pad_of(model), model.device)
            with watch_layers(parts) as seen:
                run(model, part)
            ends = torch.stack([h.flatten(0, 1)[part.answered] for h in seen.residuals], 1)
            found |= dict(zip(chosen, ends.double().cpu(), strict=True))  # (L + 1, D) of each
    return torch.stack([found[i] for i in range(len(rows))], 1)
