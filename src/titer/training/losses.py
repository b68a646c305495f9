"""The loss of a language model: cross-entropy of the answer tokens, in float32 at least."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from titer.data.batches import IGNORED, Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss: TypeAlias = "Callable[[PreTrainedModel, Part], Tensor]"  # a sum over tokens


def cross_entropy(
    model: PreTrainedModel, part: Part, reduction: Literal["sum", "none"] = "sum"
) -> Tensor:
    """Return the sum over the answer tokens of -log p(token | what stands before it), in nats.

    The first answer token is included. With "none" the result has every token's own, (B * T,), with
    0 where there is no answer token.
    """
    return entropy_against(logits_of(model, part), part, reduction)


def logits_of(model: PreTrainedModel, part: Part) -> Tensor:
    """Run a forward pass and return its logits (B, T, V)."""
    logits: Tensor = model(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits
    return logits


def pad_of(model: PreTrainedModel) -> int:
    """Return the token to pad with. No loss sees it, and in a wrapper of several models it is the
    text part's.
    """
    config: Any = model.config
    return int(getattr(config.get_text_config(), "pad_token_id", None) or 0)


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32 at least, since half precision cannot hold a log-softmax."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def entropy_against(
    logits: Tensor, part: Part, reduction: Literal["sum", "none"] = "sum"
) -> Tensor:
    """Return the `cross_entropy` of logits (B, T, V) that a pass has already given."""
    # the labels move to the token that each is predicted from, not the logits, which are large:
    # a slice of them would be copied
    labels = nn.functional.pad(part.labels[:, 1:], (0, 1), value=IGNORED)  # (B, T)
    return nn.functional.cross_entropy(
        wide(logits.flatten(0, 1)), labels.flatten(), ignore_index=IGNORED, reduction=reduction
    )
