"""Defenses inside a person's own script of transformers' Trainer or of TRL's SFTTrainer.

The dataset, optimizer, schedule, clipping, logs, evaluation and checkpoints stay the trainer's. The
gradient of an update is the defense's: it is taken once for all micro-batches that the trainer
accumulates, on rows that the defense draws, and written where the optimizer looks for it. The rows
of the trainer's dataloader are the stream `rows`. They are read as they are drawn, so their order
is the trainer's, and none is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint

from titer import registry
from titer.data.texts import Style
from titer.integrations import refusals
from titer.integrations.rows import encode_beside
from titer.integrations.updates import Updates
from titer.methods import Defense

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def defended(
    trainer: type[AnyTrainer],
    defense: Any,
    rows: Mapping[str, Any] | None = None,
    template: Style = "chat",
) -> type[AnyTrainer]:
    """Return a class of trainers like `trainer` whose updates follow a defense.

    `defense` is one, its name, or a mapping of `method` and its fields. `rows` has by stream what
    it draws beside the trainer's rows: a file, a name of the hub, a `datasets.Dataset`, a data
    frame, a list of dicts or of conversations. They are encoded by the trainer's tokenizer, in its
    chat template or the named text template.

    Raises where the trainer has a loss of its own. What else does not go together is refused when a
    trainer is made, in one line that says why.
    """
    refusals.check_class(trainer)
    fields = {
        "defense": registry.build("defenses", defense),
        "given": dict(rows or {}),
        "style": template,
    }
    made = type(f"Defended{trainer.__name__}", (DefendedTrainer, trainer), fields)
    return cast(type[AnyTrainer], made)


class DefendedTrainer(Trainer):
    """A trainer that follows a defense. `defended` makes a class of it and of a trainer's."""

    defense: Defense
    given: Mapping[str, Any]  # the defender's rows, by stream
    style: Style

    def __init__(self, *args: Any, **options: Any) -> None:
        refusals.check_derived(type(self), DefendedTrainer)
        super().__init__(*args, **options)
        refusals.check(self, self.defense)
        self.beside = encode_beside(self, self.defense, self.given, self.style)
        self.resumed: Path | None = None  # the checkpoint that the training goes on from
        self.updates: Updates | None = None  # since the training began
        # before those that keep the model when the training ends
        self.callback_handler.callbacks.insert(0, Along(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        if trial is not None:
            raise ValueError("a trial of hyperparameter_search: make a defended trainer for each")
        last = resume_from_checkpoint
        if last is True:
            last = get_last_checkpoint(str(self.args.output_dir))
        self.resumed = Path(last) if last else None
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Read nothing: the defense draws its rows itself. A trainer looks into what is returned."""
        none = torch.zeros((1, 0), dtype=torch.long)
        return [{"input_ids": none, "attention_mask": none} for _ in range(num_batches)], None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Follow the defense at the last micro-batch of an update, and return the update's loss.

        At those before it the loss is 0, since the trainer adds them up.
        """
        loss = 0.0
        if self.accelerator.sync_gradients:
            assert self.updates is not None  # the training has begun
            cast(Any, self.optimizer).train()  # of the few that have two modes
            loss = self.updates.follow(self.state.global_step + 1)
            rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
            ids = [token for row in self.updates.feed.drawn[rank::ranks] for token in row.ids]
            inputs["input_ids"] = torch.tensor([ids], dtype=torch.long)  # for those who count
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return torch.tensor(loss, device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the terms of the defense's objective beside the loss, by its name and theirs."""
        if "loss" in logs and self.updates is not None:
            name = registry.name_of(self.defense)
            logs |= {f"{name}/{term}": value for term, value in self.updates.mean_terms().items()}
        super().log(logs, start_time)


class Along(TrainerCallback):
    """Begins and ends the updates of a trainer, and keeps their state in its checkpoints."""

    def __init__(self, trainer: DefendedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        of, loader = self.trainer, given["train_dataloader"]
        of.updates = Updates.begin(of, of.defense, of.beside, loader, state.max_steps, of.resumed)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and not args.save_only_model:
            assert self.trainer.updates is not None
            step = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.trainer.updates.save(Path(args.output_dir) / step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer.updates is not None
        self.trainer.updates.finish()
