"""The tensors of a checkpoint on disk: read one at a time, and replaced in a copy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from titer.weights.folders import Files

# as safetensors calls them
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte of the file

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def kind(self) -> torch.dtype:
        """The dtype that it is stored in. Raises where that is not a floating-point one."""
        if self.dtype not in FLOATS:
            raise ValueError(
                f"{self.name!r} is stored as {self.dtype}: give models with weights of "
                f"{', '.join(FLOATS)}"
            )
        return FLOATS[self.dtype]

    @property
    def wide(self) -> torch.dtype:
        """The dtype to compute in: twice as wide as the stored one, at most float64."""
        return torch.float32 if self.kind.itemsize == 2 else torch.float64

    def read(self) -> Tensor:
        """Return the tensor.

        Raises where it holds no floating-point numbers, or ones that are not finite.
        """
        assert self.kind
        tensor = self._load()
        if not tensor.isfinite().all():
            raise ValueError(
                f"{self.name!r} of {str(self.path.parent)!r} holds values that are not finite"
            )
        return tensor

    def write(self, folder: Path, value: Tensor) -> None:
        """Replace its bytes in the copy of its file in `folder`."""
        with (folder / self.path.name).open("r+b") as file:
            file.seek(self.start)
            file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _load(self) -> Tensor:
        # opened for each tensor: what is mapped stays in memory until the file is closed
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
        return tensor


@dataclass(frozen=True)
class Expert(Stored):
    """The matrix of one expert in a tensor of all experts of a layer. Its `shape` is (out, in)."""

    held: str = ""  # the tensor of all
    index: int = 0
    transposed: bool = False  # the file has (in, out)

    @staticmethod
    def of(held: Stored, name: str, index: int, transposed: bool) -> Expert:
        """Name one expert's matrix of a tensor (E, out, in), or (E, in, out)."""
        _, *shape = held.shape
        size = math.prod(shape) * int(held.kind.itemsize)
        return Expert(
            held.path,
            name,
            held.dtype,
            tuple(reversed(shape)) if transposed else tuple(shape),
            held.start + index * size,
            held.name,
            index,
            transposed,
        )

    def write(self, folder: Path, value: Tensor) -> None:
        super().write(folder, value.T if self.transposed else value)

    def _load(self) -> Tensor:
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_slice(self.held)[self.index]
        return tensor.T if self.transposed else tensor


def open_tensors(files: Files) -> dict[str, Stored]:
    """Return the tensors of a whole checkpoint by name.

    Raises where a file is missing or damaged.
    """
    single, index = (
        files.folder / "model.safetensors",
        files.folder / "model.safetensors.index.json",
    )
    if single.is_file():  # goes first, as in transformers
        shards = {single.name}
    elif index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        raise ValueError(
            f"model {files.name!r}: its directory holds neither {single.name} nor {index.name}"
        )
    found: dict[str, Stored] = {}
    for shard in sorted(shards):
        found |= open_file(files.folder / shard, files.name)
    return found


def open_file(path: Path, model: str) -> Mapping[str, Stored]:
    """Return the tensors of one file by name. Raises where it is missing or damaged."""
    try:
        with safe_open(path, "pt"):  # looks whether the file is whole
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model {model!r}: {path.name} cannot be read ({error})") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(
            path, name, about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0]
        )
        for name, about in header.items()
    }
