"""Plain SFT beside transformers' own Trainer: the same weights after every update."""

import pytest
import torch
from transformers import LlamaConfig, Trainer, TrainerCallback, TrainingArguments

from families import COMMON, FAMILIES, build
from titer.data.batches import Stream, collate
from titer.defenses.sft import SFT
from titer.training.loop import decayed_names
from titer.training.settings import Training
from titer.training.train import train

SETTINGS = Training(
    updates=25, lr=3e-3, batch=4, schedule="cosine", warmup=0.1, weight_decay=0.5, lora=None
)  # the warm-up is 2.5 updates


def small():
    """With biases and norms, and no dropout: a Trainer trains with it."""
    settings = COMMON | {"attention_bias": True, "attention_dropout": 0.0}
    return build(LlamaConfig, settings, vocabulary=400)


class InOrder(Trainer):
    """A Trainer that takes its rows in the order given."""

    def _get_train_sampler(self, *_args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Keep(TrainerCallback):
    """Keep the weights after every update."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights.append(flat(model))


def flat(model):
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_every_update_is_that_of_the_trainer(rows, tmp_path, schedule):
    ours, theirs, keep = small(), small(), Keep()
    start, mine = flat(ours), []
    settings = Training(**{**vars(SETTINGS), "schedule": schedule})
    train(
        ours,
        SFT(),
        {"rows": rows["rows"]},
        settings,
        seed=3,
        probe=lambda _: mine.append(flat(ours)) or {},
    )

    def batch(chosen):
        part = collate(chosen, 0)
        return {"input_ids": part.ids, "attention_mask": part.mask, "labels": part.labels}

    InOrder(
        model=theirs,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=settings.batch,
            max_steps=settings.updates,
            learning_rate=settings.lr,
            lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.clip,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Stream("rows", rows["rows"], 3).take(settings.batch * settings.updates),
        data_collator=batch,
        callbacks=[keep],
    ).train()
    assert len(mine) == len(keep.weights) == settings.updates
    for i, (found, expected) in enumerate(zip(mine, keep.weights, strict=True), 1):
        moved = (expected - start).norm()
        assert (found - expected).norm() <= 1e-4 * moved, f"update {i}"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_decays_is_what_the_trainer_decays(family):
    model = FAMILIES[family]()
    theirs = Trainer.get_decay_parameter_names(None, model)  # it looks at the model alone
    assert decayed_names(model) == set(theirs)
    assert decayed_names(model) < {
        name for name, _ in model.named_parameters(remove_duplicate=False)
    }
