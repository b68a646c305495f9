"""Rehearse a training on the meta device: what its updates take, counted before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from transformers import PreTrainedModel

from titer.attributes import swap
from titer.data.batches import Encoded, Stream
from titer.methods import Defense
from titer.training.count import Attention, Imagined, Work
from titer.training.layers import recompute_layers
from titer.training.loop import Loop
from titer.training.settings import Training
from titer.training.step import Step
from titer.training.train import accelerator_for, weigh_phases
from titer.weights import adapters, checkpoints
from titer.weights.checkpoints import trainable
from titer.weights.settings import Checkpoint, Lora

MOST = 2000  # micro-batches of a stream that are looked at for their size
LONGEST = 8  # updates; of a longer period some are counted, spread over it
PARTS = 3  # micro-batches of an update that are counted; each further one adds as much as the last


@dataclass(frozen=True)
class Counted:
    """What a training takes beside the weights of its model."""

    peak: int  # bytes alive at once, at the most
    resting: int  # bytes alive between two updates: moments, a reference, a method's state
    trained: int  # bytes of the trained weights
    once: Work  # what is done but once, before the first update and after the last
    update: Work  # of a counted update, a mean over the stage


@dataclass(frozen=True)
class Size:
    """Micro-batches of a stream, as if all their rows were alike."""

    rows: int
    length: int  # tokens of a row, pads included
    learned: int  # tokens of a row that carry loss
    other: Size | None = None  # of the other answers of pairs

    def encode(self, token: int) -> list[Encoded]:
        """Make rows of this size of one token, in two kinds; of pairs, as many with another answer."""
        answer = max(self.length - max(self.learned, 1), 1)
        others = self.other.encode(token) if self.other else []
        rows = [
            Encoded((i % 2, *(token,) * (self.length - 1)), answer) for i in range(self.rows)
        ]
        return [
            *(replace(row, other=other) for row, other in zip(rows, others, strict=False)),
            *rows[len(others) :],
        ]


def imagine(checkpoint: Checkpoint, lora: Lora | None) -> PreTrainedModel:
    """Return the model of a checkpoint on the meta device, to be trained; nothing of it is read but
    its configuration.
    """
    return adapt(checkpoints.skeleton(checkpoint), getattr(torch, checkpoint.dtype), lora)


def adapt(model: PreTrainedModel, dtype: torch.dtype, lora: Lora | None) -> PreTrainedModel:
    """Make a model on the meta device what a training makes of it: under a fresh adapter, or with
    all its weights in float32.
    """
    model.to(dtype=dtype if lora else torch.float32)  # type: ignore[call-arg]
    model.requires_grad_(lora is None)
    if lora:
        with torch.device("meta"):
            model = adapters.add_lora(model, lora)
    return model.eval()


def size_batches(rows: Sequence[Encoded], settings: Training, seed: int) -> tuple[Size, Size]:
    """Return a typical and the largest micro-batch that a stream will hand out."""
    stream, count = Stream("rows", rows, seed), min(MOST, settings.updates * settings.accumulate)
    found = [_measure(stream.take(settings.batch)) for _ in range(count)]
    return _join(found, fmean), _join(found, max)


def _measure(rows: Sequence[Encoded]) -> Size:
    others = [row.other for row in rows if row.other]
    return Size(
        len(rows),
        max(len(row.ids) for row in rows),
        -(-sum(row.learned for row in rows) // len(rows)),
        _measure(others) if others else None,
    )


def _join(sizes, by) -> Size:
    others = [size.other for size in sizes if size.other]
    return Size(
        *(round(by([getattr(size, name) for size in sizes])) for name in ("rows", "length", "learned")),
        _join(others, by) if others else None,
    )


def rehearse(
    model: PreTrainedModel,
    defense: Defense,
    sizes: Mapping[str, Size],
    settings: Training,
    *,
    recompute: bool = False,
) -> Counted:
    """Count the updates of a training, with micro-batches of these sizes, on a model that is imagined.

    Of a method whose updates differ some are counted, spread over its period. Raises where a
    method needs the values of its model to go on.
    """
    parts = min(settings.accumulate, PARTS)
    counts = [
        _follow(model, defense, sizes, replace(settings, accumulate=each), recompute)
        for each in ((parts - 1, parts) if settings.accumulate > PARTS else (parts,))
    ]
    last, more = counts[-1], settings.accumulate - parts
    if not more:
        return last
    before = counts[0]
    further = last.update + -1 * before.update
    return replace(
        last,
        peak=last.peak + more * max(last.peak - before.peak, 0),
        update=last.update + more * further,
    )


def _follow(
    model: PreTrainedModel,
    defense: Defense,
    sizes: Mapping[str, Size],
    settings: Training,
    recompute: bool,
) -> Counted:
    streams = {  # each of its own prompts
        name: Stream(name, sizes[name].encode(token), 0)
        for token, name in enumerate(defense.needs.streams)
    }
    weights = [*model.parameters(), *model.buffers()]
    parameters = trainable(model)
    again = recompute_layers(model) if recompute else nullcontext()
    plain = swap(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta device
    with plain, Attention(), Imagined(weights) as counted, again:
        step = Step(
            model, parameters, streams, accelerator_for(), settings.batch, settings.accumulate
        )
        loop = Loop(step, defense, settings)
        loop.state = defense.prepare(step)
        once, update = counted.work, Work()
        for phase, share in weigh_phases(defense, settings.updates):
            numbers = _spread(defense.period)
            found = []
            for number in numbers:
                before = counted.work
                loop.follow(number, phase)
                found.append(counted.work + -1 * before)
            mean = (1 / len(found[1:])) * sum(found[1:], Work())
            first = found[0] + -1 * mean
            period = min(
                defense.period if defense.period > LONGEST else settings.updates, settings.updates
            )
            update += share * (mean + (1 / period) * first)
        resting, before = counted.now, counted.work
        defense.finish(replace(step, logged={}, _batches={}), loop.state)
        once += counted.work + -1 * before
    trained = sum(p.numel() * p.element_size() for p in parameters.values())
    return Counted(counted.peak, resting, trained, once, update)


def _spread(period: int) -> list[int]:
    """Return the updates to count: the first, and a period after it, or eight updates of a long one."""
    if period <= LONGEST:
        return [1, *range(2, 2 + period)]
    return [1 + i * max(period // 10, 1) for i in range(LONGEST + 1)]
