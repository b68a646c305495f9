"""Log-probabilities of what may follow a prompt, which is read once.

The answers to a prompt share their beginnings, as refusals do. So they form a tree of tokens, and a
prompt and its tree are one sequence: a token sees the prompt and what leads to it in the tree, and
stands at the position that it has there. No token that begins several answers is read twice, the
last one of an answer is not read at all, and logits are made where an answer's token is predicted.

Not every model takes such a mask. It is tried on the first prompt, and where it does not give what
plain passes give, every answer is read for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Encoded, by_length, collate
from titer.scoring.precision import compute_in_float32
from titer.training.layers import unembed_at
from titer.training.losses import answer_logits
from titer.training.ranks import ALONE, Ranks
from titer.training.settings import Watch, unwatched

AT_ONCE = 1024  # tokens in memory at once, pads included; one sequence may be longer
WINDOWED = "sliding_attention"  # transformers' names of the kinds of layers
KINDS = ("full_attention", WINDOWED)
Tokens = Sequence[int]


@dataclass(frozen=True)
class Tree:
    """A prompt and the tree of its answers, as one sequence of T tokens."""

    ids: list[int]
    positions: list[int]
    sees: NDArray[np.bool_]  # (T, T), from a token to those that lead to it and itself
    # of every answer, where each of its tokens is predicted, and the token
    answers: list[list[tuple[int, int]]]

    @staticmethod
    def of(prompt: Tokens, answers: Sequence[Tokens]) -> Tree:
        ids, before = list(prompt), list(range(-1, len(prompt) - 1))
        found: dict[tuple[int, int], int] = {}  # (where it is predicted, token) -> where it stands
        told: list[list[tuple[int, int]]] = []
        for answer in answers:
            at = len(prompt) - 1
            told.append([])
            for token in answer:
                told[-1].append((at, token))
                if len(told[-1]) == len(answer):
                    break  # nothing is predicted from the last
                if (at, token) not in found:
                    found[at, token] = len(ids)
                    ids.append(token)
                    before.append(at)
                at = found[at, token]
        sees = np.eye(len(ids), dtype=bool)
        positions: list[int] = []
        for i, parent in enumerate(before):
            positions.append(positions[parent] + 1 if parent >= 0 else 0)
            if parent >= 0:
                sees[i] |= sees[parent]
        return Tree(ids, positions, sees, told)


def log_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    answers: Sequence[Sequence[Tokens]],
    watch: Watch = unwatched,
    ranks: Ranks = ALONE,
) -> list[list[float]]:
    """Return log p(answer | prompt) of every answer to every prompt, in nats.

    An answer's tokens are summed; it has at least one. `watch` is told how many prompts are done.
    Ranks divide the prompts among them, and each has all in the end.
    """
    if not prompts:
        return []
    longest = max((answer for given in answers for answer in given), key=len, default=())
    if not takes_trees(model, prompts[0], longest):
        told = {}
        for i in ranks.share(range(len(prompts))):
            told[i] = read_each(model, prompts[i], answers[i])
            watch(len(told), len(prompts), {})
        told = ranks.join(told)
        return [told[i] for i in range(len(prompts))]
    whole = zip(prompts, answers, strict=True)
    return read_trees(model, [Tree.of(prompt, given) for prompt, given in whole], watch, ranks)


def takes_trees(model: PreTrainedModel, prompt: Tokens, answer: Tokens) -> bool:
    """Tell whether a tree of an answer and its reverse gives them what a plain pass gives them."""
    if not set(getattr(_config(model), "layer_types", None) or KINDS) <= set(KINDS):
        return False
    branches = [answer, answer[::-1]]
    # the rounding of half precision is as large as what some families that are misread differ by
    coarse = torch.finfo(model.dtype).bits < 32
    try:
        with compute_in_float32(model) if coarse else nullcontext():
            [found] = read_trees(model, [Tree.of(prompt, branches)])
            plain = read_each(model, prompt, branches)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False  # each family has its own way of saying that it takes no such mask
    rounding = 64 * torch.finfo(torch.float32 if coarse else model.dtype).eps
    return bool(np.allclose(found, plain, rtol=rounding, atol=rounding))


def read_trees(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    watch: Watch = unwatched,
    ranks: Ranks = ALONE,
) -> list[list[float]]:
    """Read prompts with their trees, some at a time."""
    found: dict[int, list[float]] = {}
    for chosen in ranks.share(list(_batches([len(tree.ids) for tree in trees]))):
        for i, told in zip(chosen, _read(model, [trees[i] for i in chosen]), strict=True):
            found[i] = told
        watch(len(found), len(trees), {})
    found = ranks.join(found)
    return [found[i] for i in range(len(trees))]


def read_each(model: PreTrainedModel, prompt: Tokens, answers: Sequence[Tokens]) -> list[float]:
    """Read a prompt anew with every one of its answers."""
    rows = [Encoded((*prompt, *answer), len(prompt)) for answer in answers]
    found: dict[int, float] = {}
    for chosen in _batches([len(row.ids) for row in rows]):
        part = collate([rows[i] for i in chosen], 0, model.device)
        with torch.no_grad():
            logits = answer_logits(model, part)
            predicted = logits.gather(1, part.targets[:, None])[:, 0].double()
            told = part.sum_by_row(predicted - _log_sums(logits))
        found |= zip(chosen, told.tolist(), strict=True)
    return [found[i] for i in range(len(rows))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of sequences of like length whose tokens fit into memory at once."""
    batch: list[int] = []
    for [i] in by_length(lengths, 1):  # the shortest first
        if batch and lengths[i] * (len(batch) + 1) > AT_ONCE:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _read(model: PreTrainedModel, trees: Sequence[Tree]) -> Iterator[list[float]]:
    length = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    sees = torch.eye(length, dtype=torch.bool).repeat(len(trees), 1, 1)  # (B, T, T)
    for i, tree in enumerate(trees):
        end = len(tree.ids)
        ids[i, :end] = torch.tensor(tree.ids)
        positions[i, :end] = torch.tensor(tree.positions)
        sees[i, :end, :end] = torch.from_numpy(tree.sees)
    asked = sorted(
        {i * length + at for i, tree in enumerate(trees) for told in tree.answers for at, _ in told}
    )
    row_of = {at: row for row, at in enumerate(asked)}
    with torch.no_grad(), unembed_at(model, torch.tensor(asked, device=model.device)):
        logits: Tensor = model(
            input_ids=ids.to(model.device),
            position_ids=positions.to(model.device),
            attention_mask=_masks(model, sees, positions),
            use_cache=False,
        ).logits[0]  # (N, V)
    norms = _log_sums(logits)
    for i, tree in enumerate(trees):
        rows = torch.tensor([row_of[i * length + at] for told in tree.answers for at, _ in told])
        tokens = torch.tensor([token for told in tree.answers for _, token in told])
        rows, tokens = rows.to(model.device), tokens.to(model.device)
        values = logits[rows, tokens].double() - norms[rows]
        yield [float(each.sum()) for each in values.split([len(told) for told in tree.answers])]


def _log_sums(logits: Tensor) -> Tensor:
    """Return the logarithm of the sum of exponentials of every row, (N,), in float64.

    The exponentials are in float32 and their sum is not: its rounding would be the margin's, and
    exponentials in float64 take twice as long.
    """
    return torch.cat([_log_sum(rows.float()) for rows in logits.split(16)])  # this copies them


def _log_sum(rows: Tensor) -> Tensor:
    largest = rows.amax(1, keepdim=True)
    return (rows - largest).exp_().sum(1, dtype=torch.float64).log() + largest[:, 0].double()


def _masks(
    model: PreTrainedModel, sees: Tensor, positions: Tensor
) -> Tensor | Mapping[str, Tensor]:
    """Return what is added to the scores of attention, (B, 1, T, T), of every kind of layer."""
    config = _config(model)
    window = getattr(config, "sliding_window", None)
    back = positions[:, :, None] - positions[:, None, :]  # (B, T, T)

    def added(seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape, dtype=model.dtype)
        return mask.masked_fill(~seen, torch.finfo(model.dtype).min)[:, None].to(model.device)

    near = added(sees & (back < window)) if window else added(sees)
    if not getattr(config, "layer_types", None):
        return near
    return {"full_attention": added(sees), WINDOWED: near}


def _config(model: PreTrainedModel) -> Any:
    config: Any = model.config
    return config.get_text_config()
