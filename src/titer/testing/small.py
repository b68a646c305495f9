"""A small model and rows, all from the embedded lab: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)

from titer.data.batches import Encoded, Stream
from titer.data.rows import Row, pair
from titer.data.template import Template
from titer.lab.build import tokenizer
from titer.lab.world import World
from titer.methods import Defense
from titer.phase import Phase
from titer.training.step import Step
from titer.weights import adapters, checkpoints, folders
from titer.weights.checkpoints import trainable
from titer.weights.folders import Files
from titer.weights.settings import Checkpoint, Lora

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Stop(BaseException):
    """The interruption that a check makes happen."""


def tiny(
    dtype: torch.dtype = torch.float64, seed: int = 0, vocabulary: int = 400, layers: int = 2
) -> LlamaForCausalLM:
    """Make a small random Llama whose logits are not flat."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**_shape(vocabulary, layers)))
    _sharpen(model, dtype)
    return model


def sparse(
    dtype: torch.dtype = torch.float64, seed: int = 0, vocabulary: int = 400, layers: int = 2
) -> OlmoeForCausalLM:
    """Make a small random OLMoE whose logits are not flat: every layer has four experts, two a token."""
    torch.manual_seed(seed)
    shape = _shape(vocabulary, layers)
    model = OlmoeForCausalLM(OlmoeConfig(**shape, num_experts=4, num_experts_per_tok=2))
    model.set_experts_implementation("eager")  # the others know no float64
    _sharpen(model, dtype)
    return model


def small_for(method: Defense, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Make the small model that a defense works on."""
    return sparse(dtype) if method.needs.sparse else tiny(dtype)


def _shape(vocabulary: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }


def _sharpen(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Bring a model that was just made to its dtype, and its logits away from being flat."""
    model.to(dtype).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)


def texts() -> dict[str, list[Row]]:
    """Make rows of the lab's world for every stream, with answers of different lengths."""
    world = World(0)
    long = (Row(r.prompt, f"{r.response} {r.response}") for r in world.harmful[:6])
    mixed = [*pair(world.alignment[:12], world.harmful), *world.alignment[-12:], *long]
    held_out = pair(world.harmful[20:32], world.alignment)
    of = {"rows": mixed, "harmful": world.harmful[:20], "held_out": held_out}
    of["alignment"] = [*world.alignment[12:20], *world.alignment[-20:-12]]
    return of


def streams(template: Template) -> dict[str, list[Encoded]]:
    """Make the rows of every stream as tokens."""
    return {name: [template.encode(row) for row in those] for name, those in texts().items()}


@cache
def _streams() -> dict[str, list[Encoded]]:
    return streams(Template(tokenizer(), 64))


def rows() -> dict[str, list[Encoded]]:
    """Return the rows of every stream as tokens, in lists of the caller's own."""
    return {name: list(those) for name, those in _streams().items()}


def step_for(
    model: PreTrainedModel,
    rows: Mapping[str, Sequence[Encoded]],
    accelerator: Accelerator,
    batch: int = 4,
    accumulate: int = 1,
    update: int = 1,
) -> Step:
    """Make an update of `model` outside of any training."""
    streams = {name: Stream(name, of, seed=3) for name, of in rows.items()}
    weights = trainable(model)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    phase = Phase("train", 1)
    return Step(model, weights, streams, accelerator, batch, accumulate, update, phase, start=start)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copy all weights, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Tell if all weights are bit for bit equal."""
    return all(torch.equal(before[name], after[name]) for name in before)


def flags(model: torch.nn.Module) -> dict[str, bool]:
    """Return the `requires_grad` of every weight."""
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def hooks(model: torch.nn.Module) -> list[int]:
    """Count the hooks on every module."""
    return [
        len(module._forward_hooks) + len(module._backward_hooks) + len(module._forward_pre_hooks)
        for module in model.modules()
    ]


def moved(model: PreTrainedModel, size: float, seed: int) -> PreTrainedModel:
    """Return the model after a training that moved all its weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


def adapted(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Put the model under a fine-tuned adapter."""
    under = adapters.add_lora(model, Lora(r=8, alpha=16.0, targets=TARGETS))
    torch.manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters.adapters(under).values():
            for factor in (adapter.a, adapter.b):
                assert factor is not None
                factor.copy_(0.1 * torch.randn_like(factor))
    return under


def save(model: PreTrainedModel, folder: Path, under: Files | None = None) -> Files:
    """Save a checkpoint of the model, or of its adapter over the model `under` it."""
    checkpoints.save(model, tokenizer(), folder, under)
    return folders.locate(Checkpoint(str(folder)))
