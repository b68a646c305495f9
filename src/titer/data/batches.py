"""Rows as tokens with a loss mask, and the seeded streams that a stage draws its batches from."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

IGNORED = -100  # a label that carries no loss
EVERY = slice(None)


@dataclass(frozen=True)
class Encoded:
    """A row as tokens. Only `ids[answer:]` has a loss, but for the places that are skipped."""

    ids: tuple[int, ...]
    answer: int
    cut: int = 0  # prompt tokens dropped at the front to fit the length
    other: Encoded | None = None  # the same prompt with the other answer of a pair
    # places behind `answer` without a loss, as what others say between several answers
    skipped: tuple[int, ...] = ()

    @property
    def learned(self) -> int:
        """The number of tokens that have a loss."""
        return len(self.ids) - self.answer - len(self.skipped)

    @property
    def opening(self) -> Encoded:
        """The row up to the first token of its answer, which is predicted at its prompt's last one.

        As nothing else is, what is taken where tokens are predicted is taken at the end of the prompt.
        """
        return Encoded(self.ids[: self.answer + 1], self.answer, self.cut)


@dataclass(frozen=True)
class Part:
    """A micro-batch: `ids`, `mask` and `labels` are (B, T).

    Pads are on the right. `labels` are ignored except on answer tokens.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    is_idle: bool = False  # a pass is made over it, and counts for nothing

    @property
    def idle(self) -> Part:
        """The same rows without an answer, to be passed over and not counted."""
        return Part(self.ids, self.mask, torch.full_like(self.labels, IGNORED), is_idle=True)

    @cached_property
    def real(self) -> Tensor:
        """Where the tokens are that count, (B, T): those that are no pads, none of an idle part."""
        return self.mask.bool() & (not self.is_idle)

    @cached_property
    def answered(self) -> Tensor:
        """Where in (B * T) a token of an answer is predicted: (N,), row by row."""
        ahead = nn.functional.pad(self.labels[:, 1:], (0, 1), value=IGNORED)  # (B, T)
        return (ahead.flatten() != IGNORED).nonzero().squeeze(1)

    @cached_property
    def targets(self) -> Tensor:
        """The tokens of the answers, (N,): those predicted at `answered`."""
        return self.ids.flatten()[self.answered + 1]

    def sum_by_row(self, values: Tensor) -> Tensor:
        """Sum a value of every answer token, (N,), over the answer of each row: (B,)."""
        rows = self.answered // self.ids.shape[1]
        return values.new_zeros(len(self.ids)).index_add(0, rows, values)


@dataclass(frozen=True)
class Batch:
    """The rows of one update from one stream.

    It has this rank's micro-batches, and the sizes of all ranks' together.
    """

    stream: str
    parts: tuple[Part, ...]
    tokens: int  # of answers
    length: int  # tokens, prompts included
    rows: int
    # the same prompts with the other answers, of the rows that are one of a pair
    others: Batch | None = None

    @staticmethod
    def of(
        stream: str,
        chunks: Sequence[Sequence[Encoded]],
        pad: int,
        device: torch.device | str = "cpu",
        mine: slice = EVERY,
    ) -> Batch:
        """Make the batch of the micro-batches of all ranks, of which `mine` are this rank's.

        A micro-batch without a row is left out.
        """
        rows = [row for chunk in chunks for row in chunk]
        parts = tuple(collate(chunk, pad, device) for chunk in chunks[mine] if chunk)
        pairs = [[row.other for row in chunk if row.other] for chunk in chunks]
        others = Batch.of(stream, pairs, pad, device, mine) if any(pairs) else None
        lengths = [len(row.ids) for row in rows]
        return Batch(
            stream,
            parts,
            sum(row.learned for row in rows),
            sum(lengths),
            len(rows),
            others,
        )


def collate(rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu") -> Part:
    """Pad rows on the right to one micro-batch, on `device`."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)  # (B, T)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        end = len(row.ids)
        ids[i, :end] = torch.tensor(row.ids)
        mask[i, :end] = 1
        labels[i, row.answer : end] = ids[i, row.answer : end]
        if row.skipped:
            labels[i, list(row.skipped)] = IGNORED
    return Part(ids.to(device), mask.to(device), labels.to(device))


def hash_rows(streams: Mapping[str, Sequence[Encoded]]) -> str:
    """Return the SHA-256 of the rows of all streams, in their order.

    Every part has its length before it, so that no other rows have these bytes.
    """
    hasher = hashlib.sha256()
    for name, rows in sorted(streams.items()):
        hasher.update(json.dumps([name, len(rows)]).encode())
        for row in rows:
            each: Encoded | None = row
            while each is not None:  # then the other answer of its pair
                paired = each.other is not None
                shape = len(each.ids), each.answer, each.cut, len(each.skipped), paired
                hasher.update(array("q", (*shape, *each.ids, *each.skipped)))
                each = each.other
    return hasher.hexdigest()


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the indices of all entries in batches of at most `size`, the shortest first.

    So entries of like length share a batch, and little is padded.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


@dataclass
class Stream:
    """Rows in an endless seeded order.

    Every epoch is a permutation of all rows, and `position` says where the stream stands.
    """

    name: str
    rows: Sequence[Encoded]
    seed: int
    position: int = 0
    # the epoch and its permutation
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def take(self, count: int) -> list[Encoded]:
        """Return the next `count` rows."""
        taken = []
        for place in range(self.position, self.position + count):
            epoch, index = divmod(place, len(self.rows))
            taken.append(self.rows[self._permutation(epoch)[index]])
        self.position += count
        return taken

    def _permutation(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            seed = hashlib.sha256(f"{self.seed} {self.name} {epoch}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        return self._order[1]
