"""A fine-tuned checkpoint on disk, beside the aligned one that it started from.

The update is what fine-tuning added to each weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from titer.errors import reading
from titer.weights.experts import by_name, fused_experts, join, lay_out, unstack
from titer.weights.folders import ADAPTER, TENSORS, Files, belongs
from titer.weights.targets import matches
from titer.weights.tensors import Stored, open_file, open_tensors
from titer.weights.update import Update

PREFIX = "base_model.model."  # of every name in PEFT's files
# the values of PEFT's settings with which an adapter is W + (alpha / r) B A
PLAIN: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        (
            "fan_in_fan_out",
            "lora_bias",
            "use_qalora",
            "trainable_token_indices",
            "layer_replication",
        ),
        (False,),
    ),
    "bias": ("none",),
    # others have taken B A out of W first
    "init_lora_weights": (True, False, "gaussian", "eva", "mica", "orthogonal"),
}


@dataclass(frozen=True)
class Factors:
    """The adapter of one weight as it lies on disk.

    `Update` is the same in memory, where edits compute.
    """

    a: Stored  # (r, in)
    b: Stored  # (out, r)
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def read(self, dtype: torch.dtype) -> Update:
        """Read both factors, in `dtype`."""
        return Update(self.b.read().to(dtype), self.a.read().to(dtype), self.scaling)


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model: an adapter, or a whole model.

    Weights go by the names of their tensors in a whole checkpoint.
    """

    files: Files
    started: Files  # the aligned model
    aligned: Mapping[str, Stored]  # its tensors
    # of a whole model all its tensors; of an adapter those that it saved whole
    whole: Mapping[str, Stored]
    factors: Mapping[str, Factors] = field(default_factory=dict)

    @staticmethod
    def of(
        files: Files,
        aligned: Files | None,
        model: PreTrainedModel | None = None,
        joined: bool = False,
    ) -> FineTuned:
        """Open a fine-tuned checkpoint beside the aligned one.

        `aligned` may be None for an adapter, which names its base. By `model`, which has the layers
        and needs no weights, tensors go by the names in memory, and experts are apart: `joined`
        where an adapter has one pair of factors for several tensors of the files. Raises where the
        two do not belong together, or the adapter is more than one of linear layers and experts.
        """
        started = aligned or files.base
        if started is None:
            raise ValueError(
                f"model {files.name!r} is no adapter, so it does not name the aligned model that "
                "fine-tuning started from: give it"
            )
        under = open_named(started, model, joined)
        if (files.folder / ADAPTER).is_file():
            if not belongs(files, started):
                raise ValueError(
                    f"adapter {files.name!r} was not fine-tuned from {started.name!r}, whose "
                    "weights are others"
                )
            found, whole = _adapter(files, under, model)
            tuned = FineTuned(files, started, under, whole, found)
        else:
            tuned = FineTuned(files, started, under, open_named(files, model, joined))
        for name, of in (tuned.factors or tuned.whole).items():
            if name not in under:
                raise ValueError(
                    f"model {files.name!r} was not fine-tuned from {started.name!r}, which has no "
                    f"{name!r}"
                )
            if under[name].shape != of.shape:
                sizes = [" x ".join(map(str, each)) for each in (under[name].shape, of.shape)]
                raise ValueError(
                    f"model {files.name!r} was not fine-tuned from {started.name!r}, whose "
                    f"{name!r} is {sizes[0]}, not {sizes[1]}"
                )
        return tuned

    @property
    def tensors(self) -> dict[str, Stored]:
        """All tensors that fine-tuning changed, by the names in the model's own files."""
        return {
            of.name: of for factors in self.factors.values() for of in (factors.a, factors.b)
        } | dict(self.whole)

    def is_updated(self, name: str) -> bool:
        """Tell whether a weight of the fine-tuned model is one of the aligned model's, of its shape."""
        of = self.factors.get(name) or self.whole[name]
        return name in self.aligned and self.aligned[name].shape == of.shape

    def update(self, name: str) -> Update:
        """Return the update of a weight. Raises where the adapter has none for it."""
        wide = self.aligned[name].wide
        if name in self.factors:
            return self.factors[name].read(wide)
        if name not in self.whole:
            raise ValueError(
                f"the adapter {self.files.name!r} has no factors for {name!r}: train one on the "
                "same layers"
            )
        return Update(self.whole[name].read().to(wide) - self.aligned[name].read().to(wide))

    def value(self, name: str) -> Tensor:
        """Return the fine-tuned weight."""
        wide = self.aligned[name].wide
        if name in self.whole:
            return self.whole[name].read().to(wide)
        return self.aligned[name].read().to(wide) + self.update(name).dense()


@dataclass(frozen=True)
class Weight:
    """One weight under an edit, and all that the edit may ask of it.

    Every value is read when it is asked for, in float32 or better.
    """

    name: str  # of its tensor
    tuned: FineTuned
    # the base's tensors, and what other fine-tunings of the aligned model came to
    references: Mapping[str, FineTuned | Mapping[str, Stored]]
    seen: Any = None  # what the edit kept of forward passes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tuned.aligned[self.name].shape

    @property
    def kind(self) -> torch.dtype:
        """The dtype that the aligned weight is stored in."""
        return self.tuned.aligned[self.name].kind

    @property
    def update(self) -> Update:
        """The update that fine-tuning added."""
        return self.tuned.update(self.name)

    @property
    def finetuned(self) -> Tensor:
        """The weight after fine-tuning."""
        return self.tuned.value(self.name)

    @property
    def aligned(self) -> Tensor:
        """The weight that fine-tuning started from."""
        of = self.tuned.aligned[self.name]
        return of.read().to(of.wide)

    @property
    def base(self) -> Tensor:
        """The weight of the model that alignment started from.

        Raises where that model has no such weight.
        """
        of = self.tuned.aligned[self.name]
        tensors = self.references["base"]
        assert isinstance(tensors, Mapping)
        if self.name not in tensors or tensors[self.name].shape != of.shape:
            raise ValueError(
                f"the base is not the model that alignment started from: it has no {self.name!r} "
                f"of shape {list(of.shape)}"
            )
        # one that is kept wider was rounded when alignment began
        return tensors[self.name].read().to(of.kind).to(of.wide)

    def update_of(self, reference: str) -> Update:
        """Return the update of another fine-tuning of the aligned model.

        `safe` was trained on safe rows, `unsafe` on harmful ones.
        """
        tuned = self.references[reference]
        assert isinstance(tuned, FineTuned)
        return tuned.update(self.name)


def open_named(
    files: Files, model: PreTrainedModel | None, joined: bool = False
) -> Mapping[str, Stored]:
    """Return the tensors of a whole checkpoint, by the names of a model that has its layers."""
    tensors = open_tensors(files)
    if model is None:
        return tensors
    named = by_name(tensors, model)
    return join(named, model) if joined else named


def find_unadded(files: Files) -> str:
    """Name the setting by which an adapter's update depends on the weights that it is merged into;
    empty where it is the same over any.
    """
    from peft import LoraConfig

    config = _settings(files)
    own = {"init_lora_weights": PLAIN["init_lora_weights"]} | _variants(config)
    return _find_other(config, own) if isinstance(config, LoraConfig) else ""


def _settings(files: Files) -> Any:
    """Read an adapter's settings. Raises where PEFT does not know its kind."""
    from peft import PeftConfig

    with reading(f"adapter {files.name!r}: its {ADAPTER}", "is it of a newer PEFT?"):
        return PeftConfig.from_pretrained(str(files.folder))


def _variants(config: Any) -> dict[str, tuple[object, ...]]:
    """Return the settings of DoRA and its kin, with the values that switch them off."""
    return {of.name: (False,) for of in fields(config) if of.metadata.get("is_lora_variant")}


def _find_other(config: Any, plain: Mapping[str, tuple[object, ...]]) -> str:
    """Name the first setting that has another value than the plain ones; empty where none has."""
    values = {name: getattr(config, name) or False for name in plain}
    return next((f"{name}={of!r}" for name, of in values.items() if of not in plain[name]), "")


def _adapter(
    files: Files, under: Mapping[str, Stored], model: PreTrainedModel | None
) -> tuple[dict[str, Factors], dict[str, Stored]]:
    """Return the factors of an adapter by weight, and the tensors that it holds whole.

    Raises where it is more than W + (alpha / r) B A of linear layers and experts.
    """
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

    config = _settings(files)
    wrong = f"adapter {files.name!r} is not W + (alpha / r) B A of linear layers and experts alone"
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{wrong} but {config.peft_type.value}: train one that is")
    if other := _find_other(config, PLAIN | _variants(config)):
        raise ValueError(f"{wrong}: it has {other}; train one that is")
    sides: dict[str, dict[str, Stored]] = {}
    whole: dict[str, Stored] = {}
    for key, tensor in open_file(files.folder / TENSORS, files.name).items():
        name = key.removeprefix(PREFIX)
        layer, marker, side = name.rpartition(".lora_")
        if not marker:
            whole[name] = tensor
        elif side in ("A.weight", "B.weight"):
            sides.setdefault(layer, {})[side[0]] = tensor
        else:
            raise ValueError(f"{wrong}: it has {key!r}; train one that is")
    found: dict[str, Factors] = {}
    alphas = config.alpha_pattern or {}
    bare = _bare(config, model)
    fused = fused_experts(model) if model is not None and bare else {}
    rows = lay_out(under, model) if model is not None and fused else {}
    for layer, pair in sides.items():
        a, b, parameter = pair["A"], pair["B"], bare.get(layer)
        of = layer if parameter is None else parameter
        alpha = alphas.get(get_pattern_key(list(alphas), of), config.lora_alpha)
        count = fused.get(of, 1)
        r = a.shape[0] // count
        scaling = alpha / (r**0.5 if config.use_rslora else r)
        if of not in fused:
            found[parameter or f"{layer}.weight"] = Factors(a, b, scaling)
            continue
        places = [place for place in rows if place.parameter == of]
        if len(places) != count:
            raise ValueError(
                f"adapter {files.name!r} adapts {of!r}, whose experts the files of its base hold neither "
                "one by one nor as the model does: save the base by save_pretrained, and give that as base"
            )
        for place in places:
            for name, part in rows[place].items():
                names = f"{PREFIX}{name.removesuffix('.weight')}", f"{PREFIX}{place.name}"
                found[name] = Factors(*unstack(a, b, count, place.expert, part, names), scaling)
    return found, whole


def _bare(config: Any, model: PreTrainedModel | None) -> dict[str, str]:
    """Return the parameters that an adapter names as such, by the layers in its tensors' names.

    PEFT wraps a module once for every such parameter, the last one outermost.
    """
    found: dict[str, str] = {}
    if not config.target_parameters:
        return found
    assert model is not None, "experts are told apart by the model's layers"
    for path, module in model.named_modules():
        own = [
            name
            for name in (f"{path}.{last}" for last, _ in module.named_parameters(recurse=False))
            if any(matches(name, target) for target in config.target_parameters)
        ]
        found |= {path + ".base_layer" * i: name for i, name in enumerate(reversed(own))}
    return found
