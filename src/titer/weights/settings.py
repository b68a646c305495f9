"""The part of a recipe on weights: the model to start from, and the adapter to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from titer.config import Config, Names

LAB = "lab"  # the name of the embedded base model
GGUF = ".gguf"  # behind the name of a file in llama.cpp's format


@dataclass(frozen=True)
class Checkpoint(Config):
    """A model to start from. A text in its place is its `path`."""

    # `lab`, a checkpoint directory or a repository of the hub, which may hold a PEFT adapter, a GGUF
    # file or a directory with one, or `pip:NAME`, an installed package with one
    path: str = LAB
    # a commit of the hub; None: the one that was downloaded first, else the newest
    revision: str | None = None
    base: str | None = None  # the model under an adapter; None: the one that the adapter names
    # of the weights; what trains is kept in float32
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False  # run code that comes with the checkpoint


Model = Annotated[
    Checkpoint, BeforeValidator(lambda given: {"path": given} if isinstance(given, str) else given)
]


ALL_LINEAR = "all-linear"  # every linear layer but the head


@dataclass(frozen=True)
class Lora(Config):
    """A low-rank adapter: every target W becomes W + (alpha / r) B A."""

    r: int = 8
    alpha: float = 16.0
    # names of linear layers, or of the last part of their names, or `all-linear`. Experts of a layer
    # that routes tokens are no linear layers, nor is its router where that is a bare parameter
    targets: Names = ("q_proj", "v_proj")
    experts: bool = False  # every matrix of every expert gets a B A of its own, of rank r

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r={self.r}: an adapter needs a rank of at least 1")
        if not self.targets:
            raise ValueError("targets is empty: name the linear layers that get an adapter")
        if ALL_LINEAR in self.targets and len(self.targets) > 1:
            raise ValueError(
                f"targets={list(self.targets)}: {ALL_LINEAR!r} has all the others in it; give it "
                "alone"
            )
