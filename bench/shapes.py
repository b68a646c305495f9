"""The fixed shapes: models of random weights, and rows of random tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from titer.config import Config, validate
from titer.data.batches import Encoded
from titer.methods import HeldOut, Kind, Pairs
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora

FILE = Path(__file__).with_name("shapes.yaml")
ROWS = 96  # of every stream
EXPERTS = 4  # of every layer of a sparse model, two for a token


@dataclass(frozen=True)
class Shape(Config):
    vocabulary: int
    width: int  # d
    hidden: int  # width of the MLP
    layers: int  # L
    heads: int
    length: int  # T, tokens of every row
    answer: float  # share of them that carries loss
    batch: int  # rows of an update
    pairs: int  # how often a method and its baseline take turns

    def model(
        self,
        lora: Lora | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sparse: bool = False,
    ) -> PreTrainedModel:
        """A Llama, or a Mixtral where it is to be sparse, the same one at every call on a device; its
        adapter alone is trainable where there is one, and in float32.
        """
        torch.manual_seed(0)
        shape: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        }
        kind: Any = MixtralForCausalLM if sparse else LlamaForCausalLM
        config = (
            MixtralConfig(**shape, num_local_experts=EXPERTS, num_experts_per_tok=2)
            if sparse
            else LlamaConfig(**shape)
        )
        with torch.device(device):  # seven billion weights would not be born on a CPU
            model: PreTrainedModel = kind._from_config(config, dtype=dtype).eval()
        if sparse:
            model.set_experts_implementation("eager")  # torch counts no operations of the others
        return model if lora is None else add_lora(model, lora)

    def rows(self, stream: str, kind: Kind) -> list[Encoded]:
        """Random tokens, other ones for every stream, all rows of one length; each with another
        answer where they are pairs.
        """
        rng, answer = random.Random(stream), round(self.length * (1 - self.answer))

        def tokens(count: int) -> tuple[int, ...]:
            return tuple(rng.randrange(2, self.vocabulary) for _ in range(count))

        found = [Encoded(tokens(self.length), answer) for _ in range(ROWS)]
        if kind not in (Pairs, HeldOut):
            return found
        return [
            replace(row, other=Encoded(row.ids[:answer] + tokens(self.length - answer), answer))
            for row in found
        ]


def load(quick: bool = False) -> tuple[dict[str, Shape], Lora]:
    """The shapes by name, and the adapter of their LoRA runs."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    shapes = {
        name: validate(Shape, fields)
        for name, fields in content["quick" if quick else "shapes"].items()
    }
    return shapes, validate(Lora, content["lora"])


def variants() -> dict[str, dict[str, Any]]:
    """Return what is measured of a method instead of its defaults, by name."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return dict(content["variants"])
