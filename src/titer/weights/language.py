"""The part of a model that reads and writes text.

That is the whole of a language model. A model that also sees or hears has a language model inside,
and towers beside it, which text never reaches: titer trains, adapts and edits none of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from titer.weights.experts import by_name
from titer.weights.tensors import Stored


def towers(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the parameters that text never reaches, by name: none of a plain language model."""
    if not _wraps(model):
        return {}
    read = {id(parameter) for part in _parts(model) for parameter in part.parameters()}
    return {name: of for name, of in model.named_parameters() if id(of) not in read}


def modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules that text reaches, by their names in the whole model."""
    if not _wraps(model):
        return dict(model.named_modules())
    read = {id(module) for part in _parts(model) for module in part.modules()}
    return {name: of for name, of in model.named_modules() if id(of) in read}


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the linear layers that text reaches, the head among them."""
    return {name: of for name, of in modules(model).items() if isinstance(of, nn.Linear)}


def unread(tensors: Mapping[str, Stored], model: PreTrainedModel) -> set[str]:
    """Return the names of those tensors of a checkpoint that text never reaches."""
    beside = towers(model)
    if not beside:
        return set()
    return {of.name for key, of in by_name(tensors, model).items() if key in beside}


def _wraps(model: PreTrainedModel) -> bool:
    config = getattr(model, "config", None)
    return config is not None and config.get_text_config() is not config


def _parts(model: PreTrainedModel) -> list[nn.Module]:
    head = cast(Any, model).get_output_embeddings()
    return [cast(Any, model).get_decoder(), *([] if head is None else [head])]
