"""Defenses inside TRL's SFTTrainer and transformers' Trainer: the trajectories of titer's own loop."""

import itertools
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from conftest import tiny
from test_contract import SHORTER
from titer import paths, registry
from titer.data.batches import IGNORED, Stream, collate
from titer.data.rows import pair
from titer.data.template import Template
from titer.defenses.ema import EMA
from titer.defenses.kl import KL
from titer.defenses.ldifs import LDIFS
from titer.defenses.lisa import Lisa
from titer.defenses.sft import SFT
from titer.integrations import defended
from titer.integrations.feed import read_rows
from titer.integrations.refusals import check
from titer.integrations.updates import Updates
from titer.phase import Phase
from titer.testing.ranks import run_on_ranks
from titer.testing.small import small_for, texts
from titer.training.settings import DRAWN, Training
from titer.training.train import train

UPDATES, BATCH, LENGTH = 20, 2, 64
QUICK = SHORTER | {"t_vaccine": {"gamma": 1, "resample": 2, "rescore": 3}}
ALL = {
    name: registry.build("defenses", {"method": name} | QUICK.get(name, {}))
    for name in registry.names("defenses")
}
REFUSED = ("safe_moe",)  # its sweeps are updates beside those of a trainer
METHODS = {name: defense for name, defense in ALL.items() if name not in REFUSED}
METHODS["kl on rows"] = KL(on="rows")
MORE = {  # it draws more of the trainer's rows than a batch at an update
    "tar switching": registry.build(
        "defenses", {"method": "tar", "k": 3, "every": 2, "switch": 1.0}
    ),
    "booster over repnoise": registry.build(
        "defenses", {"method": "booster", "align": {"method": "repnoise"}}
    ),
}
TEXTS = texts() | {"rows": [replace(row, other="") for row in texts()["rows"]]}
TEXTS["pairs"] = TEXTS["harmful"]  # among them prompts of the trainer's rows


class Keep(TrainerCallback):
    """Keep the weights after every update."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights.append(flat(model))


def flat(model):
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def of_tokens(rows):
    """The rows as a data set of tokens with their labels."""
    return Dataset.from_list(
        [
            {
                "input_ids": list(row.ids),
                "labels": [IGNORED] * row.answer + list(row.ids[row.answer :]),
            }
            for row in rows
        ]
    )


def arguments(kind, folder, **more):
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "max_steps": UPDATES,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "seed": 3,
        "train_sampling_strategy": "sequential",
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
    }
    return kind(**given | ({"max_length": LENGTH} if kind is SFTConfig else {}) | more)


def beside(defense):
    """The rows that a defense draws beside the trainer's."""
    wanted = [name for name in defense.needs.streams if name != "rows"]
    wanted += ["pairs"] if "pairs" in defense.needs.streams["rows"].name.lower() else []
    return {name: TEXTS[name] for name in wanted}


def encoded(template, defense):
    """All rows of titer's own loop, as tokens."""
    rows = {name: TEXTS[name] for name in defense.needs.streams}
    if "pairs" in beside(defense):
        rows["rows"] = pair(rows["rows"], TEXTS["pairs"])
    return {name: template.encode_all(those, name) for name, those in rows.items()}


def sft(model, tokenizer, folder, defense, rows, callbacks=(), kind=SFTTrainer, **more):
    made = defended(kind, defense, rows=beside(defense)) if defense else kind
    return made(
        model=model,
        args=arguments(SFTConfig, folder, **more),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def distance(found, expected, start):
    """The largest distance of two trajectories, by the way of one of them until then."""
    return max(
        float((a - b).norm() / (b - start).norm()) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", [*METHODS, *MORE])
def test_the_trajectory_is_that_of_titer_s_own_loop(
    name, accumulate, template, tokenizer, tmp_path, record_property
):
    defense = (METHODS | MORE)[name]
    ours, theirs, keep, mine = tiny(), tiny(), Keep(), []
    start, data = flat(ours), encoded(template, defense)
    settings = Training(
        updates=UPDATES, lr=3e-3, batch=BATCH, accumulate=accumulate, weight_decay=0.1, lora=None
    )
    history = train(
        ours, defense, data, settings, seed=3, probe=lambda _: mine.append(flat(ours)) or {}
    )
    order = Stream("rows", data["rows"], 3).take(4 * UPDATES * BATCH * accumulate)
    trainer = sft(
        theirs, tokenizer, tmp_path, defense, of_tokens(order), [keep],
        gradient_accumulation_steps=accumulate,
    )  # fmt: skip
    trainer.train()
    found = distance([*keep.weights, flat(theirs)], [*mine, flat(ours)], start)
    record_property("distance", found)
    print(f"{name}, accumulation {accumulate}: {found:.1e}")
    assert found <= 1e-5
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == UPDATES
    for entry, terms in zip(logged, history, strict=True):
        assert entry["grad_norm"] == pytest.approx(terms["grad_norm"], rel=1e-5)
        for term in terms.keys() - {"grad_norm", "lr", DRAWN}:
            logged_as = f"{registry.name_of(defense)}/{term}"
            assert entry[logged_as] == pytest.approx(terms[term], rel=1e-5), term
        if "f" in terms:
            assert entry["loss"] == pytest.approx(terms["f"], rel=1e-5)


@pytest.mark.parametrize("kind", [Trainer, SFTTrainer])
@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_plain_sft_is_the_trainer_itself_over_uneven_epochs_and_any_labels(
    kind, strategy, rows, tokenizer, tmp_path
):
    """Some rows learn everything, some several answers; the last update of an epoch is small."""
    rng = random.Random(0)
    made = [
        {
            "input_ids": list(row.ids),
            "labels": [token if rng.random() < 0.6 else IGNORED for token in row.ids],
        }
        for row in rows["rows"][:13]
    ]
    made[0]["labels"] = made[0]["input_ids"]

    def join(chosen):
        parts = [collate([row], 0) for row in read_rows_of(chosen)]
        width = max(part.ids.shape[1] for part in parts)
        pad = torch.nn.functional.pad
        return {
            name: torch.cat(
                [pad(getattr(p, of), (0, width - p.ids.shape[1]), value=value) for p in parts]
            )
            for name, of, value in (
                ("input_ids", "ids", 0),
                ("attention_mask", "mask", 0),
                ("labels", "labels", IGNORED),
            )
        }

    ends = []
    for defense in (None, SFT()):
        model = tiny()
        more = {
            "num_train_epochs": 2,
            "max_steps": -1,
            "gradient_accumulation_steps": 3,
            "train_sampling_strategy": strategy,
        }
        if kind is SFTTrainer:
            trainer = sft(model, tokenizer, tmp_path, defense, Dataset.from_list(made), **more)
        else:
            trainer = (defended(kind, defense) if defense else kind)(
                model=model,
                args=arguments(TrainingArguments, tmp_path, **more),
                train_dataset=made,
                data_collator=join,
            )
        trainer.train()
        assert trainer.state.global_step == 6  # 13 rows are 7 micro-batches, and 3 updates
        ends.append((flat(model), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    (theirs, losses), (ours, mine) = ends
    assert (ours - theirs).norm() <= 1e-6 * (theirs - flat(tiny())).norm()
    assert mine == pytest.approx(losses, rel=1e-5)


def read_rows_of(chosen):
    return [
        row
        for each in chosen
        for row in read_rows({name: torch.tensor([each[name]]) for name in ("input_ids", "labels")})
    ]


def test_no_row_of_the_user_is_passed_over(template, tokenizer, tmp_path):
    """Lisa draws them while tuning alone: those of all its turns are the first of the data set."""
    data = template.encode_all(TEXTS["rows"], "rows")
    order = [data[i % len(data)] for i in range(UPDATES * BATCH)]
    defense = Lisa(k1=2, k2=3)
    drawn = []
    trainer = sft(tiny(), tokenizer, tmp_path, defense, of_tokens(order))

    class Look(TrainerCallback):
        def on_step_end(self, *_, **__):
            drawn.append([row.ids for row in trainer.updates.feed.drawn])

    trainer.add_callback(Look())
    trainer.train()
    assert [len(rows) for rows in drawn] == [0, 0, 2, 2, 2] * 4
    assert list(itertools.chain(*drawn)) == [row.ids for row in order[:24]]
    assert trainer.state.log_history[-2]["lisa/rows drawn"] == 24


@pytest.mark.parametrize("checkpointing", [True, False])
def test_padding_free_rows_are_taken_apart(checkpointing, rows, tokenizer, tmp_path):
    """And activations that are computed again change nothing."""
    ends = []
    for more in (
        {"activation_checkpointing": not checkpointing},
        {"padding_free": True, "max_length": None, "activation_checkpointing": checkpointing},
    ):
        model = tiny()
        trainer = sft(model, tokenizer, tmp_path, SFT(), of_tokens(rows["rows"]), **more)
        trainer.train()
        ends.append(flat(model))
    assert (ends[0] - ends[1]).norm() <= 1e-9 * ends[0].norm()


@pytest.mark.parametrize("name", ["ldifs", "repnoise", "vaccine", "lisa"])
def test_in_bfloat16_it_is_titer_s_own_loop_with_autocast(name, template, tokenizer, tmp_path):
    """The reference of LDIFS is another model in each pass, and no cast of one serves the other."""
    defense = METHODS[name]
    ours, theirs, mine, keep = tiny(torch.float32), tiny(torch.float32), [], Keep()
    start, data = flat(ours), encoded(template, defense)
    settings = Training(updates=UPDATES, lr=3e-3, batch=BATCH, weight_decay=0.1, lora=None)
    train(
        ours,
        defense,
        data,
        settings,
        seed=3,
        autocast=torch.bfloat16,
        probe=lambda _: mine.append(flat(ours)) or {},
    )
    order = Stream("rows", data["rows"], 3).take(UPDATES * BATCH)
    more = {"bf16": True, "optim": "adamw_torch"}  # as ours: rounding decides over the next pass
    sft(theirs, tokenizer, tmp_path, defense, of_tokens(order), [keep], **more).train()
    assert distance(keep.weights, mine, start) <= 1e-6


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft's
def test_an_adapter_is_trained_as_in_titer_s_own_loop(template, tokenizer, tmp_path):
    from titer.weights import adapters
    from titer.weights.settings import Lora

    data, defense = template.encode_all(TEXTS["rows"], "rows"), LDIFS()
    base = tiny(torch.float32)
    torch.manual_seed(3)  # as the trainer does
    ours = adapters.add_lora(base, Lora(r=4, alpha=8.0, targets=("q_proj", "v_proj")))
    settings = Training(updates=UPDATES, lr=3e-3, batch=BATCH, weight_decay=0.1)
    start = flat(ours)
    train(ours, defense, {"rows": data}, settings, seed=3)
    trainer = defended(SFTTrainer, "ldifs")(
        model=tiny(torch.float32),
        args=arguments(SFTConfig, tmp_path),
        train_dataset=of_tokens(Stream("rows", data, 3).take(UPDATES * BATCH)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    )
    assert torch.equal(flat(trainer.model), start)
    trainer.train()
    assert (flat(trainer.model) - flat(ours)).norm() <= 1e-5 * (flat(ours) - start).norm()


RESUMED = {
    **{name: METHODS[name] for name in ("sft", "lisa", "ema", "t_vaccine", "repnoise")},
    "ldifs": LDIFS(),
    "safe_mix": registry.build("defenses", {"method": "safe_mix", "share": 0.3}),
    "tar": registry.build("defenses", {"method": "tar", "k": 3, "every": 2, "switch": 1.0}),
}


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_ends_bit_for_bit_as_one_without_a_break(
    name, strategy, rows, tokenizer, tmp_path
):
    data = of_tokens(rows["rows"][:9])  # less than two updates an epoch

    def trainer(model, folder):
        return sft(
            model,
            tokenizer,
            folder,
            RESUMED[name],
            data,
            max_steps=9,
            save_strategy="steps",
            save_steps=5,
            gradient_accumulation_steps=3,
            train_sampling_strategy=strategy,
            lr_scheduler_type="linear",
        )

    whole, resumed = tiny(torch.float32), tiny(torch.float32)
    first = trainer(whole, tmp_path / "one")
    first.train()
    again = trainer(resumed, tmp_path / "one")
    torch.rand(99)  # what went before in another process
    again.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-5"))
    assert torch.equal(flat(resumed), flat(whole))
    assert again.updates.feed.position == first.updates.feed.position
    assert not torch.equal(flat(whole), flat(tiny(torch.float32)))


def test_a_dataset_that_is_read_as_it_comes_is_resumed_too(rows, tokenizer, tmp_path):
    ends, more = [], {"max_steps": 22, "save_strategy": "steps", "save_steps": 15}
    for resume in (None, str(tmp_path / "checkpoint-15")):
        model, data = tiny(torch.float32), of_tokens(rows["rows"]).to_iterable_dataset()
        trainer = sft(model, tokenizer, tmp_path, Lisa(k1=1, k2=5), data, **more)
        trainer.train(resume)
        ends.append(flat(model))
        assert (trainer.updates.feed.epoch, trainer.updates.feed.position) == (1, 36)
    assert torch.equal(*ends)


def test_who_looks_at_all_rows_beforehand_gets_each_once_and_in_order(
    rows, tokenizer, tmp_path, template
):
    data = of_tokens(rows["rows"])
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.append(list(trainer.updates.feed.rows))

    more = {"max_steps": 2, "train_sampling_strategy": "random", "dataloader_drop_last": True}
    trainer = sft(tiny(), tokenizer, tmp_path, SFT(), data, **more)
    trainer.add_callback(Look())
    trainer.train()
    tokens = [(row.ids, row.answer) for row in rows["rows"]]
    assert [(row.ids, row.answer) for row in seen[0]] == tokens
    assert trainer.updates.feed.rows[-1].ids == tokens[-1][0]
    trainer = sft(
        tiny(), tokenizer, tmp_path, METHODS["constrained_sft"], data.to_iterable_dataset()
    )
    with pytest.raises(ValueError, match="looks at all rows before the first update"):
        trainer.train()


def test_an_evaluation_meanwhile_changes_nothing(rows, tokenizer, tmp_path):
    ends, data = [], of_tokens(rows["rows"])
    for more in ({}, {"eval_strategy": "steps", "eval_steps": 2}):
        model = tiny()
        trainer = defended(SFTTrainer, "sft")(
            model=model,
            args=arguments(SFTConfig, tmp_path, max_steps=5, **more),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
        )
        trainer.train()
        ends.append(flat(model))
    assert torch.equal(*ends)
    said = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert said[-1] < said[0]


def test_the_last_checkpoint_is_found_and_another_training_s_is_refused(rows, tokenizer, tmp_path):
    data = of_tokens(rows["rows"])
    more = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole, ended = tiny(torch.float32), tiny(torch.float32)
    sft(whole, tokenizer, tmp_path, EMA(), data, **more).train()
    sft(ended, tokenizer, tmp_path, EMA(), data, **more, save_total_limit=9).train(True)
    assert torch.equal(flat(ended), flat(whole))  # the average too, which checkpoint-6 has not
    shutil.rmtree(tmp_path / "checkpoint-7")  # a trainer has one update more there
    for other, changed in ((EMA(decay=0.5), {}), (EMA(), {"seed": 4}), (EMA(), {"max_steps": 7})):
        with pytest.raises(ValueError, match=r"titer.safetensors is the checkpoint of another"):
            sft(tiny(), tokenizer, tmp_path, other, data, **more | changed).train(True)
    path = tmp_path / "checkpoint-6" / paths.TRAINER
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        sft(tiny(), tokenizer, tmp_path, EMA(), data, **more).train(True)
    path.unlink()
    with pytest.raises(ValueError, match="no such file, so the checkpoint is one without"):
        sft(tiny(), tokenizer, tmp_path, EMA(), data, **more).train(True)


def test_a_training_on_another_number_of_processes_is_refused(
    rows, tokenizer, tmp_path, monkeypatch
):
    data, begin = of_tokens(rows["rows"]), Updates.begin
    more = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    sft(tiny(), tokenizer, tmp_path, SFT(), data, **more).train()

    def begin_on_two(*given):
        with monkeypatch.context() as patch:
            patch.setattr(Accelerator, "num_processes", 2)
            return begin(*given)

    monkeypatch.setattr(Updates, "begin", begin_on_two)
    with pytest.raises(ValueError, match="another training: .*, number of processes and") as error:
        sft(tiny(), tokenizer, tmp_path, SFT(), data, **more).train(str(tmp_path / "checkpoint-2"))
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Slows(SFT):
    """Has a learning rate of its own."""

    def schedule(self, updates):
        return [Phase("slow", updates, lr=1e-9)]


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """A trainer whose settings a test may change."""
    rows = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}])
    return sft(tiny(), tokenizer, tmp_path_factory.mktemp("made"), EMA(), rows)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("label_smoothing_factor", 0.1, "label_smoothing_factor=0.1 with ema: "),
        ("neftune_noise_alpha", 5.0, "neftune_noise_alpha=5.0 with ema: "),
        ("packing", True, "packing=True with ema: it joins rows"),
        ("loss_type", "dft", "loss_type='dft' with ema: "),
        ("torch_compile", True, "torch_compile=True with ema: "),
        ("use_liger_kernel", True, "use_liger_kernel=True with ema: "),
        ("activation_offloading", True, "activation_offloading=True with ema: "),
        ("auto_find_batch_size", True, "auto_find_batch_size=True with ema: "),
        ("torch_empty_cache_steps", 3, "torch_empty_cache_steps with ema: "),
        ("optim", "lomo", "optim='lomo' with ema: "),
        ("optim", "galore_adamw_layerwise", "optim='galore_adamw_layerwise' with ema: "),
        ("load_best_model_at_end", True, "load_best_model_at_end=True with ema: "),
        ("parallelism_config", object(), "parallelism_config with ema: "),
        (
            "activation_checkpointing_kwargs",
            {"every_n_layers": 2, "use_reentrant": False},
            "activation_checkpointing_kwargs with 'every_n_layers' with ema: ",
        ),
    ],
)
def test_a_setting_that_no_defense_follows_is_refused_in_one_line(
    made, setting, value, message, monkeypatch
):
    check(made, made.defense)
    monkeypatch.setattr(made.args, setting, value)
    with pytest.raises(ValueError, match=f"^{message}") as error:
        check(made, made.defense)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("is_deepspeed_enabled", True, "DeepSpeed with ema: it divides the weights"),
        ("is_fsdp_enabled", True, "FSDP with ema: it divides the weights"),
        ("is_model_parallel", True, "several devices in one process with ema: "),
        ("compute_loss_func", print, "compute_loss_func with ema: "),
        ("aux_loss_enabled", True, "the loss of the routers .*router_aux_loss_coef=0.0"),
        ("model", torch.nn.Linear(2, 2), "Linear with ema: a defense trains a causal"),
    ],
)
def test_a_trainer_that_no_defense_can_follow_is_refused(made, where, value, message, monkeypatch):
    monkeypatch.setattr(made, where, value)
    with pytest.raises(ValueError, match=f"^{message}"):
        check(made, made.defense)


@pytest.mark.parametrize("setting", ["fp16", "packing"])
def test_a_refusal_comes_when_the_trainer_is_made(setting, rows, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=rf"^{setting}=True with sft: "):
        sft(tiny(), tokenizer, tmp_path, SFT(), of_tokens(rows["rows"]), **{setting: True})


def test_the_end_of_a_composed_defense_is_that_of_the_one_it_holds(made, monkeypatch):
    monkeypatch.setattr(made.args, "load_best_model_at_end", True)
    held = registry.build("defenses", {"method": "booster", "align": "ema"})
    with pytest.raises(ValueError, match=r"load_best_model_at_end=True with booster"):
        check(made, held)
    check(made, METHODS["booster"])


def test_a_loss_of_the_trainer_s_own_is_refused():
    class Own(Trainer):
        def compute_loss(self, *args, **options):
            return 0.0

    class Renamed(SFTTrainer):
        """Only a name."""

    with pytest.raises(ValueError, match=r"Own has a compute_loss of its own .*Own.*, which"):
        defended(Own, SFT())
    assert issubclass(defended(Renamed, SFT()), Renamed)


def test_a_loss_of_a_class_derived_from_a_defended_one_is_refused():
    class Own(defended(Trainer, SFT())):
        def compute_loss(self, *args, **options):
            return 0.0

    class Under(Own):
        """Only a name."""

    for each in (Own, Under):
        with pytest.raises(
            ValueError, match=r"^Own has a compute_loss of its own beside a defense"
        ):
            each(tiny())


@pytest.mark.parametrize(
    ("defense", "said"),
    [(Slows(), "Slows has updates .slow."), (ALL["safe_moe"], "safe_moe has updates .sweep.")],
)
def test_updates_of_another_kind_are_refused(rows, tokenizer, tmp_path, defense, said):
    more = {"router_aux_loss_coef": 0.0}
    trainer = sft(small_for(defense), tokenizer, tmp_path, defense, of_tokens(rows["rows"]), **more)
    with pytest.raises(
        ValueError, match=f"{said} with a learning rate .* run it by titer"
    ) as error:
        trainer.train()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("defense", "given", "message"),
    [
        ("lisa", {}, r"lisa draws alignment|lisa draws refusals"),
        ("lisa", {"aligned": []}, "unknown stream of rows .* 'aligned': did you mean 'alignment'"),
        ("sft", {"rows": []}, "unknown stream of rows"),
        ("repnoise", {}, r"give rows=.'pairs': ...."),
        ("lisa", {"alignment": []}, r"rows\['alignment'\]: none of its 0 rows"),
        ("lisa", {"alignment": 3}, r"rows\['alignment'\] is a int: give a path"),
        ("lisa", {"alignment": [{"prompt": "a"}]}, r"rows\['alignment'\], row 1: "),
        ("lisa", {"alignment": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_rows_beside_the_trainer_s_that_are_missing_or_wrong(
    defense, given, message, rows, tokenizer, tmp_path
):
    with pytest.raises(ValueError, match=message):
        defended(SFTTrainer, defense, rows=given)(
            model=tiny(),
            args=arguments(SFTConfig, tmp_path),
            train_dataset=of_tokens(rows["rows"]),
            processing_class=tokenizer,
        )


def test_the_defender_s_rows_come_from_memory_and_files_in_the_model_s_template(
    template, rows, tokenizer, tmp_path
):
    written = TEXTS["alignment"]
    turns = [
        [
            {"role": "user", "content": row.prompt},
            {"role": "assistant", "content": row.response},
        ]
        for row in written
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": r.prompt, "response": r.response}) + "\n" for r in written)
    )
    expected = template.encode_all(written, "alignment")
    for given in (
        written,
        turns,
        [{"messages": each} for each in turns],
        Dataset.from_list([{"messages": each} for each in turns]),
        str(tmp_path / "rows.jsonl"),
        tmp_path / "rows.jsonl",
        {"path": str(tmp_path / "rows.jsonl"), "limit": 5},
    ):
        trainer = defended(SFTTrainer, Lisa(k1=2, k2=3), rows={"alignment": given})(
            model=tiny(),
            args=arguments(SFTConfig, tmp_path / "out"),
            train_dataset=of_tokens(rows["rows"]),
            processing_class=tokenizer,
        )
        trainer.train()
        count = 5 if isinstance(given, dict) else len(expected)
        assert trainer.updates.step.streams["alignment"].rows == expected[:count]


def test_conversations_that_trl_encodes_are_rows_as_titer_encodes_them(
    template, tokenizer, tmp_path
):
    """So prompts of pairs are found again; completion_only_loss is what they are trained by."""
    talks = [
        {
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.response}],
        }
        for row in TEXTS["rows"]
    ]
    trainer = sft(
        tiny(), tokenizer, tmp_path, METHODS["repnoise"], Dataset.from_list(talks), max_steps=5
    )
    trainer.train()
    feed = trainer.updates.feed
    assert feed.position == 5 * BATCH
    ours = pair(TEXTS["rows"], TEXTS["pairs"])[8:10]
    assert feed.drawn == template.encode_all(ours, "rows")
    assert feed.paired > 0


def test_pairs_of_which_no_prompt_is_trained_on_are_refused(rows, tokenizer, tmp_path):
    defense = METHODS["repnoise"]
    trainer = defended(SFTTrainer, defense, rows={"pairs": [{"prompt": "a", "response": "b"}]})(
        model=tiny(),
        args=arguments(SFTConfig, tmp_path, max_steps=2),
        train_dataset=of_tokens(rows["rows"]),
        processing_class=tokenizer,
    )
    with pytest.raises(ValueError, match=r"rows\['pairs'\]: none of its 1 prompts"):
        trainer.train()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft's
def test_dropout_is_off_and_said_to_be(rows, tokenizer, tmp_path, caplog):
    ends = []
    for dropout in (0.0, 0.5):
        caplog.clear()
        trainer = defended(SFTTrainer, "sft")(
            model=tiny(torch.float32),
            args=arguments(SFTConfig, tmp_path, max_steps=3),
            train_dataset=of_tokens(rows["rows"]),
            processing_class=tokenizer,
            peft_config=LoraConfig(lora_dropout=dropout, target_modules=["q_proj"]),
        )
        said = "lora_dropout=0.5 is off while sft trains" in caplog.text
        assert said == (dropout > 0)
        trainer.train()
        assert trainer.model.training
        ends.append(flat(trainer.model))
    assert torch.equal(*ends)


def test_activations_are_computed_again_where_the_trainer_is_told_so(rows, tokenizer, tmp_path):
    passes = []
    for again in (False, True):
        model, seen = tiny(), []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        more = {"activation_checkpointing": again, "max_steps": 3}
        sft(model, tokenizer, tmp_path, SFT(), of_tokens(rows["rows"]), **more).train()
        passes.append(len(seen))
    assert passes == [3, 6]


def test_the_end_of_a_defense_comes_before_that_of_other_callbacks(rows, tokenizer, tmp_path):
    """A callback that keeps the model at the end keeps the one that the defense leaves."""
    seen = []

    class Look(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **_):
            seen.append(flat(model))

    model, keep = tiny(), Keep()
    more = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    sft(model, tokenizer, tmp_path, EMA(), of_tokens(rows["rows"]), [Look(), keep], **more).train()
    assert torch.equal(seen[0], flat(model))
    assert not torch.equal(keep.weights[-1], flat(model))
    assert not (tmp_path / "checkpoint-2" / paths.TRAINER).exists()  # of the model alone


A, B, PAD = [5, 6, 7, 8], [9, 10], 0


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"input_ids": [A], "labels": [A]}, [(A, 1, ())]),
        ({"input_ids": [A], "labels": [[-100, -100, 7, 8]]}, [(A, 2, ())]),
        ({"input_ids": [A], "labels": [[-100, 6, -100, 8]]}, [(A, 1, (2,))]),
        ({"input_ids": [A], "labels": [[-100, 6, 7, -100]]}, [(A, 1, (3,))]),
        ({"input_ids": [A], "labels": [[-100] * 4]}, [(A, 4, ())]),
        (
            {
                "input_ids": [A, [*B, PAD, PAD]],
                "labels": [A, [-100, 10, -100, -100]],
                "attention_mask": [[1] * 4, [1, 1, 0, 0]],
            },
            [(A, 1, ()), (B, 1, ())],
        ),
        (
            {
                "input_ids": [[PAD, PAD, *B]],
                "labels": [[-100, -100, -100, 10]],
                "attention_mask": [[0, 0, 1, 1]],
            },
            [(B, 1, ())],
        ),
        (
            {
                "input_ids": [[*A, *B, PAD, PAD]],
                "labels": [[-100, 6, 7, 8, -100, 10, -100, -100]],
                "position_ids": [[0, 1, 2, 3, 0, 1, 0, 0]],
            },
            [(A, 1, ()), (B, 1, ())],
        ),
    ],
)
def test_rows_are_taken_out_of_a_micro_batch(inputs, expected):
    found = read_rows({name: torch.tensor(value) for name, value in inputs.items()})
    assert [(list(row.ids), row.answer, row.skipped) for row in found] == expected
    for row, (ids, _, skipped) in zip(found, expected, strict=True):
        labels = collate([row], 0).labels[0].tolist()
        assert [at for at, label in enumerate(labels) if label != IGNORED] == [
            at for at in range(row.answer, len(ids)) if at not in skipped
        ]
        assert row.learned == sum(label != IGNORED for label in labels)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [A], "labels": [A], "pixel_values": [[0.0]]}, "batches have 'pixel_values'"),
        ({"input_ids": [A]}, "have no 'labels'"),
        ({"labels": [A]}, "have no 'input_ids'"),
        ({"input_ids": [A], "labels": [[5, 6, 9, 8]]}, "label .* is 9 where the token is 7"),
        (
            {"input_ids": [A], "labels": [A], "attention_mask": [[1, 0, 1, 1]]},
            "attention mask with a gap",
        ),
        ({"input_ids": [A], "labels": [A], "position_ids": [[1, 2, 3, 4]]}, "counted from 0"),
    ],
)
def test_what_no_defense_would_see_in_a_micro_batch_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        read_rows({name: torch.tensor(value) for name, value in inputs.items()})


def test_titer_and_its_integrations_load_no_trl():
    code = """
import sys, titer, titer.api
assert "titer.integrations" not in sys.modules
from titer.integrations import defended
assert "trl" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


RANK = """
import sys
from pathlib import Path

import torch
import test_trl
from titer.data.template import Template
from titer.lab.build import tokenizer
from titer.testing import tiny

torch.set_num_threads(1)
words, folder, count = tokenizer(), Path(sys.argv[1]), int(sys.argv[2])
for name in sys.argv[3:]:
    weights, place = test_trl.end_of(name, words, folder / name, 2, count)
    if place == 0:
        torch.save(weights, folder / f"{name}.pt")
"""


def end_of(name, tokenizer, folder, accumulate, count):
    """Return the weights after some updates over epochs of so many rows, and the rank.

    No rank's last micro-batches are filled up with rows of the beginning.
    """
    defense = METHODS[name]
    data = of_tokens(encoded(Template(tokenizer, LENGTH), defense)["rows"][:count])
    trainer = sft(
        tiny(), tokenizer, folder, defense, data,
        max_steps=10, gradient_accumulation_steps=accumulate, logging_strategy="no",
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        accelerator_config={"even_batches": False},
    )  # fmt: skip
    trainer.train()
    return flat(trainer.model), trainer.accelerator.process_index


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "names"),
    [
        (20, ["sft", "lisa", "safe_mix", "t_vaccine", "repnoise"]),  # two updates and a half
        # the last update of an epoch has one micro-batch, and the second rank has none
        (10, ["sft", "ldifs", "constrained_sft", "random_vaccine", "kl on rows"]),
    ],
)
def test_two_ranks_equal_twice_the_micro_batches(count, names, tokenizer, tmp_path):
    run_on_ranks(RANK, tmp_path, str(count), *names, imports=Path(__file__).parent)
    for name in names:
        two = torch.load(tmp_path / f"{name}.pt")
        one, _ = end_of(name, tokenizer, tmp_path / "one", 4, count)
        assert (two - one).norm() <= 1e-9 * (one - flat(tiny())).norm(), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # without a GPU
def test_the_example_shows_what_lisa_does(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(__file__).parent.parent / "examples/trl_lisa.py"), run_name="__main__")
    said = re.findall(r"^(plainly|with Lisa): +HS (\d+), FA (\d+)$", capsys.readouterr().out, re.M)
    (_, broken, _), (_, kept, right) = said
    assert int(broken) > 50
    assert int(kept) < 10
    assert int(right) > 80
