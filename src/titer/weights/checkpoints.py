"""Load and save models: any causal language model of transformers, with a PEFT adapter or without.

A model comes from a directory or the hub. Weights are safetensors only. The same code serves CPU
and GPU.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from titer.errors import cause
from titer.paths import OVER
from titer.weights import language
from titer.weights.adapters import literal_peft
from titer.weights.folders import TENSORS, Files, belongs, digest, locate
from titer.weights.settings import Checkpoint
from titer.weights.tensors import open_tensors

transformers_logging.disable_progress_bar()  # a run has its own
POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|embed_position)$")
FOUR_BITS = ("bitsandbytes", "gptq", "awq")  # engines whose configs may leave it unsaid
EMBEDDINGS = (
    "embed_tokens.weight",
    "word_embeddings.weight",
    "wte.weight",
    "embed_in.weight",
    "lm_head.weight",
    "embed_out.weight",
)


def load(
    checkpoint: Checkpoint | str, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, on the device, and its tokenizer.

    An adapter is left unmerged and trainable. Nothing is dropped at random in a forward pass.

    Raises where the checkpoint is incomplete or no causal language model, an adapter does not fit
    its base, or the device cannot compute the dtype.
    """
    checkpoint = Checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    check_dtype(checkpoint.dtype, torch.device(device))
    files = locate(checkpoint)
    words = tokenizer(checkpoint, files)
    model = _load_weights(checkpoint, files.base or files)
    if files.base is not None:
        model = load_adapter(model, checkpoint, files)
    _check_finite(model, checkpoint)
    _check_words(model, words, checkpoint)
    return model.eval().to(device), words


def load_adapter(model: PreTrainedModel, checkpoint: Checkpoint, files: Files) -> PreTrainedModel:
    """Return a model under the adapter of a checkpoint.

    Raises where the two do not belong together, of which PEFT only warns.
    """
    from peft import PeftModel, get_peft_model_state_dict

    assert files.base is not None
    wrong = f"adapter {checkpoint.path!r} does not belong to the base {str(files.base.folder)!r}"
    if not belongs(files, files.base):
        raise ValueError(f"{wrong}: it was trained over other weights; give its own as model.base")
    _add_tokens(model, checkpoint, files)
    try:
        with literal_peft():
            adapted: Any = PeftModel.from_pretrained(model, files.folder, is_trainable=True)
        if adapted.peft_config["default"].is_prompt_learning:
            raise ValueError("its prompt is learned, and no weights are: it cannot be merged")
        taken = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except Exception as error:  # PEFT's own reason; shapes alone speak against the base
        if any(said in str(error) for said in ("size mismatch", "not found in the base model")):
            raise ValueError(f"{wrong} ({cause(error)}); give its own as model.base") from error
        raise ValueError(
            f"adapter {checkpoint.path!r} cannot be loaded ({cause(error)})"
        ) from error
    with safe_open(files.folder / TENSORS, "pt") as file:
        given = set(file.keys())
    # it may bring embeddings of its own
    stray = taken - given | {name for name in given - taken if "lora_" in name}
    if stray:
        raise ValueError(
            f"{wrong}: {len(stray)} of their tensors do not meet; give its own as model.base"
        )
    return cast(PreTrainedModel, adapted)


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """Return the model's layers without weights, to look for names in. An adapter is left out."""
    files = locate(checkpoint)
    config = _configuration(checkpoint, files.base or files)
    with torch.device("meta"), _explain_errors(checkpoint):
        return cast(
            PreTrainedModel,
            _auto(config).from_config(config, trust_remote_code=checkpoint.trust_remote_code),
        )


def tokenizer(checkpoint: Checkpoint, files: Files) -> PreTrainedTokenizerBase:
    """Return an adapter's own tokenizer if it has one, else its base's.

    Raises where there is none, or it has no end-of-sequence token.
    """
    own = files.base is None or has_tokenizer(files)
    folder = files.folder if own else cast(Files, files.base).folder
    with _explain_errors(checkpoint, "has no usable tokenizer in its directory"):
        loaded = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=checkpoint.trust_remote_code
        )
        loaded("a")  # some faults of its files show in use alone
    # transformers makes an empty one where it finds no files
    if len(loaded) <= len(set(loaded.all_special_ids)):
        raise ValueError(
            f"model {checkpoint.path!r}: no tokenizer in its directory; save the model's beside it"
        )
    if loaded.eos_token_id is None:
        raise ValueError(
            f"model {checkpoint.path!r}: its tokenizer has no end-of-sequence token, so an answer "
            "could not end"
        )
    if loaded.pad_token_id is None:
        loaded.pad_token = loaded.eos_token  # pads are masked everywhere; any token serves
    return cast(PreTrainedTokenizerBase, loaded)


def has_tokenizer(files: Files) -> bool:
    """Tell whether a checkpoint has a tokenizer of its own; an adapter may have none."""
    return (files.folder / "tokenizer_config.json").is_file()


def check_dtype(dtype: str, device: torch.device) -> None:
    """Raise where a device cannot compute in a dtype."""
    if device.type == "cpu" and dtype == "float16":
        raise ValueError(
            "dtype='float16': the CPU does not compute it as a GPU does; use bfloat16 or float32"
        )
    if (
        device.type == "cuda"
        and dtype == "bfloat16"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ValueError(
            f"dtype='bfloat16': {torch.cuda.get_device_name(device)} cannot compute it; use float32"
        )


def learned_positions(model: nn.Module) -> int | None:
    """Return how many positions a model has learned, None where it computes them."""
    most = getattr(cast(Any, model).config.get_text_config(), "max_position_embeddings", None)
    tables = [
        module.num_embeddings
        for name, module in language.modules(cast(PreTrainedModel, model)).items()
        if isinstance(module, nn.Embedding) and POSITIONS.search(name)
    ]
    # a table may have rows beside those of positions, as OPT's two
    return min(*tables, most) if tables and most else min(tables, default=None)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights by name. Raises where there is none."""
    found = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if not found:
        raise ValueError("the model has no trainable weights")
    return found


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    base: Files | None = None,
    embeddings: bool = False,
) -> None:
    """Write a checkpoint directory: the whole model and its tokenizer.

    With `base`, the model has an adapter, and that is written instead of the whole model, with a
    note of the base under it, and with its `embeddings` where it brings its own.
    """
    tokenizer.save_pretrained(folder)
    if base is None:
        model.save_pretrained(folder, safe_serialization=True)
        return
    adapted: Any = model
    config = adapted.peft_config["default"]
    config.base_model_name_or_path, config.revision = base.name, base.revision
    # PEFT keeps names in sets, whose order is another one in every process, and files have hashes
    for field, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, field, sorted(value))
    # never "auto", by which PEFT asks the hub for the base's vocabulary
    adapted.save_pretrained(folder, save_embedding_layers=embeddings)
    (folder / OVER).write_text(json.dumps({"base": digest(base, code=False)}))


def brings_embeddings(whole: Collection[str]) -> bool:
    """Tell whether an adapter brings embeddings, or a head, by the tensors that it holds whole."""
    return any(name.endswith(EMBEDDINGS) for name in whole)


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 over the names and bytes of all weights."""
    return hash_tensors(model.state_dict())


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names and bytes, in the order of the names."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _configuration(checkpoint: Checkpoint, files: Files) -> PreTrainedConfig:
    """Read a model's configuration.

    Raises where the weights are quantized, or it promises more layers than there are tensors: to
    make them could take for ever.
    """
    with _explain_errors(checkpoint):
        config = AutoConfig.from_pretrained(
            files.folder, trust_remote_code=checkpoint.trust_remote_code
        )
    parts = [config, *(of for of in vars(config).values() if isinstance(of, PreTrainedConfig))]
    for part in parts:
        if rounding := dict(getattr(part, "quantization_config", None) or {}):
            raise ValueError(
                f"model {checkpoint.path!r} has {_describe_rounding(rounding)}: no adapter can be merged "
                "into them and no edit read them as they are; give the model that it was made from"
            )
    layers = max((getattr(part, "num_hidden_layers", 0) or 0 for part in parts), default=0)
    tensors = len(open_tensors(files))
    if layers > tensors:
        raise ValueError(
            f"model {checkpoint.path!r}: its config.json has num_hidden_layers={layers}, and its "
            f"files hold {tensors} tensors in all: they do not belong together"
        )
    return cast(PreTrainedConfig, config)


def _describe_rounding(rounding: Mapping[str, Any]) -> str:
    """Describe weights by a `quantization_config`: their bits, where it says so, and the engine."""
    engine = str(rounding.get("quant_method", "bitsandbytes"))
    default = 8 if rounding.get("load_in_8bit") else 4 if engine in FOUR_BITS else None
    bits = rounding.get("bits", default)
    return f"{f'weights of {bits} bits' if bits else 'quantized weights'} ({engine})"


def _auto(config: PreTrainedConfig) -> Any:
    """Return what makes a model of this configuration: of one that sees, the whole of it."""
    known = type(config) in AutoModelForCausalLM._model_mapping
    sees = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if sees and not known else AutoModelForCausalLM


def _load_weights(checkpoint: Checkpoint, files: Files) -> PreTrainedModel:
    config = _configuration(checkpoint, files)
    with _explain_errors(checkpoint):
        loaded: Any = _auto(config).from_pretrained(
            files.folder,
            dtype=getattr(torch, checkpoint.dtype),
            use_safetensors=True,
            trust_remote_code=checkpoint.trust_remote_code,
            output_loading_info=True,
        )
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"model {checkpoint.path!r}: its files lack {len(missing)} weights, such as "
            f"{missing[0]!r}: they would be random"
        )
    for parameter in language.towers(model).values():
        parameter.requires_grad_(False)
    return cast(PreTrainedModel, model)


@contextmanager
def _explain_errors(
    checkpoint: Checkpoint, what: str = "cannot be loaded as a causal language model"
) -> Iterator[None]:
    """Turn a failure of transformers to load a model, inside, into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # whatever a library may raise, the files are the cause
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"model {checkpoint.path!r} brings code of its own: set "
                "model.trust_remote_code=true if you trust it"
            ) from error
        raise ValueError(f"model {checkpoint.path!r} {what} ({cause(error)})") from error


def _check_finite(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raise where a weight is not a number: every answer would be empty, and count as harmless."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(
                f"model {checkpoint.path!r}: {name!r} holds values that are no numbers (NaN or "
                "infinite): the checkpoint is damaged, or its training diverged"
            )


def _check_words(
    model: PreTrainedModel, words: PreTrainedTokenizerBase, checkpoint: Checkpoint
) -> None:
    """Raise where the tokenizer has tokens that the model has no embedding of."""
    rows = cast(Any, model).get_input_embeddings().weight.shape[0]
    last = max(words.get_vocab().values())
    if last >= rows:
        raise ValueError(
            f"model {checkpoint.path!r}: its tokenizer has a token {last}, and the model "
            f"embeddings of {rows} tokens: they do not belong together"
        )


def _add_tokens(model: PreTrainedModel, checkpoint: Checkpoint, files: Files) -> None:
    """Make room for the tokens that an adapter adds, whose embeddings it brings itself."""
    with _explain_errors(checkpoint), safe_open(files.folder / TENSORS, "pt") as file:
        rows = {
            name: int(file.get_slice(name).get_shape()[0])
            for name in file.keys()  # noqa: SIM118
            if name.endswith(EMBEDDINGS)
        }
    now = cast(Any, model).get_input_embeddings().weight.shape[0]
    if rows and max(rows.values()) > now:
        head = cast(Any, model).get_output_embeddings()
        tied = head is None or head.weight is cast(Any, model).get_input_embeddings().weight
        if len(rows) < 2 - tied:
            raise ValueError(
                f"adapter {checkpoint.path!r} has {max(rows.values())} tokens where its base has "
                f"{now}, and brings no weights for the new ones in both embedding and head"
            )
        model.resize_token_embeddings(max(rows.values()), mean_resizing=False)
