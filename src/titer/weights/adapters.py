"""Low-rank adapters by PEFT: added to a model, measured, and merged into its weights."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.attributes import swap
from titer.errors import nearest, reading
from titer.weights import language
from titer.weights.experts import fused_experts, stack
from titer.weights.norms import norm
from titer.weights.settings import ALL_LINEAR, Lora
from titer.weights.targets import last_parts, matches
from titer.weights.update import Update


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as PEFT keeps it: of one matrix, or of those of all experts of a layer."""

    weight: Tensor  # under it: (out, in), of experts (E, out, in)
    b: nn.Parameter  # (out, r), of experts (out, r E)
    a: nn.Parameter  # (r, in), of experts (E r, in)
    scaling: float
    experts: int | None  # E

    def read(self, b: Tensor, a: Tensor) -> Update:
        """Return the update of factors that lie as the adapter's own do.

        That of experts is stacked, and of views.
        """
        if self.experts is None:
            return Update(b, a, self.scaling)
        return stack(b, a, self.experts, self.scaling)

    @property
    def update(self) -> Update:
        return self.read(self.b, self.a)


def check_targets(model: PreTrainedModel, lora: Lora) -> None:
    """Raise where the adapter has a target that the model has not.

    That is a name that matches no linear layer, told with the nearest one, or experts.
    """
    if lora.experts and not _experts(model):
        raise ValueError(
            f"lora.experts=true: {type(model).__name__} has no layers whose experts lie in one parameter; "
            "leave it out, and name linear layers by lora.targets"
        )
    known = list(language.linear_layers(model))
    lasts = sorted(last_parts(known))
    for target in lora.targets:
        if target != ALL_LINEAR and not any(matches(name, target) for name in known):
            raise ValueError(
                f"LoRA target {target!r} matches no linear layer: {nearest(target, lasts)}The "
                f"model has {', '.join(lasts)}"
            )


def add_lora(model: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    """Return the model under a fresh adapter, which alone is trainable.

    Towers beside the language model are left alone, whatever the targets. Raises where a target
    matches no linear layer, or there are no experts to adapt.
    """
    from peft import LoraConfig, get_peft_model

    check_targets(model, lora)
    targets: Any = ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets)
    if language.towers(model):  # whose layers may have the same last names
        head = cast(Any, model).get_output_embeddings()
        targets = [
            name
            for name, layer in language.linear_layers(model).items()
            if any(matches(name, target) for target in lora.targets)
            or (ALL_LINEAR in lora.targets and layer is not head)
        ]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        target_parameters=_experts(model) if lora.experts else None,
        lora_dropout=0.0,
    )
    with literal_peft():
        return get_peft_model(model, config)  # type: ignore[return-value]


@contextmanager
def literal_peft() -> Iterator[None]:
    """Let PEFT adapt, inside, the layers that it is told to.

    For MoE families it reads the names of an MLP's linear layers, also those behind `all-linear`,
    as transformers 4 meant them: the router and the experts, which are parameters now. The linear
    layers of these names, those of dense layers and shared experts, it leaves out without a word;
    an adapter that has these is read back by `checkpoints.load`, not by PEFT alone. It also warns
    of an attribute's old name, which no user could mend, and of tied weights, which are untied
    where an adapter is merged.
    """
    from peft.utils import transformers_weight_conversion as conversion

    with (
        swap(conversion, "convert_peft_config_for_transformers", lambda *_, **__: None),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        yield


def find_adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return the unmerged adapter of every adapted layer, by the layer's name.

    Experts have one together, by the name of the parameter that holds them. Raises where there is
    none, or one is not W + (alpha / r) B A.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    found: dict[str, Adapter] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if any(module.use_dora.values()):
            raise ValueError(
                f"the adapter on {name!r} is not W + (alpha / r) B A (DoRA): train one that is"
            )
        of: Any = module
        bare, experts = isinstance(module, ParamWrapper), None
        weight = of.get_param() if bare else of.get_base_layer().weight
        if bare:
            path = name.replace(".base_layer", "")  # one wrapper for each parameter of a module
            name = f"{path}.{of.parameter_name}".removesuffix(".weight")
        if bare and weight.ndim == 3:
            experts = of.num_experts
            weight = weight.mT if of.get_base_layer().is_transposed else weight
        b, a = (side["default"].weight for side in (of.lora_B, of.lora_A))
        found[name] = Adapter(weight, b, a, of.scaling["default"], experts)
    if not found:
        raise ValueError(
            "the model carries no unmerged LoRA adapter: give the folder of a fine-tuning with "
            "`finetune.lora` set"
        )
    return found


def adapters(model: nn.Module) -> dict[str, Update]:
    """Return the updates of `find_adapters`, whose factors are the model's own parameters."""
    return {name: of.update for name, of in find_adapters(model).items()}


def count_matrices(model: nn.Module) -> dict[str, int]:
    """Return how many matrices have an adapter, by the last part of their layers' names."""
    found = Counter[str]()
    for name, of in find_adapters(model).items():
        path, _, last = name.rpartition(".")
        found[last if of.experts is None else f"{path.rpartition('.')[2]}.{last}"] += (
            of.experts or 1
        )
    return dict(found)


def update_norm(model: nn.Module) -> float:
    """Return the Frobenius norm of the update of all adapted layers together, in float64."""
    squares = []
    for of in adapters(model).values():
        product = Update(of.b.detach().double(), cast(Tensor, of.a).detach().double())
        squares.append(of.scaling**2 * product.dot(product))
    return math.sqrt(sum(squares))


def base_norm(model: nn.Module) -> float:
    """Return the Frobenius norm of the weights under all adapted layers together, in float64."""
    return math.hypot(*(float(norm(of.weight)) for of in find_adapters(model).values()))


def has_adapter(model: nn.Module) -> bool:
    """Say whether the model has an unmerged adapter."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def merge_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with its adapter, if it has one, added into its weights.

    A head that shares its weight with the embeddings, of which the adapter changes one, gets one of
    its own first: else the other would change with it.
    """
    if not has_adapter(model):
        return model
    adapted: Any = model
    _untie(adapted.get_base_model())
    with reading("the adapter", "only one that merges into its base can be scored or trained on"):
        return cast(PreTrainedModel, adapted.merge_and_unload())


def merge_error(model: nn.Module, experts: bool = False) -> float:
    """Return the norm of what rounding to the weights' dtype takes from the update when it is merged.

    It is a share of the update's norm: 0 in float32 but for last bits, near 1 where the update is
    smaller than the step between two coarse numbers. With `experts` it is of their update alone,
    which PEFT adds to their weights anew in every pass.
    """
    lost = whole = 0.0
    for of in find_adapters(model).values():
        if experts and of.experts is None:
            continue
        weight = of.weight.detach()
        exact = weight.double() + of.update.dense().detach().double()
        lost += float((exact.to(weight.dtype).double() - exact).square().sum())
        whole += float((exact - weight.double()).square().sum())
    return math.sqrt(lost / whole) if whole else 0.0


def _experts(model: PreTrainedModel) -> list[str]:
    """Return the parameters that hold all experts of a layer, where text reaches them."""
    beside = language.towers(model)
    return [name for name in fused_experts(model) if name not in beside]


def _untie(base: Any) -> None:
    """Give the head a weight of its own where an adapter changes it or the embeddings alone."""
    from peft.tuners.lora import LoraLayer

    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or not any(isinstance(module, LoraLayer) for module in (embeddings, head)):
        return
    below, above = (getattr(module, "base_layer", module) for module in (embeddings, head))
    if above.weight is below.weight:
        above.weight = nn.Parameter(above.weight.detach().clone(), requires_grad=False)
        base.config.get_text_config().tie_word_embeddings = False
        base.config.tie_word_embeddings = False
