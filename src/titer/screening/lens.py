"""The model at hand, as signals look at rows through it: their gradients, and its states on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from titer.data.batches import Batch, Encoded, Part, by_length, collate
from titer.data.rows import Row
from titer.data.template import Template, TooLongError
from titer.training.layers import decoder_layers
from titer.training.losses import entropies, pad_of, run
from titer.training.settings import Watch, unwatched
from titer.training.step import Step
from titer.training.train import accelerator_for
from titer.training.vector import Vec
from titer.weights.checkpoints import trainable

AT_ONCE = 16  # rows of a pass
Place = Literal["answer", "prompt"]
States = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Lens:
    """A model and its template. What was looked at once is kept."""

    model: PreTrainedModel
    template: Template
    watch: Watch = unwatched  # is told of every row whose gradient is taken
    _encoded: dict[Row, Encoded] = field(default_factory=dict)
    _anchors: dict[str, Vec] = field(
        default_factory=dict
    )  # unit gradients, each as large as the model
    _cosines: dict[tuple[Row, str], float] = field(default_factory=dict)
    _states: dict[tuple[Row, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def find_fault(self, row: Row) -> str:
        """Say why the model cannot read a row, as where it is too long; empty where it can."""
        try:
            self._encode(row)
        except TooLongError as error:  # its own text quotes the row
            most = self.template.max_length
            return f"an answer of {error.answer} tokens leaves no room within max_length={most}: raise it"
        except ValueError as error:
            return str(error)
        return ""

    def agreements(
        self, rows: Sequence[Row], anchors: Mapping[str, Sequence[Row]]
    ) -> dict[str, list[float]]:
        """Return the cosine of every row's gradient to that of each anchor's mean loss, by its name.

        Gradients are over all weights that the model trains. A name means the same rows at every
        call. Raises where a gradient is not finite.
        """
        step = Step(self.model, trainable(self.model), {}, accelerator_for(), AT_ONCE)
        new = [
            row
            for row in dict.fromkeys(rows)
            if any((row, name) not in self._cosines for name in anchors)
        ]
        for name, of in anchors.items() if new else ():
            if name not in self._anchors:  # hundreds of rows, and the same ones at every call
                self._anchors[name] = _copy(step.grad(self._batch(name, of)).unit())
        for done, row in enumerate(new, 1):
            g = step.grad(self._batch("upload", [row]))
            for name in anchors:
                self._cosines[row, name] = g.cosine(self._anchors[name])
            self.watch(done, len(new), {})
        return {name: [self._cosines[row, name] for row in rows] for name in anchors}

    def losses(self, rows: Sequence[Row]) -> list[float]:
        """Return the mean loss of every row's answer tokens, in nats."""
        found = [0.0] * len(rows)
        encoded = [self._encode(row) for row in rows]
        for places in by_length([len(each.ids) for each in encoded], AT_ONCE):
            part = collate([encoded[i] for i in places], pad_of(self.model), self.model.device)
            with torch.no_grad():
                sums = part.sum_by_row(entropies(self.model, part).double()).tolist()
            for i, total in zip(places, sums, strict=True):
                found[i] = total / encoded[i].learned
        return found

    def directions(self, rows: Sequence[Row], layers: Sequence[int], at: Place) -> States:
        """Return the residual stream behind each of the layers, of length 1: (rows, layers, D).

        It is taken at the last token of the prompt, or of the answer before the one that ends it.
        No `layers` mean the middle one. Raises where the model has no such layer.
        """
        chosen = self._choose(layers)
        new = [row for row in dict.fromkeys(rows) if (row, chosen) not in self._states]
        encoded = [self._encode(row) for row in new]
        for places in by_length([len(each.ids) for each in encoded], AT_ONCE):
            part = collate([encoded[i] for i in places], pad_of(self.model), self.model.device)
            self._states.update(
                ((new[i], chosen), state)
                for i, state in zip(places, self._look(part, chosen), strict=True)
            )
        place = 1 if at == "answer" else 0
        states = torch.stack([self._states[row, chosen][:, place] for row in rows]).double()
        found: States = (states / states.norm(dim=2, keepdim=True)).numpy()
        return found

    def _choose(self, layers: Sequence[int]) -> tuple[int, ...]:
        depth = len(self._layers)
        wrong = [layer for layer in layers if not 0 <= layer < depth]
        if wrong:
            raise ValueError(
                f"layers={list(layers)}: the model has no layer {wrong[0]}; choose some of 0 to "
                f"{depth - 1}"
            )
        return tuple(layers) or (depth // 2,)

    def _look(self, part: Part, layers: Sequence[int]) -> list[Tensor]:
        """Return the states of every row of a batch at its prompt's and its answer's end: (L, 2, D)."""
        seen: dict[int, Tensor] = {}

        def keep(_module: object, _inputs: object, output: Tensor, layer: int) -> None:
            seen[layer] = output

        with torch.no_grad(), ExitStack() as hooks:
            for layer in layers:
                hook = partial(keep, layer=layer)
                hooks.callback(self._layers[layer].register_forward_hook(hook).remove)
            run(self.model, part)
        # the first token of an answer is predicted at its prompt's last, its end at its own last
        ends = [
            (part.answered[mine].min(), part.answered[mine].max())
            for i in range(len(part.ids))
            if (mine := part.answered // part.ids.shape[1] == i).any()
        ]
        flat = torch.stack([seen[layer].flatten(0, 1) for layer in layers])  # (L, B * T, D)
        return [flat[:, list(map(int, pair))].cpu() for pair in ends]

    @property
    def _layers(self) -> list[torch.nn.Module]:
        return decoder_layers(self.model)

    def _encode(self, row: Row) -> Encoded:
        if row not in self._encoded:
            self._encoded[row] = self.template.encode(row)
        return self._encoded[row]

    def _batch(self, name: str, rows: Sequence[Row]) -> Batch:
        encoded = [self._encode(row) for row in rows]
        chunks = [encoded[i : i + AT_ONCE] for i in range(0, len(encoded), AT_ONCE)]
        return Batch.of(name, chunks, pad_of(self.model), self.model.device)


def _copy(vec: Vec) -> Vec:
    """Return a vector with its values computed, as it is used often: the next gradient takes their place."""
    return Vec.of({name: vec.value(name) for name in vec.names()})
