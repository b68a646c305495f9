"""Keep something of rows as it is before the first update, when the model is what the stage began with.

It is read once, and serves all updates: neither the weights of the start nor a second pass is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Encoded, Part, by_length, collate
from titer.training.losses import pad_of
from titer.training.ranks import Ranks
from titer.training.step import Step


def read_before(
    step: Step, rows: Iterable[Encoded], read: Callable[[PreTrainedModel, Part], Tensor]
) -> dict[str, Tensor]:
    """Read something of every row without a gradient, and return it by the rows' names, on the CPU.

    `read` returns something of every answer token of a micro-batch, (N, ...). What is kept of a row
    is (n, ...) of its n answer tokens, with a storage of its own. Rows that are equal are read once.
    The ranks divide the rows among them, and each has those of all in the end.
    """
    distinct = list(dict.fromkeys(rows))
    batches = by_length([len(row.ids) for row in distinct], step.batch_size)
    ranks = Ranks.of(step.accelerator)
    found: list[tuple[str, Tensor]] = []
    with torch.no_grad(), step.computing():
        for chosen in ranks.share(batches):
            part = collate(
                [distinct[i] for i in chosen], pad_of(step.model), step.accelerator.device
            )
            whole = read(step.model, part).cpu()
            apart = [of_row.clone() for of_row in whole.split(count_tokens(part))]
            found += zip(name_rows(part), apart, strict=True)
    return ranks.join(dict(found))


def list_harmful(step: Step, prompts: int) -> Sequence[Encoded]:
    """Return the defender's harmful rows. Raises where an update draws more prompts than they are."""
    rows = step.streams["harmful"].rows
    if prompts > len(rows):
        raise ValueError(
            f"prompts={prompts}: the defender has {len(rows)} harmful rows; give at most so many"
        )
    return rows


def recall(before: Mapping[str, Tensor], part: Part) -> Tensor:
    """Return what `read_before` kept of the rows of a micro-batch: (N, ...), on the CPU."""
    if not len(part.answered):  # of an idle rank
        return next(iter(before.values()))[:0]
    return torch.cat([before[name] for name in name_rows(part)])


def count_tokens(part: Part) -> list[int]:
    """Count the answer tokens of every row."""
    counts: list[int] = part.sum_by_row(torch.ones_like(part.targets)).tolist()
    return counts


def name_rows(part: Part) -> list[str]:
    """Name every row by a hash of its tokens and of which are its answer's: the same in any batch."""
    both = torch.stack([part.ids, part.labels], 2).cpu()  # (B, T, 2)
    real = part.mask.bool().cpu()  # (B, T)
    return [
        hashlib.sha256(row[mask].numpy()).hexdigest() for row, mask in zip(both, real, strict=True)
    ]
