"""One optimizer update, as a defense sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data import IGNORED, Batch, Part, Stream, collate
from titer.methods import Phase
from titer.vector import Vec

PREPARING = Phase("prepare", 0)
Loss = Callable[[PreTrainedModel, Part], Tensor]


def cross_entropy(model: PreTrainedModel, part: Part) -> Tensor:
    """Sum over the answer tokens of -log p(token | what stands before it), in nats; the first answer token included."""
    logits = model(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits  # (B, T, V)
    wide = torch.promote_types(logits.dtype, torch.float32)  # half precision cannot hold a log-softmax; float64 stays
    # the labels move to the token that each is predicted from, not the logits, which are large: a slice of them would be copied
    labels = nn.functional.pad(part.labels[:, 1:], (0, 1), value=IGNORED)  # (B, T)
    return nn.functional.cross_entropy(logits.flatten(0, 1).to(wide), labels.flatten(), ignore_index=IGNORED, reduction="sum")


@dataclass
class Step:
    """What `Defense.gradient` may ask of an update.

    Every context puts the weights back bit for bit, also after an exception, by copying what it saved: adding a step and
    subtracting it again is not exact.
    """

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]  # the trainable ones, by name
    streams: Mapping[str, Stream]
    accelerator: Accelerator
    batch_size: int  # rows of a micro-batch
    accumulate: int = 1  # micro-batches of an update, per rank
    update: int = 0  # counted from 1; 0 while preparing
    phase: Phase = PREPARING
    autocast: torch.dtype | None = None  # what the passes compute in, where the weights are kept finer
    logged: dict[str, float] = field(default_factory=dict)
    _batches: dict[str, Batch] = field(default_factory=dict)

    def batch(self, stream: str) -> Batch:
        """This update's batch of a stream: the same one however often it is asked for."""
        if stream not in self._batches:
            self._batches[stream] = self.draw(stream)
        return self._batches[stream]

    def draw(self, stream: str) -> Batch:
        """The next batch of a stream: all ranks draw the same rows, and each keeps its own share of the micro-batches."""
        if stream not in self.streams:
            raise ValueError(f"no stream {stream!r}: the method declares {', '.join(self.streams)}")
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = self.batch_size
        rows = self.streams[stream].take(size * self.accumulate * ranks)
        mine = rows[rank * size * self.accumulate :][: size * self.accumulate]
        pad = self.model.config.pad_token_id or 0
        parts = tuple(collate(mine[i : i + size], pad, self.accelerator.device) for i in range(0, len(mine), size))
        return Batch(stream, parts, tokens=sum(len(row.ids) - row.answer for row in rows))

    def grad(self, batch: Batch, loss: Loss = cross_entropy) -> Vec:
        """Gradient of the token-weighted mean of `loss` (a sum over tokens) over the whole update: micro-batches and ranks.

        A parameter that the loss does not reach is absent. Raises where loss or gradient is not finite.
        """
        self._clear()  # an inner optimizer may have left its own behind
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        try:
            for part in batch.parts:
                with torch.autocast(self.accelerator.device.type, self.autocast) if self.autocast else nullcontext():
                    value = loss(self.model, part) / batch.tokens
                self.accelerator.backward(value)
                total += value.detach()
            reached = self._reduce()
        finally:
            self._clear()
        mean = float(self.accelerator.reduce(total, "sum"))
        wrong = f"loss is {mean}" if not math.isfinite(mean) else "gradient is not finite"
        if not math.isfinite(mean) or not nn.utils.get_total_norm(reached.values()).isfinite():
            where = f"update {self.update}" if self.update else "preparation"
            raise ValueError(f"the {wrong} at {where} on stream {batch.stream!r}: lower the learning rate or look at these rows")
        return Vec.of(reached, mean)

    @contextmanager
    def moved(self, vec: Vec) -> Iterator[None]:
        """Inside, the weights stand at w + vec."""
        with self.scratch(vec.names()):
            vec.add_to(self.parameters)
            yield

    @contextmanager
    def scratch(self, names: Iterable[str] | None = None) -> Iterator[None]:
        """Inside, the trainable weights (or those named) may be changed at will."""
        saved = {name: self.parameters[name].detach().clone() for name in (self.parameters if names is None else names)}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    self.parameters[name].copy_(value)

    def log(self, **terms: float | None) -> None:
        """Terms to show and to keep with the run, by the names that the paper gives them."""
        self.logged |= {name: value for name, value in terms.items() if value is not None}

    def _clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _reduce(self) -> dict[str, Tensor]:
        """The gradients, summed over ranks, taken from the parameters without a copy."""
        if self.accelerator.num_processes > 1:
            here = torch.tensor([p.grad is not None for p in self.parameters.values()], dtype=torch.long)
            anywhere = self.accelerator.reduce(here.to(self.accelerator.device), "sum").tolist()
            for parameter, reached in zip(self.parameters.values(), anywhere, strict=True):
                if reached:  # every rank must take part in a reduction that any rank needs
                    mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = self.accelerator.reduce(mine, "sum")
        return {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
