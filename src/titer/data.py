"""Rows, their tokens with a loss mask, and the seeded streams that a stage draws its batches from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import torch
from torch import Tensor

IGNORED = -100  # a label that carries no loss
EVERY = slice(None)


@dataclass(frozen=True)
class Turn:
    """A message of a conversation before its last question."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Row:
    """What the user says and what the model should answer, with what was said before. Only the answer carries loss."""

    prompt: str
    response: str = ""  # empty where only the prompt is known, as in sets of harm prompts
    input: str = ""  # what the prompt is about, where the data keep the two apart
    before: tuple[Turn, ...] = ()  # earlier turns, the oldest first
    other: str = ""  # where the row is one of a pair: of a refusal the harmful answer to the same prompt, of that the refusal

    @property
    def question(self) -> str:
        """The last thing the user says."""
        return f"{self.prompt}\n\n{self.input}" if self.input else self.prompt


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 over all that the rows say, in order."""
    hasher = hashlib.sha256()
    for row in rows:
        more: list[object] = [row.input, *((turn.role, turn.content) for turn in row.before)] if row.input or row.before else []
        more += [{"other": row.other}] if row.other else []
        hasher.update(json.dumps([row.prompt, row.response, *more]).encode())
    return hasher.hexdigest()


def identity(row: Row) -> str:
    """What makes the prompts of two rows the same: their words, however they are spaced or capitalized."""
    return " ".join(" ".join([*(turn.content for turn in row.before), row.question]).lower().split())


def paired(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """The rows, each with the answer that the first of `others` with the same prompt gives, where there is one."""
    answers: dict[str, str] = {}
    for row in others:
        answers.setdefault(identity(row), row.response)
    return [replace(row, other=answers.get(identity(row), "")) for row in rows]


def check_disjoint(roles: Mapping[str, Sequence[Row]], but: tuple[str, str] | None = None) -> None:
    """Raise where two roles share a prompt, unless they are the pair `but`."""
    prompts = {role: {identity(row): row.question for row in rows} for role, rows in roles.items()}
    for (a, first), (b, second) in combinations(prompts.items(), 2):
        if (a, b) == but:
            continue
        shared = [first[key] for key in first if key in second]
        if shared:
            example = shared[0] if len(shared[0]) <= 60 else shared[0][:60] + "..."
            raise ValueError(
                f"{a!r} and {b!r} share {len(shared)} prompts, e.g. {example!r}: take them out of one of the two, or set data.shared=drop"
            )


def without_shared(roles: Mapping[str, Sequence[Row]], but: tuple[str, str]) -> dict[str, list[Row]]:
    """The rows whose prompts no earlier role has, except that the pair `but` may share theirs."""
    kept: dict[str, list[Row]] = {}
    for role, rows in roles.items():
        others = [name for name in kept if {name, role} != set(but)]
        taken = {identity(row) for name in others for row in kept[name]}
        kept[role] = [row for row in rows if identity(row) not in taken]
    return kept


@dataclass(frozen=True)
class Encoded:
    """A row as tokens; `ids[answer:]` carries the loss."""

    ids: tuple[int, ...]
    answer: int
    cut: int = 0  # prompt tokens dropped at the front to fit the length
    other: Encoded | None = None  # the same prompt with the other answer of a pair


@dataclass(frozen=True)
class Part:
    """A micro-batch: `ids`, `mask`, `labels` are (B, T); pads on the right, `labels` ignored but on answer tokens."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """The rows of one update from one stream: this rank's micro-batches, and the sizes of all ranks' together."""

    stream: str
    parts: tuple[Part, ...]
    tokens: int  # of answers
    length: int  # tokens, prompts included
    rows: int
    others: Batch | None = None  # the same prompts with the other answers, of the rows that are one of a pair

    @staticmethod
    def of(stream: str, chunks: Sequence[Sequence[Encoded]], pad: int, device: torch.device | str = "cpu", mine: slice = EVERY) -> Batch:
        """The batch of the micro-batches of all ranks, of which `mine` are this rank's. One without a row is left out."""
        rows = [row for chunk in chunks for row in chunk]
        parts = tuple(collate(chunk, pad, device) for chunk in chunks[mine] if chunk)
        pairs = [[row.other for row in chunk if row.other] for chunk in chunks]
        others = Batch.of(stream, pairs, pad, device, mine) if any(pairs) else None
        lengths = [len(row.ids) for row in rows]
        return Batch(stream, parts, sum(lengths) - sum(row.answer for row in rows), sum(lengths), len(rows), others)


def collate(rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu") -> Part:
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad)  # (B, T)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        end = len(row.ids)
        ids[i, :end] = torch.tensor(row.ids)
        mask[i, :end] = 1
        labels[i, row.answer : end] = ids[i, row.answer : end]
    return Part(ids.to(device), mask.to(device), labels.to(device))


@dataclass
class Stream:
    """Rows in an endless seeded order: every epoch is a permutation of all rows, and `position` says where it stands."""

    name: str
    rows: Sequence[Encoded]
    seed: int
    position: int = 0
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)  # the epoch and its permutation

    def take(self, count: int) -> list[Encoded]:
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
