"""The layers of a causal language model by role.

They are found by the names that transformers gives them, never by class. Roles are checked, not
guessed: a layer with a part of unknown role raises, because a method that misses a matrix would
quietly do less than it says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, GradientCheckpointingLayer, PreTrainedModel

ATTENTION = ("self_attn", "attention")
NORMS = ("norm", "final_layer_norm", "final_layernorm")  # behind the last layer
ROUTER = ("gate", "router")  # of a sparse MLP, the one that has `experts`
WRITERS = ("o_proj", "out_proj", "dense", "down_proj", "dense_4h_to_h", "fc2")
READERS = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),  # multi-head latent attention
    *("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "fc1"),
    *ROUTER,
)


@dataclass(frozen=True)
class Writer:
    """A parameter whose output is added to the residual stream.

    `axis` is the axis that faces the stream, of length hidden_size. It is 0 of a weight (hidden,
    in), of an adapter's factor B (hidden, r) and of a bias (hidden,). Fused experts are (E, hidden,
    inter), axis 1, or (E, inter, hidden), axis 2; their bias is (E, hidden), axis 1.
    """

    parameter: nn.Parameter
    axis: int


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    `name` is its name in `model.named_modules()` of the model that it was asked of, adapter
    included.
    """

    name: str
    module: nn.Module  # returns the residual stream: (B, T, D)
    attention: nn.Module  # returns a tuple whose first entry is (B, T, D)
    # (mlp,), which returns (B, T, D), in GptOss a tuple that begins so;
    # OPT's (fc1, fc2), of which the last returns (B*T, D)
    mlp: tuple[nn.Module, ...]
    # of a sparse layer: returns (logits (B*T, E), weights (B*T, k), experts (B*T, k)), of pads too
    router: nn.Module | None

    def writers(self) -> dict[str, Writer]:
        """Return the parameters that write to the residual stream, by name.

        Names are those of `model.named_parameters()`. With all of them 0 the layer is the identity.
        Under an adapter, B writes too. In Gemma and Olmo 2 a norm stands between these and the
        stream: it keeps zeros, not directions. Raises where a matrix of the layer has no known
        role.
        """
        from peft.tuners.lora.layer import ParamWrapper

        found: dict[str, Writer] = {}
        for name, parameter in self.module.named_parameters():
            *path, last = (part for part in name.split(".") if part != "base_layer")
            if "lora_A" in path:  # reads for its B
                continue
            if "lora_B" in path:
                path = path[: path.index("lora_B")]
                adapted = self.module.get_submodule(name.partition(".lora_B")[0])
                if isinstance(adapted, ParamWrapper):  # of experts, B is (hidden, r E)
                    path.append(adapted.parameter_name)
            # fused experts are bare parameters
            owner = path[-1] if last in ("weight", "bias") else last.removesuffix("_bias")
            if owner in WRITERS:
                found[f"{self.name}.{name}"] = Writer(parameter, self._axis(name, parameter))
            elif owner not in READERS and parameter.ndim > 1:
                raise ValueError(
                    f"{type(self.module).__name__} has a matrix {name!r} of unknown role: say in "
                    "titer/layers.py whether it "
                    "writes to the residual stream"
                )
        widths = {writer.parameter.shape[writer.axis] for writer in found.values()}
        if len(widths) != 1:
            raise ValueError(
                f"{type(self.module).__name__}: the matrices that write to the residual stream "
                f"have widths {sorted(widths)}"
            )
        return found

    def _axis(self, name: str, parameter: nn.Parameter) -> int:
        path, _, last = name.rpartition(".")
        if last in ("weight", "bias"):
            return 0
        if last.endswith("_bias"):
            return 1
        # how transformers marks (E, in, out)
        transposed = getattr(self.module.get_submodule(path), "is_transposed", None)
        if transposed is None:
            raise ValueError(
                f"{type(self.module).__name__}: {name!r} does not say which of its axes faces the "
                "residual stream"
            )
        return 2 if transposed else 1


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers in order, of a model with or without an adapter.

    Raises, naming the model's class, where they are not found.
    """
    base = base_of(model)
    if not isinstance(base, PreTrainedModel):
        raise ValueError(
            f"{type(base).__name__} is no model of transformers: its decoder layers are unknown"
        )
    lists = [child for child in base.get_decoder().children() if isinstance(child, nn.ModuleList)]
    found: list[nn.Module] = [
        layer for child in lists for layer in child if isinstance(layer, GradientCheckpointingLayer)
    ]
    of = base.config.get_text_config().num_hidden_layers
    if not found or len(found) != of:
        raise ValueError(
            f"{type(base).__name__}: found {len(found)} of its {of} decoder layers; this model "
            "family is not supported"
        )
    return found


def layers(model: nn.Module) -> list[Layer]:
    """Return the decoder layers with their parts.

    Raises, naming the model's class and the part, where a part is not found.
    """
    names = {module: name for name, module in model.named_modules()}
    family = type(base_of(model)).__name__
    return [_layer(names[module], module, family) for module in decoder_layers(model)]


@dataclass(frozen=True)
class Head:
    """The part of a model that makes logits from the residual stream after the last layer.

    Applied to the stream after an earlier layer, it is the logit lens.
    """

    norm: nn.Module
    unembedding: nn.Module
    softcap: float | None  # Gemma 2: logits are bounded by tanh

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) of a residual stream (..., D)."""
        logits: torch.Tensor = self.unembedding(self.norm(residual))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.norm.parameters(), *self.unembedding.parameters()]


def head(model: nn.Module) -> Head:
    """Return the model's head. Raises, naming the model's class, where it is not found."""
    base = base_of(model)
    children = dict(base.get_decoder().named_children())
    norm = next((children[name] for name in NORMS if name in children), None)
    if norm is None:
        raise ValueError(
            f"{type(base).__name__}: no norm behind its last layer among {', '.join(children)}"
        )
    softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return Head(norm, unembedding(model), softcap)


def unembedding(model: nn.Module) -> nn.Module:
    """Return the module that makes logits of hidden states, an adapter on it included.

    Raises, naming the model's class, where there is none.
    """
    base = base_of(model)
    found: nn.Module | None = base.get_output_embeddings()
    if found is None:
        raise ValueError(f"{type(base).__name__} has no output embedding")
    return found


@contextmanager
def unembed_at(model: nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the model's logits are (1, N, V), those of the N positions of (B * T) alone.

    Only what makes logits of hidden states sees them so. What a model does to its logits
    afterwards, such as scaling or softcapping, it does to each one.
    """

    def keep(_module: nn.Module, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (hidden[0].flatten(0, 1).index_select(0, positions)[None], *hidden[1:])

    handle = unembedding(model).register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recompute_layers(model: nn.Module, chosen: Collection[int] | None = None) -> Iterator[None]:
    """Inside, a backward pass recomputes layers instead of keeping their activations.

    That is gradient checkpointing, non-reentrant. These layers are the chosen decoder layers, or
    all where none are named. The layers' `forward` is wrapped here because transformers' own switch
    works in training mode alone, and that mode turns dropout on: in the layer itself where it is an
    attribute (OPT). So no flag changes, and the switch cannot be lost to `model.eval()`. Hooks on a
    layer run once; hooks on its parts run again in the backward pass.

    Raises for a model that says it cannot be recomputed, and in a pass that keeps a key-value
    cache.
    """
    base = base_of(model)
    found = [
        layer for i, layer in enumerate(decoder_layers(model)) if chosen is None or i in chosen
    ]
    if found and not base.supports_gradient_checkpointing:
        raise ValueError(
            f"{type(base).__name__} does not support gradient checkpointing: train it without"
        )
    with _forwards({layer: partial(_forward_recomputing, layer.forward) for layer in found}):
        yield


@dataclass(frozen=True)
class Seen:
    """The inner results of a forward pass, each (B, T, D) and part of its graph."""

    residuals: list[torch.Tensor]  # the residual stream before every layer, and after the last
    mlps: list[torch.Tensor]  # outputs of the MLPs, before they are added to it


@contextmanager
def watch_layers(found: Sequence[Layer]) -> Iterator[Seen]:
    """Inside, the first forward pass leaves its inner results. Recomputing it adds nothing."""
    seen = Seen([], [])

    def into(_: nn.Module, inputs: tuple[torch.Tensor, ...], i: int) -> None:
        if len(seen.residuals) == i:
            seen.residuals.append(inputs[0])

    def last(_: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if len(seen.residuals) == len(found):
            seen.residuals.append(output)

    def mlp(
        _: nn.Module, inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...], i: int
    ) -> None:
        if len(seen.mlps) == i:
            tensor = output[0] if isinstance(output, tuple) else output  # GptOss adds the router's
            seen.mlps.append(tensor.view_as(seen.residuals[i]))  # OPT flattens its tokens

    handles = [
        layer.module.register_forward_pre_hook(partial(into, i=i)) for i, layer in enumerate(found)
    ]
    handles += [
        layer.mlp[-1].register_forward_hook(partial(mlp, i=i)) for i, layer in enumerate(found)
    ]
    handles.append(found[-1].module.register_forward_hook(last))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def sparse_layers(found: Sequence[Layer], method: str) -> list[Layer]:
    """Return the layers that route tokens to experts. Raises where there is none for the method."""
    sparse = [layer for layer in found if layer.router is not None]
    if not sparse:
        raise ValueError(
            f"{method} works on how layers route tokens to experts, and all {len(found)} layers of this "
            "model are dense: choose a method for dense models, such as anchor"
        )
    return sparse


@contextmanager
def watch_routers(found: Sequence[Layer]) -> Iterator[list[torch.Tensor]]:
    """Inside, the first forward pass leaves the logits (B * T, E) of every sparse layer's router.

    They are part of its graph, and those of pads are among them. Recomputing it adds nothing. Raises,
    naming the layer, where a router returns none, or is not called.
    """
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: object, output: object, i: int) -> None:
        if len(seen) == i:
            seen.append(_read_logits(output, found[i].name))

    handles = []
    for i, layer in enumerate(found):
        assert layer.router is not None  # it is a sparse one
        handles.append(layer.router.register_forward_hook(partial(keep, i=i)))
    try:
        yield seen
        if len(seen) < len(found):
            raise ValueError(
                f"the router of layer {found[len(seen)].name!r} runs in no pass of its own, so its "
                "logits cannot be read: load the model without kernels that replace its layers"
            )
    finally:
        for handle in handles:
            handle.remove()


def _read_logits(output: object, name: str) -> torch.Tensor:
    """Return the logits from what a router returns. Raises where that is not as `Layer` says."""
    match output:
        case (torch.Tensor() as logits, torch.Tensor() as weights, torch.Tensor() as experts):
            same = weights.shape == experts.shape and len(weights) == len(logits)
            if same and logits.ndim == 2 and not _are_probabilities(logits.detach()):
                return logits
    raise ValueError(
        f"the router of layer {name!r} does not return logits (tokens, experts) before its weights and "
        "experts: this model family is not supported"
    )


def _are_probabilities(values: torch.Tensor) -> bool:
    """Tell whether every row could be the softmax of logits, to half precision."""
    off = (values.float().sum(1) - 1).abs().max()
    return bool((values >= 0).all() & (off < 0.02))


@contextmanager
def once(model: nn.Module, count: int, key: Callable[[], object]) -> Iterator[None]:
    """Inside, the first `count` decoder layers run without a graph, once for every `key()`.

    Later passes in which `key()` returns the same object take the result of the first. The caller
    must keep the inputs and the weights of these layers the same for it.
    """
    # by identity, with the object itself, so that no other gets its place
    kept: dict[int, tuple[object, Any]] = {}
    below = decoder_layers(model)[:count]

    def skip(
        hidden: torch.Tensor, *args: Any, forward: Callable[..., Any], last: bool, **kwargs: Any
    ) -> Any:
        of = key()
        if id(of) in kept:
            return kept[id(of)][1] if last else hidden
        with torch.no_grad():
            output = forward(hidden, *args, **kwargs)
        if last:
            kept[id(of)] = of, output
        return output

    with _forwards(
        {layer: partial(skip, forward=layer.forward, last=layer is below[-1]) for layer in below}
    ):
        yield


@contextmanager
def _forwards(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside, the modules have these forwards instead of their own."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own


def _forward_recomputing(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise ValueError(
            "gradient checkpointing with a key-value cache would append to it twice: pass "
            "use_cache=False"
        )
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def base_of(model: nn.Module) -> Any:
    """Return the model under an adapter, whose own passes are those of all that wrap it."""
    from peft import PeftModel  # not needed to import this file

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _layer(name: str, module: nn.Module, family: str) -> Layer:
    children = dict(module.named_children())
    attention = next((children[key] for key in ATTENTION if key in children), None)
    mlp = (
        (children["mlp"],)
        if "mlp" in children
        else tuple(children[key] for key in ("fc1", "fc2") if key in children)
    )
    parts = dict(mlp[0].named_children()) if mlp else {}
    router = (
        next((parts[key] for key in ROUTER if key in parts), None) if "experts" in parts else None
    )
    missing = (
        "attention"
        if attention is None
        else "MLP"
        if not mlp
        else "router"
        if "experts" in parts and router is None
        else None
    )
    if missing:
        raise ValueError(
            f"{family}: layer {name!r} has no {missing} among its parts {', '.join(children)}"
        )
    assert attention is not None  # said above
    return Layer(name, module, attention, mlp, router)
