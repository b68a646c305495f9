"""Rehearse a training on the meta device: what its updates take, counted before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.attributes import swap
from titer.data.batches import Encoded, Stream
from titer.methods import Defense
from titer.phase import Phase
from titer.training.autocast import ImaginedAutocast
from titer.training.count import Effort, Imagined, attention
from titer.training.layers import decoder_layers, recompute_layers, unembedding
from titer.training.loop import Loop
from titer.training.settings import Training
from titer.training.step import Step
from titer.training.train import accelerator_for, passes_in
from titer.weights import adapters, checkpoints
from titer.weights.checkpoints import trainable
from titer.weights.settings import Checkpoint, Lora

MOST = 2000  # micro-batches of a stream that are looked at for their size
LONGEST = 8  # updates; of a longer period SAMPLES are counted, a tenth of it apart, and its last
SAMPLES = 4
PARTS = 3  # micro-batches of an update that are counted; each further one adds as much as the last


@dataclass(frozen=True)
class Counted:
    """What a training takes beside the weights of its model."""

    peak: int  # bytes alive at once, at the most
    activations: int  # and of them those of tensors that are shaped like no weight
    resting: int  # bytes alive between two updates: moments, a reference, a method's state
    trained: int  # bytes of the trained weights
    once: Effort  # what is done but once, before the first update and after the last
    update: Effort  # of a counted update, a mean over the stage


@dataclass(frozen=True)
class Size:
    """Micro-batches of a stream, as if all their rows were alike."""

    rows: int
    length: int  # tokens of a row, pads included
    learned: int  # tokens of a row that carry loss
    other: Size | None = None  # of the other answers of pairs

    @property
    def tokens(self) -> int:
        return self.rows * self.length + (self.other.tokens if self.other else 0)

    def encode(self, token: int) -> list[Encoded]:
        """Make rows of this size of one token, in two kinds; of pairs, as many with another answer."""
        answer = max(self.length - max(self.learned, 1), 1)
        others = self.other.encode(token) if self.other else []
        rows = [Encoded((i % 2, *(token,) * (self.length - 1)), answer) for i in range(self.rows)]
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
    model.eval()
    return model


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


def _join(sizes: Sequence[Size], by: Callable[[list[int]], float]) -> Size:
    """Make one size of several, by their mean, say, or the largest."""
    others = [size.other for size in sizes if size.other]
    return Size(
        round(by([size.rows for size in sizes])),
        round(by([size.length for size in sizes])),
        round(by([size.learned for size in sizes])),
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
    dtype = passes_in(settings)
    casts = swap(torch, "autocast", ImaginedAutocast)  # torch's own knows no meta device
    with (
        casts,
        attention(),
        Imagined(weights, head=find_head(model)) as counted,
        _cast_again(model, dtype) if recompute and dtype else nullcontext(),
        recompute_layers(model) if recompute else nullcontext(),
    ):
        step = Step(
            model, parameters, streams, accelerator_for(), settings.batch, settings.accumulate,
            autocast=dtype,
        )  # fmt: skip
        loop = Loop(step, defense, settings)
        loop.state = defense.prepare(step)
        once, update = counted.work, Effort()
        for phase, share in weigh_phases(defense, settings.updates):
            found, shares = [], _spread(defense.period, settings.updates)
            for number in (1, *shares):
                before = counted.work
                loop.follow(number, phase)
                found.append(counted.work + -1 * before)
            weighed = (of * work for of, work in zip(shares.values(), found[1:], strict=True))
            mean = sum(weighed, Effort())
            again_after = defense.period if defense.period > LONGEST else settings.updates
            first = (1 / min(again_after, settings.updates)) * (found[0] + -1 * mean)
            update += share * (mean + first)
        resting, before = counted.now, counted.work
        defense.finish(replace(step, logged={}, _batches={}), loop.state)
        once += counted.work + -1 * before
    trained = sum(p.numel() * p.element_size() for p in parameters.values())
    return Counted(counted.peak, counted.activations, resting, trained, once, update)


@contextmanager
def _cast_again(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Inside, layers compute in a coarser dtype also where a backward pass computes them again."""

    def forward(own: Callable[..., object], *given: object, **named: object) -> object:
        with ImaginedAutocast("meta", dtype):
            return own(*given, **named)

    with ExitStack() as stack:
        for layer in decoder_layers(model):
            stack.enter_context(swap(layer, "forward", partial(forward, layer.forward)))
        yield


def weigh_phases(defense: Defense, updates: int) -> list[tuple[Phase, float]]:
    """Return the first phase of every name, with its updates per counted update of a stage."""
    first: dict[str, Phase] = {}
    made: dict[str, int] = {}
    counted = 0
    for phase in defense.schedule(updates):
        first.setdefault(phase.name, phase)
        made[phase.name] = made.get(phase.name, 0) + phase.updates
        counted += phase.updates * phase.counted
    return [(phase, made[name] / counted) for name, phase in first.items()]


def count_bytes(model: PreTrainedModel) -> int:
    """Count the bytes of a model's weights and buffers, each storage once."""
    held = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(held.values())


def find_head(model: PreTrainedModel) -> torch.Size | None:
    """Return the shape of the weight that makes logits, (V, d), where no other has its shape.

    Products with it are few rows by a whole vocabulary, and slower for their operations than others.
    """
    head = unembedding(model)
    shape = cast(Tensor, head.weight).shape
    others = {
        each.weight.shape
        for each in model.modules()
        if isinstance(each, nn.Linear) and each is not head
    }
    return None if {shape, shape[::-1]} & others else shape


@dataclass(frozen=True)
class Passes:
    """What forward passes without a graph take beside the weights of their model."""

    peak: int  # bytes alive at once
    work: Effort


def rehearse_reading(model: PreTrainedModel, rows: int, length: int) -> Passes:
    """Count a pass over rows of so many tokens whose logits are all made, as where answers are read."""
    ids = torch.ones(rows, length, dtype=torch.long)
    with _imagined(model) as counted:
        model(input_ids=ids, use_cache=False)
    return Passes(counted.peak, counted.work)


def rehearse_answers(model: PreTrainedModel, rows: int, length: int, new: int) -> Passes:
    """Count the answers to a batch of prompts: they are read, and then every token is a pass.

    The cache of keys and values is as large at the end as prompts and answers are long. Every
    answer counts as if it had all its tokens.
    """
    ids = torch.ones(rows, length, dtype=torch.long)
    with _imagined(model) as counted:
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        read, cache = counted.work, output.past_key_values
        logits = 2 * output.logits.numel() * 4  # as the model made them, and in float32
        del output
        kept = counted.now
        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    step = counted.work + -1 * read
    grown = int(kept * (length + new) / length)
    return Passes(max(counted.peak, grown) + logits, read + (new - 1) * step)


@contextmanager
def _imagined(model: PreTrainedModel) -> Iterator[Imagined]:
    with (
        torch.no_grad(),
        attention(),
        Imagined([*model.parameters(), *model.buffers()], head=find_head(model)) as counted,
    ):
        yield counted


def _spread(period: int, updates: int) -> dict[int, float]:
    """Return the updates to count behind the first, with their shares of those: a period, or some
    of a long one and its last, at which alone some methods do their work.
    """
    if period <= LONGEST:
        return dict.fromkeys(range(2, 2 + period), 1 / period)
    last = 1 / (period - 1) if period <= updates else 0.0  # a short stage does not come so far
    some = [1 + i * (period // 10 or 1) for i in range(1, SAMPLES)]
    return dict.fromkeys(some, (1 - last) / len(some)) | ({period: last} if last else {})
