"""What the stages of a plan take, before any of them is computed: memory and time.

A stage that trains is rehearsed on the meta device, with the micro-batches that its rows make
(`titer.training.rehearse`); so is the answering of prompts. What is counted becomes bytes and
seconds by the machine (`titer.runs.machine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from titer.data.batches import Encoded, by_length
from titer.data.rows import Row
from titer.data.template import Template
from titer.defenses.sft import SFT
from titer.errors import cause
from titer.methods import Defense, StreamEdit, TensorEdit, UpdateEdit
from titer.runs.execute import with_inputs
from titer.runs.machine import Machine, Rates, probe
from titer.runs.plan import Plan
from titer.runs.stages.ablate import AblateStage
from titer.runs.stages.answer import AnswerStage
from titer.runs.stages.curve import TOKENS, Curve
from titer.runs.stages.edit import EditStage
from titer.runs.stages.margin import MarginStage
from titer.runs.stages.repair import CALIBRATION_BATCH
from titer.runs.stages.retrain import RetrainStage
from titer.runs.stages.stage import Given, Stage
from titer.runs.stages.train import UPDATES, TrainStage
from titer.runs.store import Store
from titer.scoring import curve
from titer.scoring.likelihood import AT_ONCE
from titer.training.count import Effort
from titer.training.memory import free_memory, is_out_of_memory
from titer.training.rehearse import (
    Counted,
    Passes,
    Size,
    adapt,
    count_bytes,
    rehearse,
    rehearse_answers,
    rehearse_reading,
    size_batches,
)
from titer.training.settings import Training
from titer.weights import adapters, checkpoints
from titer.weights.settings import Lora

COPIES = 4  # of the largest tensor, of an edit that reads and writes one at a time
TIMES = 3  # that such an edit goes over the bytes of a checkpoint


@dataclass(frozen=True)
class Need:
    """What a stage takes. Bytes are None where it cannot be counted, and `why` says so."""

    step: str  # as a person reads it while it is computed
    kind: str  # align, finetune, edit, ..., score
    weights: float = 0.0  # bytes of the model
    made: float | None = 0.0  # bytes that are alive beside it at the peak
    activations: float | None = None  # and of them those of activations, where it trains
    work: Effort = field(default_factory=Effort)
    why: str = ""

    def __add__(self, other: Need) -> Need:
        """Join two that follow one another in one step."""
        larger = max(self, other, key=lambda need: need.weights + (need.made or 0.0))
        return replace(larger, work=self.work + other.work, why=self.why or other.why)

    def bytes(self, machine: Machine) -> float | None:
        return (
            None if self.made is None else machine.takes(self.weights, self.made, self.activations)
        )


@dataclass(frozen=True)
class Alternative:
    """Settings that a stage is counted with instead of its recipe's."""

    training: Training
    recompute: bool
    dtype: str


@dataclass(frozen=True)
class Probed:
    """The rates of a machine by the kind of training that they were timed of."""

    rates: Mapping[Lora | None, Rates]
    why: str = ""  # there are none of some kind; empty where there are of all


class Estimator:
    """Counts the stages of a plan for a machine."""

    def __init__(self, plan: Plan, machine: Machine) -> None:
        self.plan, self.machine = plan, machine
        self._sizes: dict[tuple[str, Training], dict[str, tuple[Size, Size]]] = {}
        self._models: dict[tuple[Lora | None, str], PreTrainedModel] = {}
        self._counted: dict[
            Any, Counted
        ] = {}  # stages that differ in where they start cost the same
        self._passes: dict[Any, Passes] = {}

    def steps(self, store: Store | None = None) -> list[list[Stage]]:
        """Return the stages to compute, those of one step together, without those that are stored."""
        made = dict.fromkeys(stage for of in self.plan.pipelines().values() for stage in of)
        scores = [self.plan.score(stage) for stage in made]
        found: dict[str, list[Stage]] = {}
        for stage in with_inputs([*made, *scores]):
            left = store is None or store.entry(stage.key) is None
            if left and not isinstance(stage, Given):
                found.setdefault(stage.step, []).append(stage)
        return list(found.values())

    def need(self, stages: Sequence[Stage]) -> Need:
        """Count a step: a stage that makes a model, or all that scoring of one is."""
        [first, *rest] = [self._count(stage) for stage in stages]
        for other in rest:
            first += other
        return first

    def _count(self, stage: Stage) -> Need:
        if isinstance(stage, TrainStage | RetrainStage):
            return self.train(stage, self.change_of(stage))
        if isinstance(stage, EditStage):
            return self._edit(stage)
        if isinstance(stage, AnswerStage):
            return self.answer(stage, self.plan.recipe.answers_at_once)
        if isinstance(stage, MarginStage):
            return self._margin(stage)
        return Need(stage.step, "score")  # a judge; one that is a model is not counted

    def change_of(self, stage: TrainStage | RetrainStage) -> Alternative:
        """Return the settings of a stage as they are in its recipe."""
        return Alternative(stage.training, stage.recompute, self.plan.recipe.model.dtype)

    def train(self, stage: TrainStage | RetrainStage, change: Alternative) -> Need:
        """Count a stage that trains, with other settings than its own."""
        training, model = change.training, self.model(change.training.lora, change.dtype)
        weights = count_bytes(model)
        try:
            counted = self._rehearse(stage, change)
        except (ValueError, RuntimeError) as error:  # a value was asked for, or is none it can use
            why = (
                f"not counted, it asks for values of the model: {str(error).splitlines()[0][:120]}"
            )
            return Need(stage.step, stage.kind, weights, None, why=why)
        work = counted.once + training.updates * counted.update
        made = self._peak(counted, training)
        if isinstance(stage, TrainStage) and stage.curve:
            passes, looks = self._looks(stage.curve, training)
            made = max(made, counted.resting + passes.peak)
            work += looks * passes.work
        return Need(stage.step, stage.kind, weights, made, counted.activations, work)

    def _rehearse(self, stage: TrainStage | RetrainStage, change: Alternative) -> Counted:
        """Count updates with the largest micro-batches, and their work with typical ones."""
        defense = stage.method if isinstance(stage.method, Defense) else SFT()
        sizes = self.sizes(stage, change.training)
        key = defense, change, tuple(sizes.items())
        if key not in self._counted:
            largest = {name: size for name, (_, size) in sizes.items()}
            model = self.model(change.training.lora, change.dtype)
            found = rehearse(model, defense, largest, change.training, recompute=change.recompute)
            share = sum(size.tokens for size, _ in sizes.values()) / sum(
                size.tokens for size in largest.values()
            )
            self._counted[key] = replace(found, update=found.update.shrink(share))
        return self._counted[key]

    def _peak(self, counted: Counted, training: Training) -> float:
        """Return the bytes at the peak of a training: in an update, or as its state is saved."""
        start = 0 if training.lora else counted.trained  # copied, to tell how far they moved
        if self.machine.kind == "cuda":
            # AdamW makes as much as the gradients for all weights at once; the rest lies elsewhere
            return max(counted.peak, counted.resting + 2 * counted.trained)
        saved = counted.resting + counted.trained if training.updates >= UPDATES else 0
        return start + max(counted.peak, counted.resting + saved)

    def _looks(self, looked: Curve, training: Training) -> tuple[Passes, int]:
        """Count one look along an attack, and the looks."""
        lengths = [len(self.template.prompt_ids(row, TOKENS)) for row in looked.rows]
        answers = self._ask(len(lengths), max(lengths), TOKENS)
        reading = self._read(self._tokens(looked.rows, looked.judge.refusals))
        due = [curve.is_due(update, training.updates) for update in range(1, training.updates + 1)]
        peak = max(answers.peak, reading.peak)
        return Passes(peak, answers.work + reading.work), sum(due) + 1

    def sizes(
        self, stage: TrainStage | RetrainStage, training: Training
    ) -> dict[str, tuple[Size, Size]]:
        """Return a typical and the largest micro-batch of every stream."""
        key = stage.key, training
        if key not in self._sizes:
            streams = stage.streams if isinstance(stage, TrainStage) else {"rows": stage.rows}
            self._sizes[key] = {
                name: size_batches(self._encode(rows, name), training, stage.seed)
                for name, rows in streams.items()
            }
        return self._sizes[key]

    def _encode(self, rows: Sequence[Row], name: str) -> list[Encoded]:
        return self.template.encode_all(rows, name)

    def _edit(self, stage: EditStage) -> Need:
        """Count an edit: the passes that it watches, or the tensors that it reads and writes."""
        model = self.plain
        weights, method = count_bytes(model), stage.method
        written = Effort(0, 0, TIMES * weights)
        largest = max(p.numel() * p.element_size() for p in model.parameters())
        if isinstance(method, TensorEdit):
            return Need(stage.step, stage.kind, 0, COPIES * largest, work=written)
        watches = isinstance(method, UpdateEdit) and method.needs.watches is not None
        if not watches and not isinstance(method, StreamEdit):
            return Need(stage.step, stage.kind, 0, COPIES * largest, work=written)
        rows = [*stage.rows, *(stage.against if isinstance(stage, AblateStage) else [])]
        lengths = [len(row.ids) for row in self._encode(rows, "calibration")]
        batch = min(CALIBRATION_BATCH, len(lengths))
        passes = rehearse_reading(model, batch, max(lengths))
        made = max(passes.peak, COPIES * largest)
        why = "at least: what it keeps of its rows is not counted"
        work = len(lengths) / batch * passes.work + written
        return Need(stage.step, stage.kind, weights, made, work=work, why=why)

    def answer(self, stage: AnswerStage, at_once: int) -> Need:
        """Count the answers to all prompts, each as long as it may be."""
        rows = [row for of in stage.benchmarks.values() for row in of]
        lengths = [len(self.template.prompt_ids(row, stage.max_new_tokens)) for row in rows]
        batches = by_length(lengths, at_once)
        model = self.plain
        weights = count_bytes(model)
        if not batches:
            return Need(stage.step, "score", weights)
        longest = max(lengths)
        passes = self._ask(max(map(len, batches)), longest, stage.max_new_tokens)
        return Need(stage.step, "score", weights, passes.peak, work=len(batches) * passes.work)

    def _margin(self, stage: MarginStage) -> Need:
        passes = self._read(self._tokens(stage.rows, stage.refusals))
        weights = count_bytes(self.plain)
        return Need(stage.step, "score", weights, passes.peak, work=passes.work)

    def _ask(self, rows: int, length: int, new: int) -> Passes:
        key = "ask", rows, length, new
        if key not in self._passes:
            self._passes[key] = rehearse_answers(self.plain, rows, length, new)
        return self._passes[key]

    def _read(self, tokens: int) -> Passes:
        """Count the reading of so many tokens, as many at once as margins are taken of."""
        key = "read", 8, AT_ONCE // 8
        if key not in self._passes:
            self._passes[key] = rehearse_reading(self.plain, *key[1:])
        passes = self._passes[key]
        return replace(passes, work=tokens / AT_ONCE * passes.work)

    def _tokens(self, rows: Sequence[Row], forms: Sequence[str]) -> int:
        """Count the tokens that margins read: prompts, answers, and refusals as if none began alike."""
        refusals = sum(
            len(self.template.answer_ids(replace(row, response=form), ended=False))
            for row in rows[:1]
            for form in forms
        )
        read = [
            len(self.template.prompt_ids(row, 0)) + len(self.template.answer_ids(row))
            for row in rows
        ]
        return sum(read) + refusals * len(rows)

    def model(self, lora: Lora | None, dtype: str) -> PreTrainedModel:
        """Return the model on the meta device, to be trained: where there is no adapter, as a whole."""
        key = lora, dtype
        if key not in self._models:
            model = checkpoints.skeleton(self.plan.recipe.model)
            self._models[key] = adapt(model, getattr(torch, dtype), lora)
        return self._models[key]

    @cached_property
    def plain(self) -> PreTrainedModel:
        """The model on the meta device, to be asked."""
        model = checkpoints.skeleton(self.plan.recipe.model)
        model.to(dtype=getattr(torch, self.plan.recipe.model.dtype))  # type: ignore[call-arg]
        model.eval()
        return model

    @cached_property
    def template(self) -> Template:
        return self.plan.asking.templated(
            self.plan.start, checkpoints.skeleton(self.plan.recipe.model)
        )

    def probe(self) -> Probed:
        """Time updates of the real model, once for every kind of training in the plan that fits."""
        rates, why = dict[Lora | None, Rates](), dict[Lora | None, str]()
        for stages in self.steps():
            for stage in stages:
                if not isinstance(stage, TrainStage | RetrainStage):
                    continue
                lora = stage.training.lora
                if lora in rates or lora in why:
                    continue
                try:
                    rates[lora] = self._time(stage)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    why[lora] = cause(error)
                # not in the handler, where the failure still holds the model
                free_memory()
        return Probed(rates, next(iter(why.values()), ""))

    def _time(self, stage: TrainStage | RetrainStage) -> Rates:
        recipe, change = self.plan.recipe, self.change_of(stage)

        def load() -> PreTrainedModel:
            return adapters.merge_adapter(self.plan.asking.open(recipe.model)[0])

        return probe(
            load,
            checkpoints.skeleton(recipe.model),
            getattr(torch, change.dtype),
            self.sizes(stage, stage.training)["rows"][0],
            stage.training,
            self.machine,
            change.recompute,
        )
