"""The rows of a trainer's dataloader, as the stream that a defense draws from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import torch
from accelerate import skip_first_batches
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from titer.data.batches import IGNORED, Encoded, Stream

INPUTS = ("input_ids", "labels", "attention_mask", "position_ids")
# what a collator that joins rows says again of their positions
SAID_TWICE = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
AT_ONCE = 64  # rows that are read together where all are
PLACE = ("position", "epoch", "read", "paired")


@dataclass
class Feed(Stream):
    """The rows of a dataloader in its order, an epoch after the other.

    It is read as far as rows are drawn, so what an update does not draw is there for the next. As
    in a trainer, an epoch ends with a smaller draw where its rows do not fill a whole one. `rows`
    are `AllRows`.
    """

    loader: Any = None
    # the other answer to a prompt, by its tokens
    pairs: Mapping[tuple[int, ...], Encoded] = field(default_factory=dict)
    paired: int = 0  # rows that got one
    drawn: list[Encoded] = field(default_factory=list)  # since the list was emptied
    epoch: int = 0
    read: int = 0  # micro-batches of this epoch
    _left: list[Encoded] = field(default_factory=list)  # of the last one, not drawn yet
    _batches: Iterator[Mapping[str, Any]] | None = None
    _rng: Tensor | None = None  # torch's generator before the epoch, which its order may hang on

    def take(self, count: int) -> list[Encoded]:
        """Return the next `count` rows, or those that are left of an epoch.

        Raises where an epoch has none.
        """
        taken: list[Encoded] = []
        while len(taken) < count:
            if not self._left and not self._read():
                if not self.read:
                    raise ValueError(f"epoch {self.epoch + 1} of the train dataset has no row")
                self.check_pairs()
                self.epoch, self.read, self._batches = self.epoch + 1, 0, None
                if taken:
                    break
            more = self._left[: count - len(taken)]
            del self._left[: len(more)]
            taken += more
        self.position += len(taken)
        self.drawn += taken
        return taken

    def check_pairs(self) -> None:
        """Raise where no row has got the other answer to its prompt."""
        if self.pairs and not self.paired:
            raise ValueError(
                f"rows['pairs']: none of its {len(self.pairs)} prompts is that of a row that was trained "
                "on, token by token: give harmful answers to prompts of the train dataset"
            )

    def place(self, tensors: dict[str, Tensor]) -> dict[str, int]:
        """Say where it stands. The generator's state is put into `tensors`."""
        if self._rng is not None:
            tensors["rng"] = self._rng
        counts = {name: getattr(self, name) for name in PLACE}
        return counts | {"left": len(self._left)}

    def resume(self, place: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        """Go to where another one stood, without reading what that one had drawn."""
        for name in PLACE:
            setattr(self, name, place[name])
        if not self.read:  # an epoch ends there
            return
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(tensors["rng"])
            self._open(self.read - 1)
            rows = self._pair(self._gather())
        self._left = rows[len(rows) - place["left"] :]

    def _read(self) -> bool:
        """Read the next micro-batch. Return False where the epoch ends."""
        if self._batches is None:
            self._open()
        every = self._gather()
        if not any(each is not None for each in every):
            return False
        self.read += 1
        self._left = self._pair(every)
        return True

    def _open(self, skip: int = 0) -> None:
        """Begin the epoch, behind so many of its micro-batches."""
        self._rng = torch.get_rng_state()
        if hasattr(self.loader, "set_epoch"):  # one of accelerate's, which shuffles by it
            self.loader.set_epoch(self.epoch)
        self._batches = iter(skip_first_batches(self.loader, skip) if skip else self.loader)

    def _gather(self) -> list[list[Encoded] | None]:
        """Read the next micro-batch on every rank; return the rows of all, None where there is none.

        A trainer gives each rank its own, and a defense draws from those of all.
        """
        assert self._batches is not None
        batch = next(self._batches, None)
        mine = None if batch is None else read_rows(batch)
        every: list[list[Encoded] | None] = gather_object([mine])
        return every

    def _pair(self, every: Sequence[Sequence[Encoded] | None]) -> list[Encoded]:
        rows = [row for each in every for row in each or ()]
        if not self.pairs:
            return rows
        rows = [replace(row, other=self.pairs.get(row.ids[: row.answer])) for row in rows]
        self.paired += sum(row.other is not None for row in rows)
        return rows


@dataclass(eq=False)
class AllRows(Sequence[Encoded]):
    """The rows of a dataloader's dataset in its order, for those who look before the first update.

    They are read when the first one is asked for, and kept.
    """

    loader: Any

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Encoded: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, place: int | slice) -> Encoded | Sequence[Encoded]:
        return self._rows[place]

    @cached_property
    def _rows(self) -> list[Encoded]:
        dataset = self.loader.dataset
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                "this defense looks at all rows before the first update, and an iterable dataset may have no "
                "end: give one that has a length"
            )
        plain = DataLoader(dataset, AT_ONCE, collate_fn=self.loader.collate_fn)
        with torch.random.fork_rng(devices=[]):  # the trainer's draws stay as they would be
            return [row for batch in plain for row in read_rows(batch)]


def read_rows(inputs: Mapping[str, Any]) -> list[Encoded]:
    """Return the rows of a micro-batch, padded on either side or joined to one sequence.

    Their labels say which tokens have a loss. A row of one token, from which nothing is predicted,
    is left out. Raises where the model is to see anything else than the rows' tokens.
    """
    known = (*INPUTS, *SAID_TWICE) if "position_ids" in inputs else INPUTS
    strange = [name for name in inputs if name not in known]
    if strange:
        raise ValueError(
            f"the trainer's batches have {strange[0]!r}, which no defense would see: it reads "
            f"{', '.join(INPUTS)} alone, so let the data collator make no more"
        )
    for name in ("input_ids", "labels"):
        if name not in inputs:
            raise ValueError(
                f"the trainer's batches have no {name!r}: its data collator must make them, with "
                f"{IGNORED} as the label of a token that has no loss"
            )
    ids, labels = inputs["input_ids"], inputs["labels"]  # (B, T)
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    counted = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    positions = inputs.get("position_ids", counted - (~mask).int().cumprod(1).sum(1, keepdim=True))
    rows = []
    for i, real in enumerate(mask):
        tokens, targets, places = (of[i][real].tolist() for of in (ids, labels, positions))
        starts = [at for at, place in enumerate(places) if place == 0]
        spans = list(zip(starts, [*starts, len(places)][1:], strict=True))
        if places != [place for a, b in spans for place in range(b - a)]:
            raise ValueError(
                "a row of the trainer's batches has positions that are not counted from 0, or an "
                "attention mask with a gap: no defense would see it so"
            )
        rows += [_row(tokens[a:b], targets[a:b]) for a, b in spans if b - a > 1]
    return rows


def _row(ids: Sequence[int], labels: Sequence[int]) -> Encoded:
    """Return a row whose loss is where its labels have it. The first token is never predicted."""
    learned = [at for at in range(1, len(ids)) if labels[at] != IGNORED]
    wrong = [at for at in learned if labels[at] != ids[at]]
    if wrong:
        raise ValueError(
            f"a label of the trainer's batches is {labels[wrong[0]]} where the token is "
            f"{ids[wrong[0]]}: a defense trains on the rows' own tokens, so a label is that or "
            f"{IGNORED}"
        )
    answer = learned[0] if learned else len(ids)
    skipped = set(range(answer, len(ids))) - set(learned)
    return Encoded(tuple(ids), answer, skipped=tuple(sorted(skipped)))
