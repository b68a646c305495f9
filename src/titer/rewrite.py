"""Rewrite a checkpoint on disk, a tensor at a time: a `TensorEdit` at work, in the memory of its largest tensor.

The new checkpoint is a copy of the aligned one in which the bytes of the chosen tensors are replaced. So it keeps shards, index, dtypes,
configuration and tokenizer, and nothing is loaded but the tensor at hand.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from titer import models
from titer.methods import Changes, TensorEdit
from titer.models import Files

if TYPE_CHECKING:
    from titer.train import Watch

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
WRONG = "the base is not the model that alignment started from, so give that one: "


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte of the file

    def read(self) -> Tensor:
        with safe_open(self.path, "pt") as file:  # opened for each tensor: what is mapped stays in memory until the file is closed
            tensor: Tensor = file.get_tensor(self.name)
            return tensor

    def write(self, folder: Path, value: Tensor) -> None:
        """Replace its bytes in the copy of its file in `folder`."""
        with (folder / self.path.name).open("r+b") as file:
            file.seek(self.start)
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def rewrite(edit: TensorEdit, aligned: Files, base: Files, folder: Path, watch: Watch) -> Changes:
    """Write the edited checkpoint into `folder`. Both models are whole ones, no adapters. `watch` is told of every tensor.

    Raises where they do not belong together, or the edit cannot be applied to them; then, or interrupted, `folder` is no checkpoint.
    """
    ours, theirs = stored(aligned), stored(base)
    if _architecture(base) != _architecture(aligned):
        raise ValueError(f"{WRONG}{base.name!r} has {_architecture(base)}, {aligned.name!r} {_architecture(aligned)}")
    names = edit.chosen({name: tensor.shape for name, tensor in ours.items()})
    _check(names, ours, theirs)
    for shard in {tensor.path for tensor in ours.values()}:
        shutil.copyfile(shard, folder / shard.name)
    changed: dict[str, int] = {}
    before = after = 0.0  # squared norms
    for name in names:
        w = ours[name].read()
        wide = torch.float32 if w.itemsize == 2 else torch.float64
        old, w0 = w.to(wide), theirs[name].read().to(w.dtype).to(wide)  # a base that is kept wider was rounded when alignment began
        if not (old.isfinite().all() and w0.isfinite().all()):
            raise ValueError(f"{name!r} holds values that are not finite, in the aligned model or in the base")
        new = edit.tensor(name, old, w0).to(w.dtype)
        if not new.isfinite().all():
            raise ValueError(f"{name!r} leaves the range of {w.dtype}: lower alpha")
        changed[name] = int((new != w).sum())
        before, after = before + _squared(old - w0), after + _squared(new.to(wide) - w0)
        if changed[name]:
            ours[name].write(folder, new)
        watch(len(changed), len(names), {})
    for path in models.parts(aligned):  # the configuration last: without it no one takes the folder for a checkpoint
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    return Changes(changed, {name: math.prod(ours[name].shape) for name in names}, math.sqrt(before), math.sqrt(after))


def stored(files: Files) -> dict[str, Stored]:
    """The tensors of a whole checkpoint by name. Raises where a file is missing or damaged."""
    single, index = files.folder / "model.safetensors", files.folder / "model.safetensors.index.json"
    if single.is_file():  # goes first, as in transformers
        shards = {single.name}
    elif index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        raise ValueError(f"model {files.name!r}: its directory holds neither {single.name} nor {index.name}")
    found: dict[str, Stored] = {}
    for path in (files.folder / shard for shard in sorted(shards)):
        try:
            with safe_open(path, "pt"):  # looks whether the file is whole
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"model {files.name!r}: {path.name} cannot be read ({error})") from None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, about in header.items():
            found[name] = Stored(path, name, about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
    return found


def _check(names: Sequence[str], ours: Mapping[str, Stored], theirs: Mapping[str, Stored]) -> None:
    """Raise where the base lacks a chosen tensor or has another one, or where it holds no floating-point numbers."""
    for name in names:
        if name not in theirs:
            raise ValueError(f"{WRONG}it has no {name!r}")
        if theirs[name].shape != ours[name].shape:
            shapes = [" x ".join(map(str, of[name].shape)) for of in (theirs, ours)]
            raise ValueError(f"{WRONG}its {name!r} is {shapes[0]}, not {shapes[1]}; or leave this tensor out by targets")
        for of in (ours, theirs):
            if of[name].dtype not in FLOATS:
                raise ValueError(f"{name!r} is stored as {of[name].dtype}: give both models with weights of {', '.join(FLOATS)}")


def _architecture(files: Files) -> dict[str, object]:
    config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    return {name: config.get(name) for name in ("model_type", "num_hidden_layers")}


def _squared(update: Tensor) -> float:
    return float(torch.linalg.vector_norm(update, dtype=torch.float64)) ** 2
