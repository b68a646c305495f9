"""The loss of a language model: cross-entropy of the answer tokens, in float32 at least."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from titer.data.batches import Part
from titer.training.layers import unembed_at, unembedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss: TypeAlias = "Callable[[PreTrainedModel, Part], Tensor]"  # a sum over tokens


def cross_entropy(model: PreTrainedModel, part: Part) -> Tensor:
    """Return the sum over the answer tokens of -log p(token | what stands before it), in nats.

    The first answer token is included.
    """
    return entropies(model, part).sum()


def entropies(model: PreTrainedModel, part: Part) -> Tensor:
    """Return -log p(token | what stands before it) of every answer token, in nats: (N,)."""
    return token_entropies(answer_logits(model, part), part)


def token_entropies(logits: Tensor, part: Part) -> Tensor:
    """Return -log p of every answer token, in nats, under the logits that predict them: (N,)."""
    return nn.functional.cross_entropy(wide(logits), part.targets, reduction="none")


def kl_divergence(now: Tensor, then: Tensor) -> Tensor:
    """Return the sum over positions of KL(p_then || p_now), in nats, of logits (N, V).

    The gradient at `now` is p_now - p_then, both from the same operations, so that equal logits have
    a gradient of exactly 0: an optimizer that divides by its size would take steps along rounding.
    """
    now, then = wide(now), wide(then)
    over_now, over_then = now.logsumexp(1), then.logsumexp(1)  # (N,)
    p_then = (then - over_then[:, None]).exp()
    return ((p_then * (then - now)).sum(1) + (over_now - over_then)).sum()


def answer_logits(model: PreTrainedModel, part: Part) -> Tensor:
    """Run a forward pass and return the logits from which answer tokens are predicted: (N, V).

    The model's head sees these positions alone: most tokens are of prompts, and logits are large.
    """
    with unembed_at(model, part.answered):
        logits: Tensor = model(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits
    return logits.squeeze(0)


def answer_states(model: PreTrainedModel, part: Part) -> Tensor:
    """Run a forward pass and return the hidden states from which answer tokens are predicted: (N, D).

    They are what the model's head makes logits of, behind the final norm. No logits are made.
    """
    found: list[Tensor] = []

    def take(_module: nn.Module, hidden: tuple[Tensor, ...]) -> None:
        found.append(hidden[0].flatten(0, 1)[part.answered])

    handle = unembedding(model).register_forward_pre_hook(take)  # sees them before `run` drops them
    try:
        run(model, part)
    finally:
        handle.remove()
    return found[0]


def run(model: PreTrainedModel, part: Part) -> None:
    """Run a forward pass without logits, for what hooks see on the way."""
    with unembed_at(model, part.answered[:0]):
        model(input_ids=part.ids, attention_mask=part.mask, use_cache=False)


def pad_of(model: PreTrainedModel) -> int:
    """Return the token to pad with. No loss sees it, and in a wrapper of several models it is the
    text part's.
    """
    config: Any = model.config
    return int(getattr(config.get_text_config(), "pad_token_id", None) or 0)


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32 at least, since half precision cannot hold a log-softmax."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
