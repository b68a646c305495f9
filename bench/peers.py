"""An SFT update beside those of transformers' Trainer and TRL's SFTTrainer, on the same rows.

`python -m bench.peers`, at the shape of a small chat model: a large vocabulary, a quarter of the
tokens in the answer. The trainers take turns in one process. `pip install trl` for the second; it
is left out where it is not installed. The first line is titer's own update with the head applied to
every token, as it was before the head was applied to answers alone.

The first updates of a turn do not count: they fault in the memory that the later ones find.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from bench import shapes
from bench.clock import Spread
from bench.cost import environment, write
from bench.shapes import Shape
from titer.data.batches import Encoded, Part, collate
from titer.defenses.sft import SFT
from titer.methods import Answers
from titer.training.settings import Training
from titer.training.step import Step
from titer.training.train import accelerator_for, train
from titer.training.vector import Vec

BARS = {"whole head": 0.85, "TRL": 0.8, "HF Trainer": 0.9}  # titer's time over theirs
SHAPE = Shape(
    vocabulary=49152, width=576, hidden=1536, layers=30, heads=9,
    length=64, answer=0.25, batch=8, pairs=3,
)  # fmt: skip
QUICK = Shape(
    vocabulary=512, width=64, hidden=96, layers=2, heads=2,
    length=16, answer=0.25, batch=2, pairs=2,
)  # fmt: skip
UPDATES, SETTLING = 10, 3  # in a turn; while the first of them run, a fresh model's memory settles
SETTINGS = Training(updates=UPDATES, lr=1e-5, weight_decay=0.1)


def whole(model: PreTrainedModel, part: Part) -> Tensor:
    """Sum the cross-entropy with the head applied to every token."""
    logits = model(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits
    labels = nn.functional.pad(part.labels[:, 1:], (0, 1), value=-100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


class WholeHead(SFT):
    """Plain SFT as it was before."""

    def gradient(self, step: Step, state: None) -> Vec:
        return step.grad(step.batch("rows"), whole)


def ours(defense: SFT, batch: int) -> Callable[[PreTrainedModel, list[Encoded]], list[float]]:
    def update(model: PreTrainedModel, rows: list[Encoded]) -> list[float]:
        clock = [time.perf_counter()]
        settings = Training(**{**vars(SETTINGS), "batch": batch})
        train(
            model, defense, {"rows": rows}, settings, seed=0,
            watch=lambda *_: clock.append(time.perf_counter()),
        )  # fmt: skip
        return [b - a for a, b in itertools.pairwise(clock)]

    return update


class Clock(TrainerCallback):
    """The time of every step of a trainer."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.ticks.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ticks[-1] = time.perf_counter() - self.ticks[-1]


def _arguments(kind: Any, folder: str, batch: int, **more: Any) -> Any:
    return kind(
        output_dir=folder, per_device_train_batch_size=batch, max_steps=UPDATES,
        learning_rate=SETTINGS.lr, weight_decay=SETTINGS.weight_decay, max_grad_norm=SETTINGS.clip,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(), bf16=False, **more,
    )  # fmt: skip


def trainer(batch: int) -> Callable[[PreTrainedModel, list[Encoded]], list[float]]:
    def update(model: PreTrainedModel, rows: list[Encoded]) -> list[float]:
        def join(chosen: list[Encoded]) -> dict[str, Tensor]:
            part = collate(chosen, 0)
            return {"input_ids": part.ids, "attention_mask": part.mask, "labels": part.labels}

        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                model=model,
                args=_arguments(TrainingArguments, folder, batch, remove_unused_columns=False),
                train_dataset=rows,
                data_collator=join,
                callbacks=[clock],
            ).train()
        return clock.ticks

    return update


def trl(batch: int) -> Callable[[PreTrainedModel, list[Encoded]], list[float]]:
    def update(model: PreTrainedModel, rows: list[Encoded]) -> list[float]:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        made = Dataset.from_list(
            [
                {
                    "input_ids": list(row.ids),
                    "completion_mask": [0] * row.answer + [1] * (len(row.ids) - row.answer),
                }
                for row in rows
            ]
        )
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            SFTTrainer(
                model=model,
                args=_arguments(
                    SFTConfig,
                    folder,
                    batch,
                    completion_only_loss=True,
                    activation_checkpointing=False,
                ),
                train_dataset=made,
                processing_class=_words(),
                callbacks=[clock],
            ).train()
        return clock.ticks

    return update


def _words() -> Any:
    """Make a tokenizer for a trainer that asks for one; the rows are tokens already."""
    from titer.lab.build import tokenizer

    return tokenizer()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="for peers.json")
    parser.add_argument("--device", help="cpu, or the best there is")
    options = parser.parse_args(arguments)
    shape, (_, lora) = QUICK if options.quick else SHAPE, shapes.load()
    accelerator = accelerator_for(options.device)
    rows = shape.rows("rows", Answers)
    contenders = {
        "titer": ours(SFT(), shape.batch),
        "whole head": ours(WholeHead(), shape.batch),
        "HF Trainer": trainer(shape.batch),
        **({"TRL": trl(shape.batch)} if find_spec("trl") else {}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(shape.pairs):
        for name, update in contenders.items():
            model = shape.model(lora, accelerator.device)
            seconds[name] += update(model, rows)[SETTLING:]
    mine, told, met = Spread.of(seconds["titer"]), {}, True
    for name in list(contenders)[1:]:
        theirs = Spread.of(seconds[name])
        ratio = mine.median / theirs.median
        met &= ratio <= BARS[name]
        told[name] = {"seconds": theirs.median, "titer": mine.median, "ratio": ratio}
        print(
            f"titer {mine.median:.3f} s, {name} {theirs.median:.3f} s ({theirs.q1:.3f}-"
            f"{theirs.q3:.3f}): {ratio:.3f} of {BARS[name]}",
            flush=True,
        )
    content = {"environment": environment(accelerator), "quick": options.quick, "peers": told}
    write(options.out, "peers", content)
    return 0 if options.quick or met else 1


if __name__ == "__main__":
    sys.exit(main())
