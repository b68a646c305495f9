"""The training loop's state: weights, optimizer, schedule, streams and the defense's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from titer.methods import Defense
from titer.phase import Phase
from titer.training.settings import DRAWN, Training
from titer.training.step import Step
from titer.training.vector import Vec
from titer.weights.shards import whole

UNDECAYED = (
    r"bias",
    r"layernorm",
    r"rmsnorm",
    r"(?:^|\.)norm(?:$|\.)",
    r"_norm(?:$|\.)",
)  # the names that transformers' Trainer spares


def decayed_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights that decay: all but biases and those of norms."""
    return set(get_parameter_names(model, [nn.LayerNorm], list(UNDECAYED)))


@dataclass
class Loop:
    """The state of a training stage, and the update that changes it.

    It has weights, optimizer, schedule, streams and the defense's own state.
    """

    step: Step
    defense: Defense
    settings: Training
    state: Any = None
    optimizer: torch.optim.AdamW = field(init=False)
    scheduler: torch.optim.lr_scheduler.LambdaLR = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        if "start" in self.defense.needs.references:
            self.step.start = {
                name: parameter.detach().clone() for name, parameter in self.step.parameters.items()
            }
        decayed = decayed_names(self.step.model) & self.step.parameters.keys()
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [
                        p for name, p in self.step.parameters.items() if (name in decayed) == decays
                    ],
                    "weight_decay": settings.weight_decay if decays else 0.0,
                }
                for decays in (True, False)
            ],
            lr=settings.lr,
        )
        name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        self.scheduler = get_scheduler(
            name, self.optimizer, math.ceil(settings.warmup * settings.updates), settings.updates
        )

    def follow(self, update: int, phase: Phase) -> dict[str, float]:
        """Make one update and return its terms. Raises where the gradient's norm is not finite."""
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
        return {**step.logged, "grad_norm": norm, "lr": lr, **self._drawn(update)}

    def _drawn(self, update: int) -> dict[str, float]:
        """Count the rows drawn by an update, where they are fewer than a batch at each."""
        count = self.step.streams["rows"].position
        return {DRAWN: count} if count < update * self.step.size else {}

    def _install(self, gradient: Vec, phase: Phase, update: int) -> float:
        """Hand the gradient to the optimizer, clipped. Return its norm before clipping."""
        gradient.hand_to(self.step.parameters)
        reached: list[nn.Parameter] = [
            p for p in self.step.parameters.values() if p.grad is not None
        ]
        clip = (
            self.settings.clip if phase.clipped and self.settings.clip is not None else float("inf")
        )
        norm = float(whole(nn.utils.clip_grad_norm_(reached, clip)))
        if not norm < float("inf"):
            raise ValueError(
                f"the gradient's norm is {norm} at update {update} "
                f"({type(self.defense).__name__}): lower the learning rate"
            )
        return norm
