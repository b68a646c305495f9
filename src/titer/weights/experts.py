"""The experts of a sparse model one by one: on disk, in adapters, and in forward passes.

In memory transformers keeps all experts of a layer in one parameter, (E, out, in) or (E, in, out).
A checkpoint has them so too, or a tensor for each. Here every expert has matrices of its own,
(out, in), which an edit works on like on any other linear layer's.

PEFT keeps the factors of all experts in two matrices, whose orders differ: rows e r to (e + 1) r of
lora_A (E r, in) are expert e's A, and columns e, e + E, e + 2 E, ... of lora_B (out, r E) its B.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from titer.weights.tensors import Joint, Piece, Stored
from titer.weights.update import Update

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


class RoutedAdapter(Routed):
    """A linear layer of one expert with its own part of an adapter."""

    def __init__(self, weight: Tensor, bias: Tensor | None, update: Update) -> None:
        super().__init__(weight, bias)
        assert update.a is not None
        self.a, self.b = Routed(update.a, None), Routed(update.b, None)
        self.scaling = update.scaling

    def forward(self, x: Tensor) -> Tensor:
        self.a.tokens = self.b.tokens = self.tokens
        added: Tensor = self.b(self.a(x.to(self.a.weight.dtype)))
        out = super().forward(x)
        return out + (self.scaling * added).to(out.dtype)


@dataclass(frozen=True)
class ExpertPlace:
    """Where an expert's matrix is found in a model."""

    parameter: str  # that holds those of all experts of a layer
    expert: int
    # which one it is where the expert's matrix is made of several, one below the other
    order: int = 0

    @property
    def name(self) -> str:
        """The name of the expert's matrix: its number before the last part of the parameter's."""
        return _name(self.parameter, self.expert)


def stack(b: Tensor, a: Tensor, count: int, scaling: float) -> Update:
    """Return the update of `count` experts, one behind the other, whose factors PEFT keeps together.

    They are views: b (E, out, r) and a (E, r, in).
    """
    return Update(
        b.unflatten(1, (-1, count)).permute(2, 0, 1), a.unflatten(0, (count, -1)), scaling
    )


def unstack(
    a: Stored, b: Stored, count: int, expert: int, rows: slice, names: tuple[str, str]
) -> tuple[Piece, Piece]:
    """Return A and B of some rows of an expert's update on disk, where PEFT keeps `count` together.

    `names` are those of the rows and of the whole matrix, all of whose rows share one A.
    """
    r = a.shape[0] // count
    of_rows, of_all = names
    return (
        Piece.of(a, f"{of_all}.lora_A.weight", (slice(expert * r, (expert + 1) * r),)),
        Piece.of(b, f"{of_rows}.lora_B.weight", (rows, slice(expert, None, count))),
    )


class _Names:
    """How transformers names the tensors of a checkpoint in memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        changes: list[Any] = get_model_conversion_mapping(model)
        self._renamings = [of for of in changes if isinstance(of, WeightRenaming)]
        self._converters = [of for of in changes if isinstance(of, WeightConverter)]
        self._prefix, self._held = model.base_model_prefix, model.state_dict()
        # of a pattern its place among those whose tensors are laid one below the other
        self.order = {
            pattern: i for of in self._converters for i, pattern in enumerate(of.source_patterns)
        }

    def __call__(self, name: str) -> tuple[str, str | None]:
        """Return the name, and the pattern by which a tensor is put together with others."""
        return rename_source_key(name, self._renamings, self._converters, self._prefix, self._held)


def by_name(tensors: Mapping[str, Stored], model: PreTrainedModel) -> dict[str, Stored]:
    """Return the tensors of a checkpoint by the names that the model has for them in memory.

    Each expert has tensors of its own, also where a file has one of all experts of a layer; they go
    by the names of the file, or by such ones, the expert's number before the last part:
    `experts.3.down_proj`.
    """
    fused, named = fused_experts(model), _Names(model)
    found: dict[str, Stored] = {}
    for name, of in tensors.items():
        key, pattern = named(name)
        if pattern is not None:  # of several tensors the model makes one
            found[name] = of
        elif key in fused:
            turned = bool(model.get_submodule(key.rpartition(".")[0]).is_transposed)
            parts = (Piece.of(of, _name(key, i), (i,), turned) for i in range(of.shape[0]))
            found |= {part.name: part for part in parts}
        else:
            found[key] = of
    return found


def join(tensors: Mapping[str, Stored], model: PreTrainedModel) -> dict[str, Stored]:
    """Return the tensors that `by_name` gives, with those joined that are one matrix in memory.

    These are an expert's gate and up, for which an adapter has one A.
    """
    found = dict(tensors)
    for place, rows in lay_out(tensors, model).items():
        parts = [found.pop(name) for name in rows]
        name = place.name
        found[name] = parts[0] if len(parts) == 1 else Joint.of(parts, name)
    return found


def lay_out(
    tensors: Mapping[str, Stored], model: PreTrainedModel
) -> dict[ExpertPlace, dict[str, slice]]:
    """Return which rows of an expert's matrix in memory each tensor has, by the expert's place."""
    parts = dict[ExpertPlace, dict[int, str]]()
    for name, place in find_experts(tensors, model).items():
        parts.setdefault(replace(place, order=0), {})[place.order] = name
    found = dict[ExpertPlace, dict[str, slice]]()
    for place, names in parts.items():
        found[place], row = {}, 0
        for _, name in sorted(names.items()):
            found[place][name] = slice(row, row + tensors[name].shape[0])
            row += tensors[name].shape[0]
    return found


def find_experts(names: Iterable[str], model: PreTrainedModel) -> dict[str, ExpertPlace]:
    """Find the parameters of the experts' matrices, by the names that `by_name` gives."""
    fused, named = fused_experts(model), _Names(model)
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
                found[name] = ExpertPlace(key, int(at[1]), named.order[pattern])
    return found


def take_apart(model: PreTrainedModel, adapters: Mapping[str, Update] | None = None) -> None:
    """Let the experts of a model run one by one, each with linear layers that can be watched.

    `adapters` are those on experts, stacked, by parameter; PEFT's own are taken off. The model
    computes what it did, to rounding, and is not meant to be trained or saved any more.
    """
    model.config.get_text_config()._experts_implementation = APART
    for path, experts in _sparse(model).items():
        model.set_submodule(path, experts)
        experts.apart = {
            name: _take_apart(experts, name, (adapters or {}).get(f"{path}.{name}"))
            for name in _matrices(experts)
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


def _take_apart(experts: Any, name: str, stacked: Update | None) -> list[Routed]:
    parameter = getattr(experts, name).detach()
    weights = parameter.mT if experts.is_transposed else parameter
    biases = getattr(experts, f"{name}_bias", None)
    found = []
    for i, weight in enumerate(weights):
        bias = None if biases is None else biases.detach()[i]
        if stacked is None:
            found.append(Routed(weight, bias))
        else:
            assert stacked.a is not None
            update = Update(stacked.b.detach()[i], stacked.a.detach()[i], stacked.scaling)
            found.append(RoutedAdapter(weight, bias, update))
    return found


def _name(parameter: str, expert: int) -> str:
    path, _, last = parameter.rpartition(".")
    return f"{path}.{expert}.{last}"


def _sparse(model: PreTrainedModel) -> dict[str, Any]:
    """Return the modules that hold all experts of a layer, by their names without an adapter."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in model.named_modules()
        if hasattr(module, "is_transposed") and "down_proj" in _matrices(module)
    }


def _matrices(experts: nn.Module) -> dict[str, nn.Parameter]:
    return {name: of for name, of in experts.named_parameters(recurse=False) if of.ndim == 3}


def fused_experts(model: PreTrainedModel) -> dict[str, int]:
    """Return how many experts there are, by the names of the parameters that hold them all."""
    return {
        f"{path}.{name}": len(of)
        for path, experts in _sparse(model).items()
        for name, of in _matrices(experts).items()
    }
