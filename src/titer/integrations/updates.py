"""The updates of another library's trainer along a defense, as `Loop` has them in titer's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer

from titer import paths, registry
from titer.config import hash_of
from titer.data.batches import Batch, Encoded, Stream, hash_rows
from titer.integrations.feed import AllRows, Feed
from titer.integrations.refusals import check_phases
from titer.integrations.rows import PAIRS
from titer.methods import Defense
from titer.phase import Phase
from titer.training import checkpoint
from titer.training.layers import recompute_layers
from titer.training.losses import Loss, cross_entropy
from titer.training.settings import DRAWN
from titer.training.step import Step
from titer.training.train import list_phases
from titer.training.vector import Vec
from titer.weights.checkpoints import trainable


@dataclass
class TrainerStep(Step):
    """An update whose loss goes into a trainer's log."""

    loss: float = float("nan")  # of the gradient that was taken last

    def grad(self, batch: Batch, loss: Loss = cross_entropy) -> Vec:
        vec = super().grad(batch, loss)
        assert vec.loss is not None  # it is a gradient
        self.loss = vec.loss
        return vec


@dataclass
class Updates:
    """The state of a training along a defense that the trainer does not keep itself."""

    step: TrainerStep
    defense: Defense
    feed: Feed
    phases: Sequence[Phase]
    identity: str  # the hash of what determines them, but for the trainer and its dataset
    recompute: bool  # activations, in the backward pass
    state: Any = None
    terms: dict[str, list[float]] = field(default_factory=dict)  # since they were asked for

    @staticmethod
    def begin(
        trainer: Trainer,
        defense: Defense,
        beside: Mapping[str, Sequence[Encoded]],
        loader: Any,
        count: int,
        resume: Path | None,
    ) -> Updates:
        """Begin so many updates on a dataloader's rows and those beside, or go on from a checkpoint.

        Raises where the defense cannot be applied, or the checkpoint is another training's.
        """
        args, accelerator, model = trainer.args, trainer.accelerator, cast(Any, trainer.model)
        phases, parameters = list_phases(defense, count), trainable(model)
        check_phases(phases, defense)
        pairs = {row.ids[: row.answer]: row for row in reversed(beside.get(PAIRS, []))}
        feed = Feed("rows", AllRows(loader), args.seed, loader=loader, pairs=pairs)
        streams = {
            name: Stream(name, rows, args.seed) for name, rows in beside.items() if name != PAIRS
        }
        step = TrainerStep(
            model,
            parameters,
            {"rows": feed, **streams},
            accelerator,
            args.train_batch_size,
            args.gradient_accumulation_steps,
            autocast=torch.bfloat16 if accelerator.mixed_precision == "bf16" else None,
        )
        if "start" in defense.needs.references:
            step.start = {name: weight.detach().clone() for name, weight in parameters.items()}
        facts = [registry.describe(defense), count, step.batch_size, step.accumulate, args.seed]
        identity = hash_of([*facts, accelerator.num_processes, hash_rows(beside)])
        recompute = bool(args.activation_checkpointing)
        made = Updates(step, defense, feed, phases, identity, recompute)
        if resume:
            made._load(resume / paths.TRAINER)
        else:
            with made._still():
                made.state = defense.prepare(step)
        return made

    def follow(self, update: int) -> float:
        """Write the gradient of an update to where the optimizer looks; return the loss.

        Nothing is written behind the last update, which a trainer makes one of where it goes on
        from the end of a training: without gradients, an optimizer changes nothing.
        """
        self.feed.drawn.clear()
        if update > len(self.phases):
            return 0.0
        phase = self.phases[update - 1]
        step = replace(self.step, update=update, phase=phase, logged={}, _batches={})
        with self._still():
            self.defense.gradient(step, self.state).hand_to(step.parameters)
        for name, value in step.logged.items():
            self.terms.setdefault(name, []).append(value)
        return step.logged.get("f", step.loss)

    def finish(self) -> None:
        """Let the defense do what follows the last update."""
        self.feed.check_pairs()
        step = replace(self.step, phase=Phase("finish", 0), logged={}, _batches={})
        with self._still():
            self.defense.finish(step, self.state)

    def mean_terms(self) -> dict[str, float]:
        """Return the means of the terms since this was last asked for, and the rows drawn in all."""
        means = {name: sum(values) / len(values) for name, values in self.terms.items()}
        self.terms.clear()
        return {**means, DRAWN: self.feed.position}

    def save(self, folder: Path) -> None:
        """Write the defense's state and the places of the streams into a trainer's checkpoint."""
        tensors = {f"start.{name}": value for name, value in (self.step.start or {}).items()}
        facts = {
            "identity": self.identity,
            "feed": self.feed.place(tensors),
            "positions": {name: stream.position for name, stream in self.step.streams.items()},
            "state": checkpoint.pack(self.state, tensors),
        }
        checkpoint.write(folder / paths.TRAINER, facts, tensors)

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(
                f"{path}: no such file, so the checkpoint is one without a defense, or of "
                "save_only_model=True: start again without resume_from_checkpoint"
            )
        found = checkpoint.read(path)
        if found is None:
            raise ValueError(f"{path} is damaged: resume from an earlier checkpoint")
        facts, tensors = found
        if facts["identity"] != self.identity:
            raise ValueError(
                f"{path} is the checkpoint of another training: resume with its defense and rows, "
                "seed, batch size, number of processes and number of steps"
            )
        device = self.step.accelerator.device
        if self.step.start is not None:  # the model is that of the checkpoint by now
            self.step.start = {
                name: tensors[f"start.{name}"].to(device) for name in self.step.start
            }
        for name, position in facts["positions"].items():
            self.step.streams[name].position = position
        self.feed.resume(facts["feed"], tensors)
        self.state = checkpoint.unpack(self.defense, facts["state"], tensors, device)

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Inside, the model is as in titer's own loop; afterwards it is in training mode.

        It has no dropout. Its forward pass is its own, without the autocast that accelerate puts
        around it: casts of the weights would be kept where the step means to keep none. Activations
        are recomputed by titer's switch, since the model's is one of training mode.
        """
        model = cast(nn.Module, self.step.model)
        wrapped, own = (vars(model).get(name) for name in ("forward", "_original_forward"))
        model.eval()
        try:
            if own is not None:
                model.forward = own
            with recompute_layers(model) if self.recompute else nullcontext():
                yield
        finally:
            if own is not None:
                model.forward = cast(Any, wrapped)
            model.train()
