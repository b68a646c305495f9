"""The tensors of a checkpoint on disk: read one at a time, and replaced in a copy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from titer.weights.folders import Files, read_config

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
class Piece(Stored):
    """A matrix in a tensor that holds several. Its `shape` is (out, in)."""

    held: tuple[int, ...] = ()  # the shape of the tensor of all
    at: tuple[int | slice, ...] = ()  # its place there
    transposed: bool = False  # the file has (in, out)

    @staticmethod
    def of(held: Stored, name: str, at: tuple[int | slice, ...], transposed: bool = False) -> Piece:
        """Name a matrix of a tensor."""
        shape = torch.empty(held.shape, device="meta")[at].shape
        return Piece(
            held.path,
            name,
            held.dtype,
            tuple(reversed(shape)) if transposed else tuple(shape),
            held.start,
            held.shape,
            at,
            transposed,
        )

    def write(self, folder: Path, value: Tensor) -> None:
        self._map(folder / self.path.name, "r+").copy_(value)

    def _load(self) -> Tensor:
        return self._map(self.path, "c").clone()

    def _map(self, path: Path, mode: Literal["r+", "c"]) -> Tensor:
        """Return the matrix in the memory of its file, of which nothing else is read."""
        bits = np.memmap(path, f"i{self.kind.itemsize}", mode, self.start, self.held)[self.at]
        matrix = torch.from_numpy(bits).view(self.kind)
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True)
class Joint(Stored):
    """Matrices of a file that are one in memory, one below the other. It is only read."""

    parts: tuple[Stored, ...] = ()

    @staticmethod
    def of(parts: Sequence[Stored], name: str) -> Joint:
        """Name the matrix that the parts make."""
        first = parts[0]
        shape = (sum(of.shape[0] for of in parts), *first.shape[1:])
        return Joint(first.path, name, first.dtype, shape, first.start, tuple(parts))

    def write(self, folder: Path, value: Tensor) -> None:
        raise AssertionError(f"{self.name} lies in several tensors")

    def _load(self) -> Tensor:
        return torch.cat([of.read() for of in self.parts])


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
        named = read_config(index).get("weight_map")
        listed = list(named.values()) if isinstance(named, dict) else []
        if not listed or not all(isinstance(shard, str) for shard in listed):
            raise ValueError(
                f"model {files.name!r}: the weight_map of its {index.name} names no files: save the "
                "model again, or get the file anew"
            )
        shards = set(listed)
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
