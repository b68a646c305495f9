"""The experts of a sparse model one by one: on disk, and in forward passes.

In memory transformers keeps all experts of a layer in one parameter, (E, out, in) or (E, in, out).
A checkpoint has them so too, or a tensor for each. Here every expert has matrices of its own,
(out, in), which an edit works on like on any other linear layer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from titer.weights.tensors import Expert, Stored

APART = "titer: one by one"  # the name of our way to run experts, among transformers' own


class Routed(nn.Linear):
    """A linear layer of one expert. It shares the memory of the layer's other experts.

    Of the tokens of a pass it reads those that the router sends to this expert.
    """

    tokens: Tensor  # (n,), which ones it is reading, of all B * T
    reached = False  # by a token that is no pad, in any pass that was watched

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)


@dataclass(frozen=True)
class ExpertPlace:
    """Where an expert's matrix is found in a model."""

    parameter: str  # that holds those of all experts of a layer
    expert: int


class _Names:
    """How transformers names the tensors of a checkpoint in memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        changes: list[Any] = get_model_conversion_mapping(model)
        self._renamings = [of for of in changes if isinstance(of, WeightRenaming)]
        self._converters = [of for of in changes if isinstance(of, WeightConverter)]
        self._prefix, self._held = model.base_model_prefix, model.state_dict()

    def __call__(self, name: str) -> tuple[str, str | None]:
        """Return the name, and the pattern by which a tensor is put together with others."""
        return rename_source_key(name, self._renamings, self._converters, self._prefix, self._held)


def by_name(tensors: Mapping[str, Stored], model: PreTrainedModel) -> dict[str, Stored]:
    """Return the tensors of a checkpoint by the names that the model has for them in memory.

    Each expert has tensors of its own, also where a file has one of all experts of a layer; they go
    by the names of the file, or by such ones, the expert's number before the last part:
    `experts.3.down_proj`.
    """
    fused, named = _fused(model), _Names(model)
    found: dict[str, Stored] = {}
    for name, of in tensors.items():
        key, pattern = named(name)
        if pattern is not None:  # of several tensors the model makes one
            found[name] = of
        elif key in fused:
            path, _, last = key.rpartition(".")
            parts = (Expert.of(of, f"{path}.{i}.{last}", i, fused[key]) for i in range(of.shape[0]))
            found |= {part.name: part for part in parts}
        else:
            found[key] = of
    return found


def find_experts(names: Iterable[str], model: PreTrainedModel) -> dict[str, ExpertPlace]:
    """Find the parameters of the experts' matrices, by the names that `by_name` gives."""
    fused, named = _fused(model), _Names(model)
    found = {}
    for name in names:
        path, _, last = name.rpartition(".")
        own, _, number = path.rpartition(".")
        if f"{own}.{last}" in fused and number.isdecimal():
            found[name] = ExpertPlace(f"{own}.{last}", int(number))
            continue
        key, pattern = named(name)
        if pattern is not None and key in fused:
            at = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
            if at is not None and at.groups():
                found[name] = ExpertPlace(key, int(at[1]))
    return found


def take_apart(model: PreTrainedModel) -> None:
    """Let the experts of a model run one by one, each with linear layers that can be watched.

    The model computes what it did, to rounding, and is not meant to be trained or saved any more.
    """
    model.config.get_text_config()._experts_implementation = APART
    for experts in _sparse(model).values():
        experts.apart = {
            name: [
                Routed(matrix.T if experts.is_transposed else matrix, bias)
                for matrix, bias in zip(
                    parameter.detach(), _biases(experts, name, len(parameter)), strict=True
                )
            ]
            for name, parameter in _matrices(experts).items()
        }


def layer_of(model: PreTrainedModel, place: ExpertPlace) -> Routed:
    """Return the linear layer of an expert of a model that was taken apart."""
    path, _, name = place.parameter.rpartition(".")
    experts: Any = model.get_submodule(path)
    found: Routed = experts.apart[name][place.expert]
    return found


def _run(experts: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Run the experts of a layer on tokens (N, D), of which `index` (N, k) names those of each."""
    reads = experts.apart["gate_up_proj" if experts.has_gate else "up_proj"]
    writes = experts.apart["down_proj"]
    out = torch.zeros_like(x)
    for i, (read, write) in enumerate(zip(reads, writes, strict=True)):
        tokens, at = torch.where(index == i)
        if len(tokens) == 0:
            continue
        read.tokens = write.tokens = tokens
        h = read(x[tokens])
        h = write(experts._apply_gate(h) if experts.has_gate else experts.act_fn(h))
        out.index_add_(0, tokens, (h * weights[tokens, at, None]).to(out.dtype))
    return out


ALL_EXPERTS_FUNCTIONS.register(APART, _run)


def _sparse(model: PreTrainedModel) -> dict[str, Any]:
    """Return the modules that hold all experts of a layer, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "is_transposed") and "down_proj" in _matrices(module)
    }


def _matrices(experts: nn.Module) -> dict[str, nn.Parameter]:
    return {name: of for name, of in experts.named_parameters(recurse=False) if of.ndim == 3}


def _fused(model: PreTrainedModel) -> dict[str, bool]:
    """Return whether they are (E, in, out), by the names of the parameters that hold all experts."""
    return {
        f"{path}.{name}": bool(experts.is_transposed)
        for path, experts in _sparse(model).items()
        for name in _matrices(experts)
    }


def _biases(experts: nn.Module, name: str, count: int) -> Iterable[Tensor | None]:
    bias = getattr(experts, f"{name}_bias", None)
    return [None] * count if bias is None else bias.detach()
