"""The floor under plain SFT: a training loop as anyone would write it by hand.

Imports nothing of titer.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn


class Bare:
    """Trains `model` on ready-made batches of (ids, mask, labels), each (B, T), one after another
    and again from the first.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[tuple[Tensor, Tensor, Tensor]],
        lr: float,
        weight_decay: float,
        clip: float,
    ):
        self.model, self.clip = model, clip
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices, norms = (
            [weight for weight in self.weights if (weight.ndim > 1) == wanted]
            for wanted in (True, False)
        )
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": norms, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
        # logits of prompts are not made: no row has an answer token there
        self.batches = cycle([(ids, mask, *_answers(labels)) for ids, mask, labels in batches])

    def backward(self) -> None:
        ids, mask, kept, targets = next(self.batches)
        logits = self.model(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept
        ).logits  # (B, kept, V)
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()

    def update(self) -> None:
        self.backward()
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _answers(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns that some row's answer is predicted from, and the labels to predict there."""
    ahead = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    kept = (ahead != -100).any(0).nonzero().squeeze(1)
    return kept, ahead[:, kept]
