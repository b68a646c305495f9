"""The share of the update's energy that an edit removed, on harmful and on task inputs.

    share = sum ||(dW - dW') x||^2 / sum ||dW x||^2

over the edited layers and the tokens of the rows, with the inputs x of the unedited fine-tuned
model; dW is what fine-tuning added to a layer and dW' what the edit leaves of it. An edit that
tells harm from task has a larger share on harmful inputs; scaling by c has (1 - c)^2 on any. Above
1 the edit put in more than it took away. Both updates are kept in memory: a probe for when it is
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import Batch
from titer.weights.finetuned import FineTuned
from titer.weights.inputs import watch_inputs
from titer.weights.update import Update


def removed_energy(
    model: PreTrainedModel,
    layers: Mapping[str, nn.Module],
    before: FineTuned,
    after: FineTuned,
    batch: Batch,
) -> float:
    """Return the share of the update's energy that is gone, on the rows in `batch`.

    `layers` are those of the unedited `model`, by weight. The share is 0 where the update does
    nothing to the rows.
    """
    was = {name: before.update(name) for name in layers}
    gone = {name: was[name] + -1.0 * after.update(name) for name in layers}
    total = removed = 0.0

    def watch(name: str, x: Tensor, real: Tensor, first: str) -> None:
        nonlocal total, removed
        total += energy(was[name], x[real])
        removed += energy(gone[name], x[real])

    watch_inputs(model, layers, ((part.ids, part.mask) for part in batch.parts), watch)
    return removed / total if total else 0.0


def energy(update: Update, x: Tensor) -> float:
    """Return sum ||dW x||^2 over tokens (tokens, in)."""
    x = x.cpu().to(update.b.dtype)
    y = x @ update.b.T if update.a is None else x @ update.a.T @ update.b.T  # (tokens, out)
    return update.scaling**2 * float(y.square().sum())
