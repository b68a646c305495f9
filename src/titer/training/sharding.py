"""Divide a model among ranks, for a training or for answers: FSDP2, a group of weights a layer."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from titer.training.layers import base_of, decoder_layers
from titer.training.ranks import Ranks
from titer.weights.checkpoints import hash_tensors
from titer.weights.shards import whole


def shard(model: PreTrainedModel, accelerator: Accelerator) -> PreTrainedModel:
    """Divide the model's weights among the ranks in place, and return it.

    Every rank has the same model before. Gradients come out summed over ranks. No weight stays whole
    behind a pass, so that what changes weights in between changes those of the next pass.
    """
    check_alike(model.state_dict(), accelerator)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in [*decoder_layers(model), base_of(model)]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the losses are divided by all tokens already
            module.set_force_sum_reduction_for_comms(True)
    return model


def copy_shards(model: PreTrainedModel, accelerator: Accelerator) -> PreTrainedModel:
    """Return a copy of the model that is divided among the ranks; the model itself where none are."""
    if not Ranks.of(accelerator).sharded:
        return model
    return shard(deepcopy(model), accelerator)


def take_back(model: PreTrainedModel, shards: PreTrainedModel) -> None:
    """Give the model the trained weights of its copy, from all ranks."""
    if shards is model:
        return
    trained = {name: of for name, of in shards.named_parameters() if of.requires_grad}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.copy_(whole(trained[name]))


def check_alike(tensors: Mapping[str, torch.Tensor], accelerator: Accelerator) -> None:
    """Raise where the ranks begin with different weights: each would train another model."""
    if accelerator.num_processes == 1:
        return
    mine = torch.tensor(list(bytes.fromhex(hash_tensors(tensors))), device=accelerator.device)
    every = accelerator.gather(mine).reshape(accelerator.num_processes, -1)
    if not bool((every == every[0]).all()):
        raise ValueError(
            "the ranks begin with different trainable weights: seed them alike before the adapter "
            "is made, or load the same checkpoint on each"
        )
