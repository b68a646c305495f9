"""What a trainer may be set to do and no defense would follow: refused, and nothing passed over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.training_args import OptimizerNames

from titer.composition import Composed
from titer.methods import Defense
from titer.phase import Phase
from titer.registry import name_of

said = logging.getLogger(__name__)

# methods that a defended trainer replaces, and whose they may be
REPLACED = ("compute_loss", "training_step", "get_batch_samples")
KNOWN = ("transformers.trainer.Trainer", "trl.trainer.sft_trainer.SFTTrainer")


def check_class(trainer: type[Trainer]) -> None:
    """Raise where a trainer has a loss or a training step of its own, which would be lost."""
    for name in REPLACED:
        owner = next((each for each in trainer.__mro__ if name in vars(each)), trainer)
        if f"{owner.__module__}.{owner.__qualname__}" not in KNOWN:
            raise ValueError(
                f"{trainer.__name__} has a {name} of its own ({owner.__qualname__}), which a defense's "
                "gradients would replace: defend transformers' Trainer, TRL's SFTTrainer, or one of "
                "yours that keeps theirs"
            )


def check_derived(trainer: type[Trainer], defended: type[Trainer]) -> None:
    """Raise where a class that was derived from a defended one has a loss of its own."""
    for owner in trainer.__mro__[: trainer.__mro__.index(defended)]:
        for name in REPLACED:
            if name in vars(owner):
                raise ValueError(
                    f"{owner.__name__} has a {name} of its own beside a defense, whose gradients are "
                    "of its own losses: leave it out"
                )


def check(trainer: Trainer, defense: Defense) -> None:
    """Raise where a trainer is set to do what a defense's updates would not do."""
    found = next(_settings(trainer, defense), None)
    if found is not None:
        raise ValueError(f"{found[0]} with {name_of(defense)}: {found[1]}")
    dropped = _dropout(trainer.model)
    if dropped:
        said.warning(
            "%s is off while %s trains: its passes must see one function",
            " and ".join(dropped),
            name_of(defense),
        )


def check_phases(phases: list[Phase], defense: Defense) -> None:
    """Raise where a defense asks for updates that a trainer's loop has not."""
    for phase in phases:
        if phase.lr is not None or not phase.clipped or not phase.counted:
            raise ValueError(
                f"{name_of(defense)} has updates ({phase.name}) with a learning rate or clipping of "
                "their own, or beside the counted ones, and in a trainer's loop all are alike: run it "
                "by titer"
            )


def _settings(trainer: Trainer, defense: Defense) -> Iterator[tuple[str, str]]:
    """Yield what does not go together, with the reason and the mend."""
    args: Any = trainer.args
    state = trainer.accelerator.state
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        yield (
            "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP",
            "it divides the weights among processes, and their gradients are not to be written here; "
            "train without it",
        )
    if args.n_gpu > 1 or trainer.is_model_parallel:
        yield (
            "several devices in one process",
            "a defense has one for each; start a process on each (torchrun), or make one visible "
            "(CUDA_VISIBLE_DEVICES=0)",
        )
    if args.parallelism_config is not None:
        yield "parallelism_config", "a defense's passes know none; leave it out"
    if state.mixed_precision not in ("no", "bf16"):
        yield (
            f"{state.mixed_precision}=True",
            "it scales the loss, and a defense's gradients are none of one loss; use bf16=True",
        )
    if args.torch_compile:
        yield "torch_compile=True", "a defense runs the model as it is; leave it out"
    if args.label_smoothing_factor:
        yield (
            f"label_smoothing_factor={args.label_smoothing_factor}",
            "a defense has the plain cross-entropy; set it to 0",
        )
    if args.neftune_noise_alpha is not None:
        yield (
            f"neftune_noise_alpha={args.neftune_noise_alpha}",
            "a defense's passes must see one function, without noise; leave it out",
        )
    if trainer.compute_loss_func is not None:
        yield "compute_loss_func", "a defense has losses of its own; leave it out"
    if getattr(args, "loss_type", "nll") != "nll":
        yield f"loss_type={args.loss_type!r}", "a defense has losses of its own; set it to 'nll'"
    if args.use_liger_kernel:
        yield "use_liger_kernel=True", "it puts another loss into the model; leave it out"
    if getattr(args, "packing", False):
        yield (
            "packing=True",
            "it joins rows, and a defense counts them; set it to False (padding_free=True is taken "
            "apart into its rows)",
        )
    if getattr(args, "activation_offloading", False):
        yield "activation_offloading=True", "a defense's passes keep theirs; leave it out"
    others = set(args.activation_checkpointing_kwargs or {}) - {"use_reentrant"}
    if others:
        yield (
            f"activation_checkpointing_kwargs with {min(others)!r}",
            "activations of every layer are computed again; leave it out",
        )
    if args.auto_find_batch_size:
        yield "auto_find_batch_size=True", "rows drawn before would be lost; give the batch size"
    if args.torch_empty_cache_steps is not None:
        yield "torch_empty_cache_steps", "a defense never empties the cache; leave it out"
    optimizer = OptimizerNames(args.optim).value
    if "layerwise" in optimizer or "lomo" in optimizer:
        yield (
            f"optim={optimizer!r}",
            "it changes weights in the backward pass, of which a defense has several; use adamw_torch",
        )
    if args.load_best_model_at_end and _finishes(defense):
        yield (
            "load_best_model_at_end=True",
            "it changes the weights at the end of the training, and the best ones before would take "
            "their place; set it to False",
        )
    yield from _model(trainer.model, getattr(trainer, "aux_loss_enabled", False))


def _model(model: Any, router: bool) -> Iterator[tuple[str, str]]:
    """Yield what of the model no defense would train, and whether a trainer adds its routers' loss."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder:
        yield type(base).__name__, "a defense trains a causal language model of transformers"
        return
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        yield "a learned prompt of PEFT", "it is no weight of the model; use LoRA"
    config = base.config.get_text_config()
    if router or getattr(config, "output_router_logits", False):
        yield (
            "the loss of the routers (output_router_logits)",
            "a defense has none; set router_aux_loss_coef=0.0, or output_router_logits=False in the "
            "model's config",
        )


def _finishes(defense: Defense) -> bool:
    """Tell whether a defense may change the weights after the last update."""
    if isinstance(defense, Composed) and type(defense).finish is Composed.finish:
        return _finishes(defense.held)
    return type(defense).finish is not Defense.finish


def _dropout(model: Any) -> list[str]:
    """Name the model's dropout: its configuration's, and that of an adapter."""
    config = model.config.get_text_config().to_dict()
    named = {
        name: value
        for name, value in config.items()
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float)
    }
    drops = [
        each.p
        for name, each in model.named_modules()
        if "lora_" in name and isinstance(each, nn.Dropout)
    ]
    named["lora_dropout"] = max(drops, default=0.0)
    return [f"{name}={value}" for name, value in named.items() if value > 0.0]
