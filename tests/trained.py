"""What tests of several methods do with a model: adapt it, move its weights, interrupt its training."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from titer.data.batches import Encoded
from titer.methods import Defense
from titer.testing.small import same, state, tiny
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora

LORA = Lora(r=2, alpha=4, targets=("q_proj", "down_proj"))


class Killed(BaseException):
    pass


def pair(lora: bool, make: Callable[[], PreTrainedModel] = tiny, adapter: Lora = LORA):
    """A model, the bare one within it, and another one that stays at the start."""
    bare, start = make(), make()
    return add_lora(bare, adapter).double() if lora else bare, bare, start


def watch_passes(model: nn.Module) -> list[tuple[bool, int]]:
    """Leave of every forward pass whether it has a graph, and its rows."""
    seen: list[tuple[bool, int]] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append((torch.is_grad_enabled(), len(kwargs["input_ids"]))),
        with_kwargs=True,
    )
    return seen


def adapted(lora: Lora = LORA, **fields) -> PreTrainedModel:
    """A tiny model in float32 under a fresh adapter, the same one every time."""
    torch.manual_seed(0)
    return add_lora(tiny(torch.float32, **fields), lora)


def move(model: nn.Module, by: float = 0.05, seed: int = 1) -> None:
    """Move what is trained at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(by * torch.randn(weight.shape, generator=generator))


def check_resumes(
    fresh: Callable[[], PreTrainedModel],
    method: Defense,
    rows: Mapping[str, Sequence[Encoded]],
    settings: Training,
    folder: Path,
    every: int = 3,
) -> PreTrainedModel:
    """Check that a training which is killed behind a checkpoint ends as one in peace; return that.

    The weights are the same bit for bit, and so are the terms of all updates.
    """

    def kill(update, of, terms):
        if update == every + 1:
            raise Killed

    whole, killed, resumed = fresh(), fresh(), fresh()
    path = folder / "checkpoint.safetensors"
    history = train(whole, method, rows, settings, seed=0)
    with pytest.raises(Killed):
        train(killed, method, rows, settings, seed=0, resume=path, every=every, watch=kill)
    assert history == train(resumed, method, rows, settings, seed=0, resume=path, every=every)
    assert same(state(whole), state(resumed))
    return whole
