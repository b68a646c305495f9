"""A stage that trains: alignment, the user's fine-tuning, and the models that an edit compares
with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from titer import paths
from titer.data.rows import Row, digest
from titer.data.template import Template
from titer.methods import Defense
from titer.registry import describe
from titer.runs.stages.fit import fit
from titer.runs.stages.stage import ModelStage, Work
from titer.scoring import curve
from titer.training import effect, probes
from titer.training.layers import recompute_layers
from titer.training.ranks import Ranks
from titer.training.settings import Training, Watch
from titer.training.sharding import copy_shards, take_back
from titer.training.train import accelerator_for, list_phases, passes_in, train
from titer.weights import adapters, checkpoints, folders, language
from titer.weights.settings import Checkpoint

if TYPE_CHECKING:  # its code is in its own `about`: alignment does not rest on it
    from titer.runs.stages.choice import Choice
    from titer.runs.stages.curve import Curve

UPDATES = 100  # between two checkpoints of a stage


@dataclass(frozen=True)
class Looks:
    """Rows to look at a model by while it is attacked: why a defense holds."""

    every: int  # updates
    harmful: Sequence[Row]  # held-out harm prompts with their answers
    aligned: Sequence[Row]
    task: Sequence[Row]  # held-out rows of the user's task; there may be none

    @property
    def about(self) -> list[Any]:
        return [self.every, digest(self.harmful), digest(self.aligned), digest(self.task)]


@dataclass(frozen=True, eq=False)
class TrainStage(ModelStage):
    """Train a model further with a defense, on a fresh adapter over the merged model or on all its
    weights.
    """

    joint: ClassVar[bool] = True
    training: Training
    streams: Mapping[str, Sequence[Row]]
    seed: int
    whole: bool  # save the merged model, not its adapter
    recompute: bool = False  # activations, in the backward pass: less memory, the same gradients
    looks: Looks | None = None
    curve: Curve | None = None
    # of the user's rows, for the record, and why nobody looks along the attack
    counts: Mapping[str, Any] = field(default_factory=dict)
    choice: Choice | None = None  # of the rows to train on, among those of the stream

    @property
    def about(self) -> dict[str, Any]:
        return self.lineage | {
            "training": describe(self.training),
            "rows": {name: digest(rows) for name, rows in self.streams.items()},
            "seed": self.seed,
            "whole": self.whole,
            "probes": self.looks.about if self.looks else None,
            "curve": self.curve.about if self.curve else None,
            **({"choice": self.choice.about} if self.choice else {}),
        }

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        assert isinstance(self.method, Defense)
        resume = folder / paths.RESUME

        def attempt(
            training: Training,
        ) -> tuple[PreTrainedModel, Template, folders.Files, dict[str, Any]]:
            model, template, under = self._open(work, folder)
            trained = replace(self, training=training)
            model, facts = trained.train(model, template, resume, work.progress.advance)
            return model, template, under, facts

        count = accelerator_for().num_processes
        trained, fitted = fit(attempt, self.method, self.training, count, folder)
        model, template, under, facts = trained
        if not work.leads:
            return {}
        facts |= fitted
        lora = self.training.lora
        # experts alone are merged in every pass
        if lora and (self.whole or lora.experts) and torch.finfo(model.dtype).bits < 32:
            facts["merge error"] = adapters.merge_error(model, experts=not self.whole)
        if self.whole:  # the next adapter will lie over the merged weights
            model = adapters.merge_adapter(model)
        checkpoints.save(
            model, template.tokenizer, folder, under if adapters.has_adapter(model) else None
        )
        for left in (resume, folder / paths.FITTED):
            left.unlink(missing_ok=True)
        return facts

    def _open(self, work: Work, folder: Path) -> tuple[PreTrainedModel, Template, folders.Files]:
        """Load the model that it starts from, its adapter merged; return how it is asked, and the
        files that a fresh adapter will lie over.
        """
        assert self.start is not None
        start = work.checkpoint(self.start)
        model, template = self.asking.open(start)
        under = folders.locate(start)
        if under.base is not None:  # the fresh adapter lies over the model after the stage before
            model = adapters.merge_adapter(model)
            if self.training.lora and not self.whole and work.leads:
                checkpoints.save(model, template.tokenizer, folder / paths.BASE)
                made = folders.locate(Checkpoint(str(folder / paths.BASE)))
                under = replace(made, name=str(work.place(self) / paths.BASE))
        return model, template, under

    def train(
        self, model: PreTrainedModel, template: Template, resume: Path, watch: Watch
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Return the trained model, its fresh adapter unmerged, and what is to be known of the
        training.
        """
        assert isinstance(self.method, Defense)
        training, accelerator = self.training, accelerator_for()
        ranks = Ranks.of(accelerator)
        autocast, start, adapted = None, None, dict[str, Any]()
        streams, chosen = self._choose(model, template)
        torch.manual_seed(self.seed)  # of the fresh adapter's weights
        if training.lora:
            model = adapters.add_lora(model, training.lora)
            adapted = {"matrices adapted": adapters.count_matrices(model)}
        else:
            autocast = widen(model)
            start = effect.copy_trainable(model)
        encoded = {name: template.encode_all(rows, name) for name, rows in streams.items()}
        trained = copy_shards(model, accelerator)
        with recompute_layers(trained) if self.recompute else nullcontext():
            looking = self._probes(trained, template, autocast or passes_in(training))
            start_probe = looking.measure() if looking else {}
            start_look = self.curve.look(trained, template, ranks) if self.curve else {}
            last = len(list_phases(self.method, training.updates))

            def probe(update: int) -> dict[str, float]:
                due = self.looks and update % self.looks.every == 0
                terms = looking.measure() if looking and due else {}
                if self.curve and curve.is_due(update, last):
                    terms |= self.curve.look(trained, template, ranks)
                return terms

            def show(done: int, of: int, terms: Mapping[str, float]) -> None:
                watch(done, of, curve.summarize(terms))

            history = train(
                trained, self.method, encoded, training.among(ranks.count), self.seed,
                autocast=autocast, resume=resume, every=UPDATES, watch=show, probe=probe,
            )  # fmt: skip
        take_back(model, trained)
        if autocast is not None:
            cast(nn.Module, model).to(autocast)
        sent = len(encoded["rows"])
        along = {curve.FACT: self._along(history, start_look, sent)} if self.curve else {}
        return model, {
            "adapter": "fresh, over the merged weights of the stage before"
            if training.lora
            else "none: all weights",
            **adapted,
            "rows": {name: len(rows) for name, rows in encoded.items()},
            **self.counts,
            **chosen,
            "rows cut": sum(row.cut > 0 for rows in encoded.values() for row in rows),
            "terms at the first update": curve.without_looks(history[0]),
            "terms at the last update": curve.without_looks(history[-1]),
            "loss": effect.loss_fall(history),
            **along,
            **({"probes": probes.timeline(history, start_probe)} if looking else {}),
            "weights moved": effect.weight_change(model, start),
        }

    def _choose(
        self, model: PreTrainedModel, template: Template
    ) -> tuple[Mapping[str, Sequence[Row]], dict[str, Any]]:
        """Return the streams, of whose rows the model may have to choose, and facts of the choice."""
        if self.choice is None:
            return self.streams, {}
        rows, facts = self.choice.choose(model, template, self.streams["rows"])
        return {**self.streams, "rows": rows}, facts

    def _along(
        self, history: Sequence[Mapping[str, float]], start: Mapping[str, float], sent: int
    ) -> list[dict[str, Any]]:
        share = self.counts.get("attack rows", 0) / sent
        return curve.tell(history, start, self.training.batch * self.training.accumulate, share)

    def _probes(
        self, model: PreTrainedModel, template: Template, autocast: torch.dtype | None
    ) -> probes.Probes | None:
        """Set up probes on held-out harm prompts with their answers, and on alignment rows."""
        if not self.looks:
            return None
        of = {
            "harm": self.looks.harmful,
            "alignment": self.looks.aligned,
            "task": self.looks.task,
        }
        harmful, aligned, task = (
            template.encode_all(rows[: probes.ROWS], name) for name, rows in of.items()
        )
        return probes.build(model, harmful, aligned, task, accelerator_for(), autocast)


def widen(model: PreTrainedModel) -> torch.dtype | None:
    """Keep all weights in float32 to train them, since an update is often less than the step
    between two coarse numbers.

    Return the dtype that they are computed in, where it is another one.
    """
    model.requires_grad_(True)  # merging leaves what it merged frozen
    for beside in language.towers(model).values():
        beside.requires_grad_(False)
    dtype = model.dtype
    cast(nn.Module, model).float()
    return dtype if dtype != torch.float32 else None
