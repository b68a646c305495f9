"""A stage that repairs a fine-tuned model by training it further, on the defender's own rows."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import nn
from transformers import PreTrainedModel

from titer import paths
from titer.data.template import Template
from titer.defenses.sft import SFT
from titer.methods import Changes, Retraining
from titer.registry import describe
from titer.runs.stages.edit import EditStage
from titer.runs.stages.fit import fit
from titer.runs.stages.stage import Work
from titer.runs.stages.train import widen
from titer.training.layers import recompute_layers
from titer.training.settings import Training
from titer.training.sharding import copy_shards, take_back
from titer.training.train import accelerator_for, train
from titer.weights import adapters, checkpoints, folders
from titer.weights.finetuned import FineTuned
from titer.weights.rewrite import compare


@dataclass(frozen=True, eq=False)
class RetrainStage(EditStage):
    """Train the fine-tuned model's adapter, or all its weights, plainly."""

    joint: ClassVar[bool] = True
    finetune: Training  # how the user's fine-tuning went
    seed: int
    recompute: bool = False  # activations, in the backward pass: less memory, the same gradients

    @property
    def about(self) -> dict[str, Any]:
        return super().about | {"training": describe(self.training), "seed": self.seed}

    @property
    def training(self) -> Training:
        assert isinstance(self.method, Retraining)
        return self.method.training(self.finetune)

    def rewrite(
        self, work: Work, folder: Path, scratch: Path
    ) -> tuple[Changes, str, dict[str, Any]]:
        assert self.start is not None
        checkpoint = work.checkpoint(self.start)
        aligned = self.others.get("aligned")
        started = (
            self.whole_files(work.checkpoint(aligned), scratch / "aligned") if aligned else None
        )
        empty = checkpoints.skeleton(checkpoint)
        tuned = FineTuned.of(folders.locate(checkpoint), started, empty)
        model, template, fitted = self._train(work, folder)
        base = folders.locate(checkpoint).base
        checkpoints.save(
            model, template.tokenizer, folder, base, checkpoints.brings_embeddings(tuned.whole)
        )
        after = FineTuned.of(folders.locate(self.asking.at(folder)), tuned.started, empty)
        (folder / paths.FITTED).unlink(missing_ok=True)
        return compare(tuned, after), "train it longer", fitted

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        if work.leads:
            return super().compute(work, folder)
        self._train(work, folder)
        return {}

    def _train(self, work: Work, folder: Path) -> tuple[PreTrainedModel, Template, dict[str, Any]]:
        """Return the model, trained further, how it is asked, and facts of its micro-batches."""
        count = accelerator_for().num_processes
        attempt = partial(self._attempt, work)
        (model, template), fitted = fit(attempt, SFT(), self.training, count, folder)
        return model, template, fitted

    def _attempt(self, work: Work, training: Training) -> tuple[PreTrainedModel, Template]:
        assert self.start is not None
        model, template = self.asking.open(work.checkpoint(self.start))
        dtype = None if adapters.has_adapter(model) else widen(model)
        rows = {"rows": template.encode_all(self.rows, "rows")}
        accelerator, watch = accelerator_for(), work.progress.advance
        settings = training.spread(accelerator.num_processes)  # k may be less than there are
        count = training.batch * training.accumulate
        trained = copy_shards(model, accelerator)
        with recompute_layers(trained) if self.recompute else nullcontext():
            train(
                trained, SFT(), rows, settings, self.seed, rows=count, autocast=dtype, watch=watch
            )
        take_back(model, trained)
        if dtype is not None:
            cast(nn.Module, model).to(dtype)
        return model, template
