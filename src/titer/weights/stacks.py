"""A stack: several adapters on one base, added into it one after another, as one checkpoint.

It is made once, in float32, into the cache, under the hash of its parts. A note beside it names them.
"""

from __future__ import annotations

import json
from pathlib import Path

from titer import paths
from titer.config import hash_of
from titer.version import __version__
from titer.weights import adapters, checkpoints
from titer.weights.cache import make_once
from titer.weights.finetuned import find_unadded
from titer.weights.folders import TENSORS, Files, digest, is_adapter, locate
from titer.weights.settings import Checkpoint
from titer.weights.tensors import open_file

PLUS = " + "  # between the names of a stack's parts


def is_stack(name: str) -> bool:
    """Tell whether a model's name is BASE + ADAPTER, or of more adapters."""
    return PLUS in name and not paths.expand(name).exists()


def merge_stack(name: str) -> Path:
    """Return the folder of a stack's checkpoint, made first where the cache has none.

    A first part that is an adapter itself stands for its base and itself. Raises where another part
    is no adapter, was trained over other weights than the base, or replaces weights, or one behind the
    first has an update that depends on the weights under it.
    """
    first, *others = (Checkpoint(part.strip()) for part in name.split(PLUS))
    files = locate(first)
    base, given = files.base or files, [*([first] if files.base else []), *others]
    for each in others:
        if not is_adapter(each):
            raise ValueError(
                f"the stack {name!r}: {each.path!r} is no adapter; a stack is BASE + ADAPTER + ADAPTER"
            )
    over = [locate(each, base=base) for each in given]
    for layer in over:
        _check_added(name, layer)
    for layer in over[1:]:
        if other := find_unadded(layer):
            raise ValueError(
                f"the stack {name!r}: the adapter {layer.name!r} has {other}, so that over others it is "
                "another update than over its base: merge it into its base first"
            )
    parts = [base.name, *(layer.name for layer in over)]
    key = hash_of([parts, *map(digest, over), __version__])[:32]
    return make_once("stacks", key, lambda folder: _merge(base, given, over, parts, folder))


def _merge(
    base: Files, layers: list[Checkpoint], over: list[Files], parts: list[str], folder: Path
) -> None:
    model, words = checkpoints.load(Checkpoint(base.name, base.revision))
    for layer, files in zip(layers, over, strict=True):
        adapted = checkpoints.load_adapter(model, layer, files)
        model = adapters.merge_adapter(adapted)
        if checkpoints.has_tokenizer(files):
            words = checkpoints.tokenizer(layer, files)
    checkpoints.save(model, words, folder)
    (folder / paths.STACKED).write_text(json.dumps({"parts": parts}, indent=2), encoding="utf-8")


def _check_added(name: str, files: Files) -> None:
    """Raise where an adapter brings weights that would take the place of those of the others."""
    tensors = open_file(files.folder / TENSORS, files.name)
    whole = sorted(key for key in tensors if "lora_" not in key)
    if whole:
        raise ValueError(
            f"the stack {name!r}: the adapter {files.name!r} replaces weights ({whole[0]}), which "
            "cannot be added to those of others: merge it into its base first"
        )
