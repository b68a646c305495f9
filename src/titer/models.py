"""Load, adapt, merge and save models: any causal language model of transformers, adapters by PEFT, safetensors only."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BeforeValidator
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from titer.methods import Config
from titer.registry import nearest

transformers_logging.disable_progress_bar()  # a run has its own
LAB = "lab"  # the name of the embedded base model


ALL = "all-linear"  # every linear layer but the head
Names = Annotated[tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)]


@dataclass(frozen=True)
class Lora(Config):
    """A low-rank adapter: every target W becomes W + (alpha / r) B A."""

    r: int = 8
    alpha: float = 16.0
    targets: Names = ("q_proj", "v_proj")  # names of linear layers, or of the last part of their names, or `all-linear`

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r={self.r}: an adapter needs a rank of at least 1")
        if not self.targets:
            raise ValueError("targets is empty: name the linear layers that get an adapter")


def folder_of(name: str) -> Path:
    """The checkpoint directory that a recipe's model names."""
    if name == LAB:
        return Path(__file__).parent / "lab" / "base"
    return Path(name).expanduser()


def load(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a local checkpoint directory, or of a stage of a run (an adapter over its base)."""
    folder = folder_of(name)
    adapter = (folder / "adapter_config.json").is_file()
    if not folder.is_dir() or not (adapter or (folder / "config.json").is_file()):
        raise ValueError(f"model {name!r}: no checkpoint directory with a config.json there (or {LAB!r} for the embedded model)")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"model {name!r}: the directory holds no *.safetensors; save the weights in that format")
    if adapter:
        from peft import PeftConfig, PeftModel

        base, tokenizer = load(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path), dtype)
        with _literal_peft():
            return PeftModel.from_pretrained(base, folder, is_trainable=True), tokenizer  # type: ignore[return-value]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r}: no usable tokenizer in its directory ({str(error).splitlines()[0]})") from None
    if tokenizer.chat_template is None:
        raise ValueError(f"model {name!r}: its tokenizer has no chat template; add a chat_template.jinja to the directory")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model {name!r}: its tokenizer has no end-of-sequence token, so an answer could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # pads are masked everywhere; any token serves
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True), tokenizer


def check_targets(model: nn.Module, lora: Lora) -> None:
    """Raise where a target of the adapter matches no linear layer, with the nearest name."""
    known = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    lasts = sorted({name.rsplit(".", 1)[-1] for name in known})
    for target in lora.targets:
        if target != ALL and not any(name == target or name.endswith("." + target) for name in known):
            raise ValueError(f"LoRA target {target!r} matches no linear layer: {nearest(target, lasts)}The model has {', '.join(lasts)}")


def add_lora(model: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    """The model under a fresh adapter, which alone is trainable. Raises where a target matches no linear layer."""
    from peft import LoraConfig, get_peft_model

    check_targets(model, lora)
    targets: Any = ALL if ALL in lora.targets else list(lora.targets)
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
    with _literal_peft():
        return get_peft_model(model, config)  # type: ignore[return-value]


@contextmanager
def _literal_peft() -> Iterator[None]:
    """PEFT that adapts the layers it is told to.

    For MoE families it reads the names of an MLP's linear layers, also those behind `all-linear`, as transformers 4 meant
    them: the router and the experts, which are parameters now. The linear layers of these names, those of dense layers and
    shared experts, it leaves out without a word; an adapter that has these is read back by `load`, not by PEFT alone. It also
    warns of an attribute's old name, which no user could mend.
    """
    from peft.utils import transformers_weight_conversion as conversion

    convert = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        conversion.convert_peft_config_for_transformers = convert


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The unmerged adapter of every adapted linear layer, by the layer's name. Raises where there is none, or one of another kind."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):  # its A and B hold all experts' factors, side by side
            raise ValueError(f"the adapter has {name}.{module.parameter_name}, which is no linear layer: fine-tune with `lora.targets`")
    found = {
        name: Adapter(cast(nn.Linear, module.lora_A["default"]), cast(nn.Linear, module.lora_B["default"]), module.scaling["default"])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    if not found:
        raise ValueError("the model carries no unmerged LoRA adapter: fine-tune with `finetune.lora` set, or choose another edit")
    return found


@dataclass(frozen=True)
class Adapter:
    """One layer's update (alpha / r) B A: `a.weight` is (r, in), `b.weight` is (out, r)."""

    a: nn.Linear
    b: nn.Linear
    scaling: float

    def squared_norm(self) -> float:
        """||(alpha / r) B A||_F^2 = (alpha / r)^2 tr((B^T B)(A A^T)), in float64, without the (out, in) product."""
        a, b = self.a.weight.detach().double(), self.b.weight.detach().double()
        return self.scaling**2 * float(((b.T @ b) * (a @ a.T)).sum())


def update_norm(model: nn.Module) -> float:
    """Frobenius norm of the whole fine-tuning update, all adapted layers together."""
    return math.sqrt(sum(adapter.squared_norm() for adapter in adapters(model).values()))


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapter, if it has one, added into its weights."""
    from peft import PeftModel

    adapted: Any = model
    return cast(PreTrainedModel, adapted.merge_and_unload()) if isinstance(adapted, PeftModel) else model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise ValueError("the model has no trainable weights")
    return found


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A checkpoint directory: the adapter where the model carries one, else the whole model; with its tokenizer."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
