"""One optimizer update, as a defense sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from titer.data.batches import Batch, Encoded, Part, Stream, collate
from titer.phase import Phase
from titer.training.activations import Acts
from titer.training.layers import Layer, base_of, layers, once, recompute_layers
from titer.training.losses import Loss, cross_entropy, pad_of, run
from titer.training.vector import Vec
from titer.weights.norms import square
from titer.weights.shards import is_sharded, whole

PREPARING = Phase("prepare", 0)


@dataclass
class Step:
    """One optimizer update, with all that `Defense.gradient` may ask of it.

    Every context puts the weights back bit for bit, also after an exception, by copying what it
    saved: adding a step and subtracting it again is not exact.
    """

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]  # the trainable ones, by name
    streams: Mapping[str, Stream]
    accelerator: Accelerator
    batch_size: int  # rows of a micro-batch
    accumulate: int = 1  # micro-batches of an update, per rank
    update: int = 0  # counted from 1; 0 while preparing
    phase: Phase = PREPARING
    # what the passes compute in, where the weights are kept finer
    autocast: torch.dtype | None = None
    logged: dict[str, float] = field(default_factory=dict)
    # of a method with a reference: the weights that the stage began with
    start: Mapping[str, Tensor] | None = None
    # rows of an update, over ranks; None: as many as its micro-batches hold
    rows: int | None = None
    _batches: dict[str, Batch] = field(default_factory=dict)
    _layers: list[Layer] = field(default_factory=list)  # found once, for all updates
    _part: Part | None = None  # the micro-batch that a pass is at

    @property
    def size(self) -> int:
        """The rows of an update, over micro-batches and ranks."""
        ranks: int = self.accelerator.num_processes
        return self.rows or self.batch_size * self.accumulate * ranks

    def batch(self, stream: str) -> Batch:
        """Return this update's batch of a stream: the same one however often it is asked for."""
        if stream not in self._batches:
            self._batches[stream] = self.draw(stream)
        return self._batches[stream]

    def draw(self, stream: str, count: int | None = None) -> Batch:
        """Draw the next batch of a stream, of as many rows as an update has, or of `count`.

        All ranks draw the same rows, and each keeps its own share of the micro-batches: of fewer
        rows than these hold, the last ranks have none. Raises where the method declares no such
        stream.
        """
        return self.collate(stream, self._take(stream, self.size if count is None else count))

    def prompts(self, stream: str, count: int) -> Batch:
        """Draw the next `count` prompts of a stream.

        Of an answer the first token alone is kept. So `Part.answered` is where every prompt ends, and
        `grad` takes a mean over prompts. Micro-batches are no larger than others; a rank may have none.
        """
        return self.collate(stream, [row.opening for row in self._take(stream, count)])

    def mix(self, stream: str, other: str, share: float) -> Batch:
        """Draw the next batch of two streams together, a `share` of its rows from the other one.

        After any number of updates the share is met to the nearest row, also where it is less than
        a row of a batch.
        """
        done = [round(update * share * self.size) for update in (self.update - 1, self.update)]
        theirs = done[1] - done[0]
        rows = [*self._take(stream, self.size - theirs), *self._take(other, theirs)]
        return self.collate(f"{stream} and {other}", rows)

    def grad(self, batch: Batch, loss: Loss = cross_entropy) -> Vec:
        """Return the gradient of the token-weighted mean of `loss` over the whole update.

        `loss` is a sum over tokens, and the mean is over micro-batches and ranks. A parameter that
        it does not reach is absent. Raises where the loss or the gradient is not finite.
        """
        self._clear()  # an inner optimizer may have left its own behind
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        try:
            for part in self._pass_over(batch):
                with self.computing():
                    value = loss(self.model, part) / batch.tokens
                self._gather_head()
                value.backward()  # accelerate's own divides by a count that the environment may set
                total += value.detach()
            reached = self._reduce()
        finally:
            self._clear()
        mean = float(self.accelerator.reduce(total, "sum"))
        norm = whole(nn.utils.get_total_norm(reached.values()))
        self._check(mean, bool(norm.isfinite()), batch)
        return Vec.of(reached, mean)

    @property
    def sharded(self) -> bool:
        """Whether of every weight this rank holds a part alone."""
        return is_sharded(self.parameters.values())

    @property
    def depth(self) -> int:
        """The number of decoder layers."""
        return len(self.layers)

    @property
    def layers(self) -> list[Layer]:
        """The decoder layers with their parts."""
        if not self._layers:
            self._layers.extend(layers(self.model))
        return self._layers

    def at(
        self, batch: Batch, chosen: Collection[int] | None = None, loss: Loss = cross_entropy
    ) -> Acts:
        """Return the gradient at the attention outputs of the chosen layers.

        The objective is that of `grad`. All layers are chosen where none are named. No weight gets
        a gradient. The outputs are taken before a layer adds them to its residual stream, and the
        backward pass ends at the lowest of them.
        """
        modules = {
            i: layer.attention
            for i, layer in enumerate(self.layers)
            if chosen is None or i in chosen
        }
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        parts: list[dict[int, Tensor]] = []
        with self._freeze(self.parameters), ExitStack() as hooks:
            outputs: dict[int, Tensor] = {}

            def catch(output: Tensor, layer: int) -> Tensor:
                if not output.requires_grad:
                    output.requires_grad_()  # the lowest: nothing before it has a graph
                outputs.setdefault(layer, output)  # the first: a backward pass may compute it again
                return output

            for i, module in modules.items():
                hooks.enter_context(_replace_output(module, partial(catch, layer=i)))
            for part in self._pass_over(batch):
                outputs.clear()
                with self.computing():
                    value = loss(self.model, part) / batch.tokens
                self._gather_head()
                parts.append(
                    dict(
                        zip(
                            modules,
                            torch.autograd.grad(value, [outputs[i] for i in modules]),
                            strict=True,
                        )
                    )
                )
                total += value.detach()
        mean = float(self.accelerator.reduce(total, "sum"))
        acts = self.acts(batch, parts, mean, list(modules))
        self._check(mean, all(math.isfinite(square) for square in acts.squares.values()), batch)
        return acts

    def outputs(self, batch: Batch) -> list[dict[int, Tensor]]:
        """Return the attention outputs (B, T, D) of every layer, by micro-batch, without a
        graph.
        """
        found: list[dict[int, Tensor]] = []

        def catch(output: Tensor, layer: int) -> Tensor:
            found[-1][layer] = output
            return output

        with torch.no_grad(), self.computing(), ExitStack() as hooks:
            for i, layer in enumerate(self.layers):
                hooks.enter_context(_replace_output(layer.attention, partial(catch, layer=i)))
            for part in self._pass_over(batch):
                found.append({})
                run(self.model, part)
        return found

    def acts(
        self,
        batch: Batch,
        parts: Sequence[Mapping[int, Tensor]],
        loss: float | None = None,
        chosen: Sequence[int] | None = None,
    ) -> Acts:
        """Make the vector of tensors (B, T, D) by layer, for each of the batch's micro-batches.

        The layers may be named, for a rank that has no micro-batch.
        """
        chosen = list(parts[0]) if chosen is None else chosen
        none = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        squares = torch.stack(
            [
                torch.stack([square(part[i]) for part in parts]).sum() if parts else none
                for i in chosen
            ]
        )  # (layers,)
        over_ranks = self.accelerator.reduce(squares, "sum").tolist()
        return Acts(
            batch, parts, dict(zip(chosen, over_ranks, strict=True)), (1.0,) * len(parts), loss
        )

    def sum_over_ranks(self, sums: Sequence[Tensor], count: int) -> list[float]:
        """Sum what every micro-batch came to, `count` numbers in float64, over them and over ranks.

        A rank that has no micro-batch adds nothing.
        """
        none = torch.zeros(count, dtype=torch.float64, device=self.accelerator.device)
        mine = torch.stack([*sums]).sum(0) if sums else none
        found: list[float] = self.accelerator.reduce(mine, "sum").tolist()
        return found

    @contextmanager
    def shifted(self, acts: Acts) -> Iterator[None]:
        """Inside, `acts` is added to the attention outputs of its layers.

        That holds for every pass over its batch, recomputed passes too.
        """
        found = self.layers

        def add(output: Tensor, layer: int) -> Tensor:
            assert self._part is not None
            return acts.perturb(self._part, layer, output)

        with ExitStack() as hooks:
            for i in acts.squares:
                hooks.enter_context(_replace_output(found[i].attention, partial(add, layer=i)))
            yield

    @contextmanager
    def only(
        self,
        chosen: Collection[int],
        freeze: Literal["layers", "attention"] = "layers",
        recompute: bool = False,
    ) -> Iterator[None]:
        """Inside, only the weights of the chosen layers are trained.

        The others are absent from every gradient. The layers below the lowest chosen one run once
        for every micro-batch, without a graph, whatever is computed inside. With
        `freeze="attention"` the layers above it are trained too, but for the attention of those
        that are not chosen. With `recompute` the layers that are not chosen keep no activations,
        and run again in the backward pass.

        Raises where the model has no such layers, or they hold none of the trained weights.
        """
        found = self._check_chosen(chosen)
        others = [i for i in range(min(chosen), len(found)) if i not in chosen]
        trained = [*chosen, *others] if freeze == "attention" else list(chosen)
        shut = {id(weight) for i in others for weight in found[i].attention.parameters()}
        kept = tuple(f"{found[i].name}." for i in trained)
        frozen = {
            name: weight
            for name, weight in self.parameters.items()
            if not name.startswith(kept) or id(weight) in shut
        }
        if len(frozen) == len(self.parameters):
            raise ValueError(
                f"layers {sorted(chosen)} hold none of the trained weights: adapt linear layers of "
                "every decoder layer"
            )
        again = others if recompute else []
        with (
            self._freeze(frozen),
            once(self.model, min(chosen), key=lambda: self._part),
            recompute_layers(self.model, again),
        ):
            yield

    @contextmanager
    def without(self, chosen: Collection[int]) -> Iterator[None]:
        """Inside, the weights of the chosen layers are not trained, and have no gradient.

        Raises where the model has no such layers, or they hold all of the trained weights, or none.
        """
        found = self._check_chosen(chosen)
        names = tuple(f"{found[i].name}." for i in chosen)
        frozen = {
            name: weight for name, weight in self.parameters.items() if name.startswith(names)
        }
        if not 0 < len(frozen) < len(self.parameters):
            raise ValueError(
                f"layers {sorted(chosen)} hold {'all' if frozen else 'none'} of the trained weights: "
                "adapt linear layers of every decoder layer, and leave some of them out"
            )
        with self._freeze(frozen):
            yield

    @contextmanager
    def moved(self, vec: Vec) -> Iterator[None]:
        """Inside, the weights stand at w + vec."""
        with self.scratch(vec.names()):
            vec.add_to(self.parameters)
            yield

    @contextmanager
    def scratch(self, names: Iterable[str] | None = None) -> Iterator[None]:
        """Inside, the trainable weights, or those named, may be changed at will."""
        saved = {
            name: self.parameters[name].detach().clone()
            for name in (self.parameters if names is None else names)
        }
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    self.parameters[name].copy_(value)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the one that the stage began with, and nothing has a gradient.

        No weight is copied, but for shards. Raises where the method does not declare that it needs
        the reference.
        """
        if self.start is None:
            raise ValueError(
                'this method keeps no reference model: give its needs `references=("start",)`'
            )
        cached = torch.is_autocast_cache_enabled()
        with torch.no_grad(), self._swap(self.start):
            try:
                # else a pass of the trained weights would take casts of these
                torch.set_autocast_cache_enabled(False)
                yield
            finally:
                torch.set_autocast_cache_enabled(cached)

    @contextmanager
    def _swap(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, these tensors are the weights, or of shards, which have a storage of their own, their
        values.
        """
        if self.sharded:
            with self.scratch(values):
                for name, value in values.items():
                    self.parameters[name].copy_(value)
                yield
            return
        now = {name: self.parameters[name].data for name in values}
        try:
            for name, value in values.items():
                self.parameters[name].data = value
            yield
        finally:
            for name, value in now.items():
                self.parameters[name].data = value

    def log(self, **terms: float | None) -> None:
        """Keep terms to show and to store with the run, by the names that the paper gives them."""
        self.logged |= {name: value for name, value in terms.items() if value is not None}

    def _check_chosen(self, chosen: Collection[int]) -> list[Layer]:
        """Return the decoder layers. Raises where none is chosen, or one that there is not."""
        found = self.layers
        if not chosen or not set(chosen) <= set(range(len(found))):
            raise ValueError(
                f"layers {sorted(chosen)} of a model that has {len(found)}: choose some of 0 to "
                f"{len(found) - 1}"
            )
        return found

    def _take(self, stream: str, count: int) -> list[Encoded]:
        """Take the next rows of a stream. Raises where the method declares no such stream."""
        if stream not in self.streams:
            raise ValueError(f"no stream {stream!r}: the method declares {', '.join(self.streams)}")
        return self.streams[stream].take(count)

    def collate(self, name: str, rows: Sequence[Encoded]) -> Batch:
        """Make a batch of rows, in micro-batches of which this rank keeps its share.

        Of shards every rank makes as many passes as any other: one that has fewer micro-batches gets
        the first one again, without an answer.
        """
        size, rank = self.batch_size, self.accelerator.process_index
        chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
        share = math.ceil(len(chunks) / self.accelerator.num_processes)
        mine = slice(rank * share, (rank + 1) * share)
        batch = Batch.of(name, chunks, pad_of(self.model), self.accelerator.device, mine)
        idle = share - len(batch.parts) if self.sharded else 0
        more = [collate(chunks[0], pad_of(self.model), self.accelerator.device).idle] * idle
        return replace(batch, parts=(*batch.parts, *more))

    def _pass_over(self, batch: Batch) -> Iterator[Part]:
        """Yield the micro-batches. Each is the current one, `_part`, while a pass works on it."""
        for self._part in batch.parts:
            yield self._part

    def computing(self) -> AbstractContextManager[object]:
        """Inside, a forward pass computes in the same dtype as the step's own passes."""
        return (
            torch.autocast(self.accelerator.device.type, self.autocast)
            if self.autocast
            else nullcontext()
        )

    @contextmanager
    def _freeze(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Inside, these parameters need no gradient, so the graph keeps nothing for it."""
        # the rest another context has frozen
        free = [parameter for parameter in parameters.values() if parameter.requires_grad]
        try:
            for parameter in free:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in free:
                parameter.requires_grad_(True)

    def _gather_head(self) -> None:
        """Gather, of shards, the weights outside of all layers for a backward pass, which frees them.

        A pass that begins below the logits would not, and would read what is no longer there.
        """
        if isinstance(root := base_of(self.model), FSDPModule):
            root.unshard()

    def _check(self, mean: float, finite: bool, batch: Batch) -> None:
        """Raise where the loss or the gradient is not finite."""
        if math.isfinite(mean) and finite:
            return
        wrong = f"loss is {mean}" if not math.isfinite(mean) else "gradient is not finite"
        where = f"update {self.update}" if self.update else "preparation"
        raise ValueError(
            f"the {wrong} at {where} on stream {batch.stream!r}: lower the learning rate or look "
            "at these rows"
        )

    def _clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _reduce(self) -> dict[str, Tensor]:
        """Return the gradients summed over ranks, taken from the parameters without a copy.

        Those of shards are summed already.
        """
        if self.accelerator.num_processes > 1 and not self.sharded:
            here = torch.tensor(
                [p.grad is not None for p in self.parameters.values()], dtype=torch.long
            )
            anywhere = self.accelerator.reduce(here.to(self.accelerator.device), "sum").tolist()
            for parameter, reached in zip(self.parameters.values(), anywhere, strict=True):
                if reached:  # every rank must take part in a reduction that any rank needs
                    mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = self.accelerator.reduce(mine, "sum")
        return {
            name: parameter.grad
            for name, parameter in self.parameters.items()
            if parameter.grad is not None
        }


@contextmanager
def _replace_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, `change` replaces the output of an attention module."""

    def hook(_module: nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(output[0]), *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
