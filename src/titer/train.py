"""The training loop: a stage is a number of optimizer updates, and the defense says which gradient each one follows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from titer import checkpoint
from titer.adapters import Lora
from titer.data import Encoded, Stream
from titer.methods import Config, Defense, Phase
from titer.models import trainable
from titer.step import Step
from titer.vector import Vec


@dataclass(frozen=True)
class Training(Config):
    """Settings of a training stage, whichever defense runs in it."""

    updates: int  # optimizer updates
    lr: float  # peak learning rate of AdamW
    batch: int = 10  # rows of a micro-batch, per rank
    accumulate: int = 1  # micro-batches of an update, per rank
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = 0.0  # share of the updates in which the learning rate rises from 0
    weight_decay: float = 0.1
    clip: float | None = 1.0  # largest norm of the update's gradient
    lora: Lora | None = field(default_factory=Lora)  # None trains all weights

    def __post_init__(self) -> None:
        for name, low in (("updates", 1), ("batch", 1), ("accumulate", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {low}")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be above 0")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup={self.warmup}: must be a share between 0 and 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip}: must be above 0, or null for none")


Watch = Callable[[int, int, Mapping[str, float]], None]  # (update, of how many, terms by name)


def accelerator_for(device: str | None = None) -> Accelerator:
    """An accelerator on `device` ("cpu", or None for the best there is). Raises where a launch of several ranks did not connect them."""
    accelerator = Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available())
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != ranks:
        raise ValueError(f"WORLD_SIZE is {ranks} but this process sees {accelerator.num_processes} ranks: the launch did not connect them")
    return accelerator


def train(
    model: PreTrainedModel,
    defense: Defense,
    data: Mapping[str, Sequence[Encoded]],
    settings: Training,
    seed: int,
    *,
    accelerator: Accelerator | None = None,
    autocast: torch.dtype | None = None,
    resume: Path | None = None,
    every: int = 0,
    watch: Watch | None = None,
    probe: Callable[[int], Mapping[str, float]] = lambda update: {},
) -> list[dict[str, float]]:
    """Train the model's trainable weights in place; return the terms of every update.

    `data` has the rows of every stream that the defense declares. With `autocast` the passes compute in a coarser dtype than that of
    the weights. What `probe` measures after an update is kept with its terms. With `resume`, a checkpoint is written there after each
    `every` updates and at first taken up again if there is one: the run then ends bit for bit as if never interrupted.
    Raises where a stream is missing, a loss or gradient is not finite, or the checkpoint is another run's.
    """
    accelerator = accelerator or accelerator_for()
    model.to(accelerator.device)
    model.eval()  # no dropout: paired passes must see one function
    parameters = trainable(model)
    missing = [name for name in defense.streams if not data.get(name)]
    if missing:
        raise ValueError(f"{type(defense).__name__} needs rows for the stream {missing[0]!r} ({defense.streams[missing[0]].value})")
    streams = {name: Stream(name, data[name], seed) for name in defense.streams}
    step = Step(model, parameters, streams, accelerator, settings.batch, settings.accumulate, autocast=autocast)
    loop = Loop(step, defense, settings)

    torch.manual_seed(seed)
    identity = checkpoint.identity(defense, settings, seed, data, accelerator.num_processes)
    history: list[dict[str, float]] = []
    if resume and resume.is_file():
        history = checkpoint.load(resume, identity, loop)
    else:
        loop.state = defense.prepare(step)
    phases = _updates(defense, settings.updates)
    for update, phase in enumerate(phases, 1):
        if update <= len(history):
            continue
        history.append({**loop.follow(update, phase), **probe(update)})
        if watch:
            watch(update, len(phases), history[-1])
        if resume and every and update % every == 0:
            checkpoint.save(resume, identity, loop, history)
    defense.finish(replace(step, phase=Phase("finish", 0), logged={}, _batches={}), loop.state)
    return history


def _updates(defense: Defense, updates: int) -> list[Phase]:
    """The phase of every update."""
    phases = [phase for phase in defense.schedule(updates) for _ in range(phase.updates)]
    counted = sum(phase.counted for phase in phases)
    assert counted == updates, f"{type(defense).__name__} schedules {counted} counted updates of {updates}"
    return phases


@dataclass
class Loop:
    """What lives as long as a stage: weights, optimizer, schedule, streams and the defense's state."""

    step: Step
    defense: Defense
    settings: Training
    state: Any = None
    optimizer: torch.optim.AdamW = field(init=False)
    scheduler: torch.optim.lr_scheduler.LambdaLR = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        if self.defense.reference:
            self.step.start = {name: parameter.detach().clone() for name, parameter in self.step.parameters.items()}
        self.optimizer = torch.optim.AdamW(self.step.parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay)
        name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        self.scheduler = get_scheduler(name, self.optimizer, round(settings.warmup * settings.updates), settings.updates)

    def follow(self, update: int, phase: Phase) -> dict[str, float]:
        """One update; returns its terms."""
        step = replace(self.step, update=update, phase=phase, logged={}, _batches={})
        gradient = self.defense.gradient(step, self.state)
        norm = self._install(gradient, phase, update)
        scheduled = [group["lr"] for group in self.optimizer.param_groups]
        lr = scheduled[0] if phase.lr is None else phase.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for group, value in zip(self.optimizer.param_groups, scheduled, strict=True):
            group["lr"] = value
        if phase.counted:
            self.scheduler.step()
        return {**step.logged, "grad_norm": norm, "lr": lr}

    def _install(self, gradient: Vec, phase: Phase, update: int) -> float:
        """Hand the gradient to the optimizer, clipped; its norm before."""
        gradient.hand_to(self.step.parameters)
        reached: list[nn.Parameter] = [p for p in self.step.parameters.values() if p.grad is not None]
        clip = self.settings.clip if phase.clipped and self.settings.clip is not None else float("inf")
        norm = float(nn.utils.clip_grad_norm_(reached, clip))
        if not norm < float("inf"):
            raise ValueError(f"the gradient's norm is {norm} at update {update} ({type(self.defense).__name__}): lower the learning rate")
        return norm
