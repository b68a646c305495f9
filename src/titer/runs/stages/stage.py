"""A stage of a plan: what determines it, what it starts from, how it is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from transformers import PreTrainedModel

from titer.config import hash_of
from titer.data.template import Template
from titer.methods import Method
from titer.progress import Progress
from titer.registry import describe, name_of
from titer.runs.keys import code_key
from titer.runs.stages.asking import Asking
from titer.weights import adapters, folders
from titer.weights.settings import Checkpoint


class Work(Protocol):
    """What a stage may ask for while it is computed: what the stages before it left."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes what a joint stage comes to."""

    @property
    def progress(self) -> Progress:
        """Where to tell how far it is."""

    def checkpoint(self, stage: ModelStage) -> Checkpoint:
        """Return the model of a stage."""

    def folder(self, stage: Stage) -> Path:
        """Return the folder that a stage left its files in."""

    def place(self, stage: Stage) -> Path:
        """Name the folder where a stage's files will lie once it is finished."""


@dataclass(frozen=True, eq=False)
class Stage(ABC):
    """Something to be computed once, by the hash of all that determines it."""

    joint: ClassVar[bool] = False  # whether all ranks compute it together, or the first one alone

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """All that determines what it comes to: of other stages their keys, of rows and files their
        hashes.
        """

    @property
    @abstractmethod
    def step(self) -> str:
        """What a person reads while it is computed."""

    @cached_property
    def key(self) -> str:
        return hash_of(self.about)[:32]

    @property
    def inputs(self) -> list[Stage]:
        """The stages that must be there before it is computed."""
        return []

    @abstractmethod
    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        """Compute it into a folder, where an interrupted attempt may have left something; return
        its facts.
        """


@dataclass(frozen=True, eq=False)
class ModelStage(Stage):
    """A stage that leaves a model."""

    kind: str  # base, align, release, finetune or edit; safe and unsafe are references of edits
    start: ModelStage | None
    method: Method | None
    asking: Asking

    @property
    def label(self) -> str:
        return f"{self.kind} {name_of(self.method)}" if self.method else self.kind

    @property
    def step(self) -> str:
        before = self.start.step if self.start and not isinstance(self.start, Given) else ""
        return f"{before}, {self.label}" if before else self.label

    @property
    def how(self) -> dict[str, Any]:
        """The method as a recipe states it; empty where there is none."""
        return describe(self.method) if self.method else {}

    @property
    def references(self) -> Mapping[str, ModelStage]:
        """Other models that it asks for, by name."""
        return {}

    @property
    def inputs(self) -> list[Stage]:
        return [*([self.start] if self.start else []), *self.references.values()]

    @property
    def lineage(self) -> dict[str, Any]:
        """What it is, what it starts from, and the code that computes it."""
        assert self.start is not None, "a model that is given has no lineage"
        others = {name: stage.key for name, stage in self.references.items()}
        return {
            "kind": self.kind,
            "from": self.start.key,
            "method": self.how,
            "code": code_key(type(self), self.method),
            **({"references": others} if others else {}),
            **self.asking.about,
        }


@dataclass(frozen=True, eq=False)
class AskingStage(Stage):
    """A stage that asks the model of another one, its adapter merged.

    In a coarse dtype the adapter stays beside the weights: merged, its update would be rounded to
    them, and a small one lost.
    """

    of: ModelStage

    @property
    def step(self) -> str:
        return scoring_step(self.of)

    @property
    def inputs(self) -> list[Stage]:
        return [self.of]

    @property
    def lineage(self) -> dict[str, Any]:
        """Which model it asks, and the code that does."""
        return {"of": self.of.key, "code": code_key(type(self)), **self.of.asking.about}

    def open(self, work: Work) -> tuple[PreTrainedModel, Template]:
        """Load the model, and say how it is asked."""
        model, template = self.of.asking.open(work.checkpoint(self.of))
        if torch.finfo(model.dtype).bits >= 32:
            model = adapters.merge_adapter(model)
        return model.eval(), template


def scoring_step(of: ModelStage) -> str:
    """Name the one step that all scoring of a model is to a person."""
    return f"scoring: {of.step}"


@dataclass(frozen=True, eq=False)
class Given(ModelStage):
    """A model that is there already: the base, an aligned model, or a fine-tuned one."""

    checkpoint: Checkpoint

    @cached_property
    def files(self) -> folders.Files:
        return folders.locate(self.checkpoint)

    @property
    def how(self) -> dict[str, Any]:
        return {} if self.kind == "base" else {"method": "given"}

    @property
    def label(self) -> str:
        return self.kind if self.kind == "base" else f"{self.kind} given"

    @property
    def about(self) -> dict[str, Any]:
        return {
            "kind": "given",
            "files": folders.digest(self.files),
            "dtype": self.checkpoint.dtype,
        }

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        raise AssertionError("a model that is given is not computed")
