"""How the models of a plan are loaded and asked, in training and in scoring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from titer.data.template import CLOCK, Template
from titer.data.texts import Style
from titer.training.ranks import Ranks
from titer.training.train import accelerator_for
from titer.weights import checkpoints, folders
from titer.weights.settings import Checkpoint

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "scipy")
version = cache(metadata.version)  # a look on disk takes longer than all else of a stage's key


@dataclass(frozen=True)
class Asking:
    """The template and what else a model's figures depend on beside its weights."""

    model: Checkpoint  # whose dtype and trust all models of a plan share
    template: Style
    system: str | None
    max_length: int

    def at(self, folder: Path) -> Checkpoint:
        """Name the checkpoint in a folder, to be read as the plan's model is."""
        return replace(self.model, path=str(folder), revision=None, base=None)

    def templated(self, files: folders.Files, skeleton: PreTrainedModel) -> Template:
        """Make the template of a checkpoint's tokenizer, for a model of these layers."""
        return self._template(checkpoints.tokenizer(self.model, files), skeleton)

    def open(self, checkpoint: Checkpoint) -> tuple[PreTrainedModel, Template]:
        """Load a model on the best device there is, and say how it is asked.

        One that will be divided among ranks is loaded on the CPU.
        """
        accelerator = accelerator_for()
        device = "cpu" if Ranks.of(accelerator).sharded else accelerator.device
        model, tokenizer = checkpoints.load(checkpoint, device)
        return model, self._template(tokenizer, model)

    def _template(self, words: PreTrainedTokenizerBase, model: PreTrainedModel) -> Template:
        positions = checkpoints.learned_positions(model)
        return Template(words, self.max_length, self.template, self.system, positions)

    @property
    def about(self) -> dict[str, Any]:
        """What of it determines a result, and what the machine adds."""
        accelerator = accelerator_for()
        ranks = Ranks.of(accelerator)
        return {
            "template": [self.template, self.system, self.max_length, CLOCK.isoformat()],
            "threads": torch.get_num_threads(),
            "device": accelerator.device.type,
            "ranks": [ranks.count, ranks.sharded],
            "versions": {name: version(name) for name in LIBRARIES},
        }
