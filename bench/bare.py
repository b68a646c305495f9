"""The floor under plain SFT: a training loop as anyone would write it by hand.

Imports nothing of titer.
"""

from collections.abc import Sequence
from itertools import cycle

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
        self.optimizer = torch.optim.AdamW(self.weights, lr=lr, weight_decay=weight_decay)
        # a label stands at the token it is predicted from: so no logits are copied to drop the last
        self.batches = cycle(
            [
                (ids, mask, nn.functional.pad(labels[:, 1:], (0, 1), value=-100))
                for ids, mask, labels in batches
            ]
        )

    def backward(self) -> None:
        ids, mask, labels = next(self.batches)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
        nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()

    def update(self) -> None:
        self.backward()
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
