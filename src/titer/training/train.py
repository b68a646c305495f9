"""The training loop: a stage is a number of optimizer updates along the defense's gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from titer.data.batches import Encoded, Stream
from titer.methods import Defense
from titer.phase import Phase
from titer.training import checkpoint
from titer.training.loop import Loop
from titer.training.ranks import check_launch
from titer.training.settings import Training, Watch, unwatched
from titer.training.sharding import check_alike
from titer.training.step import Step
from titer.weights.checkpoints import trainable
from titer.weights.shards import is_sharded


def accelerator_for(device: str | None = None) -> Accelerator:
    """Return an accelerator on `device`: "cpu", or None for the best one there is.

    Raises where a launch of several ranks did not connect them, or asks for what is not done here.
    """
    check_launch()
    accelerator = Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available())
    ranks = int(os.environ.get("WORLD_SIZE") or 1)
    if accelerator.num_processes != ranks:
        raise ValueError(
            f"WORLD_SIZE is {ranks} but this process sees {accelerator.num_processes} ranks: the "
            "launch did not connect them"
        )
    return accelerator


def passes_in(settings: Training) -> torch.dtype | None:
    """Return the dtype that passes compute in, where the settings name one."""
    dtype: torch.dtype | None = getattr(torch, settings.autocast) if settings.autocast else None
    return dtype


def train(
    model: PreTrainedModel,
    defense: Defense,
    data: Mapping[str, Sequence[Encoded]],
    settings: Training,
    seed: int,
    *,
    accelerator: Accelerator | None = None,
    autocast: torch.dtype | None = None,
    rows: int | None = None,
    resume: Path | None = None,
    every: int = 0,
    watch: Watch = unwatched,
    probe: Callable[[int], Mapping[str, float]] = lambda update: {},
) -> list[dict[str, float]]:
    """Train the model's trainable weights in place; return the terms of every update.

    `data` has the rows of every stream that the defense declares. Of several ranks each makes as many
    micro-batches, as large, as the settings say; with `rows` an update has so many, and the last
    ranks fewer, or none (`Training.spread`). With `autocast` the passes compute in a coarser dtype
    than that of the weights, also where the settings name none. The results of `probe` after an
    update are kept with its terms.

    With `resume`, a checkpoint is written there after every `every` updates. If one is there at the
    start, the run goes on from it and ends bit for bit as if never interrupted; a damaged one is
    removed.

    Raises where a stream is missing, a loss or gradient is not finite, the checkpoint is another
    run's, or the model is sharded and the method needs it whole.
    """
    accelerator = accelerator or accelerator_for()
    if not is_sharded(model.parameters()):
        model.to(accelerator.device)
    model.eval()  # no dropout: paired passes must see one function
    parameters = trainable(model)
    kinds = defense.needs.streams
    missing = [name for name in kinds if not data.get(name)]
    if missing:
        raise ValueError(
            f"{type(defense).__name__} needs rows for the stream {missing[0]!r} "
            f"({kinds[missing[0]].value})"
        )
    if is_sharded(parameters.values()):
        if reason := defense.needs.unsharded:
            raise ValueError(f"{type(defense).__name__} cannot train shards of a model: {reason}")
    else:
        check_alike(parameters, accelerator)
    streams = {name: Stream(name, data[name], seed) for name in kinds}
    step = Step(
        model,
        parameters,
        streams,
        accelerator,
        settings.batch,
        settings.accumulate,
        autocast=autocast or passes_in(settings),
        rows=rows,
    )
    loop = Loop(step, defense, settings)

    torch.manual_seed(seed)
    ranks = accelerator.num_processes
    identity = (  # it reads all rows
        checkpoint.identity(defense, settings, seed, data, step.size, ranks) if resume else ""
    )
    found = checkpoint.load(resume, identity, loop) if resume and resume.is_file() else None
    history = found or []
    if found is None:
        loop.state = defense.prepare(step)
    phases = list_phases(defense, settings.updates)
    for update, phase in enumerate(phases, 1):
        if update <= len(history):
            continue
        history.append({**loop.follow(update, phase), **probe(update)})
        watch(update, len(phases), history[-1])
        if resume and every and update % every == 0:
            checkpoint.save(resume, identity, loop, history)
    defense.finish(replace(step, phase=Phase("finish", 0), logged={}, _batches={}), loop.state)
    return history


def list_phases(defense: Defense, updates: int) -> list[Phase]:
    """Return the phase of every update."""
    phases = [phase for phase in defense.schedule(updates) for _ in range(phase.updates)]
    counted = sum(phase.counted for phase in phases)
    assert counted == updates, (
        f"{type(defense).__name__} schedules {counted} counted updates of {updates}"
    )
    return phases
