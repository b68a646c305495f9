"""A stage computed: a model trained, edited or scored as a setting says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from titer.weights import adapters, checkpoints, energy, folders
from titer.training import effect, probes
from titer.data.batches import Batch, Encoded
from titer.defenses.sft import SFT
from titer.scoring.figures import JUDGED
from titer.scoring.evaluate import Evaluation, evaluate
from titer.training.layers import checkpointed
from titer.methods import Changes, Defense, Edit, Label, Retraining, TensorEdit, UpdateEdit
from titer.weights.settings import Checkpoint
from titer.runs.recipe import describe
from titer.registry import name_of
from titer.weights.rewrite import compare, rewrite_tensors, rewrite_update
from titer.runs.setting import Setting
from titer.runs.store import write
from titer.weights.tensors import open_tensors
from titer.data.template import Template
from titer.training.settings import Watch
from titer.training.train import accelerator_for, train
from titer.weights.finetuned import FineTuned, PREFIX, select

UPDATES = 100  # between two checkpoints of a stage
UNSCORED = 0.02  # of a benchmark's prompts: more of them could hide a difference that a few hundred prompts would show
CHANGES = "changes.json"  # beside an edited model
CALIBRATION_BATCH = 16  # rows of a batch that an edit calibrates on; its result does not depend on it


def trained(
    setting: Setting, model: PreTrainedModel, template: Template, kind: str, defense: Defense, resume: Path, watch: Watch
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model after a stage, its fresh adapter unmerged, and what is to be known of it."""
    recipe, training = setting.recipe, setting.recipe.training(kind)
    assert training is not None
    model = adapters.merged(model)
    autocast, start = None, None
    torch.manual_seed(recipe.seed)  # of the fresh adapter's weights
    if training.lora:
        model = adapters.add_lora(model, training.lora)
    else:
        autocast = _widened(model)
        start = effect.copy_trainable(model)
    encoded = {name: template.encode_all(rows, name) for name, rows in setting.streams(kind, defense).items()}
    with checkpointed(model) if recipe.gradient_checkpointing else nullcontext():
        looking = _probes(setting, model, template, autocast) if kind == "finetune" and recipe.probes else None
        start_probe = looking.measure() if looking else {}

        def probe(update: int) -> dict[str, float]:
            return looking.measure() if looking and update % recipe.probes == 0 else {}

        history = train(
            model, defense, encoded, training, recipe.seed, autocast=autocast, resume=resume, every=UPDATES, watch=watch, probe=probe
        )
    if autocast is not None:
        cast(nn.Module, model).to(autocast)
    return model, {
        "adapter": "fresh, over the merged weights of the stage before" if training.lora else "none: all weights",
        "rows": {name: len(rows) for name, rows in encoded.items()},
        **({"harmful rows": setting.harmful_rows, "attack rows": setting.attack_rows} if kind == "finetune" else {}),
        "rows cut": sum(row.cut > 0 for rows in encoded.values() for row in rows),
        "terms at the first update": history[0],
        "terms at the last update": history[-1],
        "loss": effect.loss_fall(history),
        **({"probes": probes.told(history, start_probe)} if looking else {}),
        "weights moved": effect.weights_moved(model, start),
    }


def _probes(setting: Setting, model: PreTrainedModel, template: Template, autocast: torch.dtype | None) -> probes.Probes:
    """Probes on held-out harm prompts with their answers, and on alignment rows."""
    known = [row for row in setting.roles.benchmarks["harm"] if row.response]
    harmful, aligned = (
        template.encode_all(rows[: probes.ROWS], name) for name, rows in (("harm", known), ("alignment", setting.roles.alignment))
    )
    return probes.on(model, harmful, aligned, accelerator_for(), autocast)


def edited(
    setting: Setting, edit: Edit, model: Checkpoint, references: Mapping[str, Checkpoint], folder: Path, watch: Watch
) -> dict[str, Any]:
    """Write the edited model into a folder; what was changed, which `changes.json` there has by tensor. Raises where nothing was.

    `references` has the other models that the edit asks for. The `base` has to be there before release, the `aligned` model after
    fine-tuning, unless the fine-tuned one is an adapter, which lies over it.
    """
    scratch, facts = folder / "merged", dict[str, Any]()
    files = {name: _whole(setting, of, scratch / name) for name, of in references.items() if name in ("base", "aligned")}
    if isinstance(edit, TensorEdit):
        changes = rewrite_tensors(edit, _whole(setting, model, scratch / "model"), files["base"], folder, watch)
        mend = "the base holds the weights of the aligned model, or the step is lost in their dtype"
    elif isinstance(edit, Retraining):
        tuned = FineTuned.of(folders.locate(model), files.get("aligned"))
        _retrain(setting, edit, model, folder, watch)
        changes, mend = compare(tuned, FineTuned.of(folders.locate(Checkpoint(str(folder))), tuned.started)), "train it longer"
    else:
        assert isinstance(edit, UpdateEdit)
        tuned = FineTuned.of(folders.locate(model), files.get("aligned"))
        names = _weights(edit, tuned, model)
        others = {name: FineTuned.of(folders.locate(of), tuned.started) for name, of in references.items() if name in ("safe", "unsafe")}
        base = {"base": open_tensors(files["base"])} if "base" in files else {}
        changes = rewrite_update(edit, tuned, names, {**others, **base}, _seen(setting, edit, model, tuned, names), folder, watch)
        mend = "strengthen it"
        if tuned.factors and tuned.whole:
            facts["held whole"] = sorted(tuned.whole)
        if setting.recipe.probes:
            facts["removed energy"] = _removed(
                setting, model, tuned, FineTuned.of(folders.locate(Checkpoint(str(folder))), tuned.started), names
            )
    shutil.rmtree(scratch, ignore_errors=True)
    write(
        folder / CHANGES,
        [
            {"tensor": name, "entries": changes.sizes[name], "changed": changes.changed[name], "norm of the change": changes.moved[name]}
            for name in changes.sizes
        ],
    )
    return _told(edit, changes, mend) | facts


def _retrain(setting: Setting, edit: Retraining, start: Checkpoint, folder: Path, watch: Watch) -> None:
    """Train a fine-tuned model further: its adapter, or all its weights."""
    model, template = setting.opened(start)
    dtype = None
    if not adapters.carried(model):
        dtype = _widened(model)
    rows = {"rows": template.encode_all(setting.calibration(edit), "rows")}
    train(model, SFT(), rows, edit.training(setting.recipe.finetune), setting.recipe.seed, autocast=dtype, watch=watch)
    if dtype is not None:
        cast(nn.Module, model).to(dtype)
    checkpoints.save(model, template.tokenizer, folder, folders.locate(start).base)


def _widened(model: PreTrainedModel) -> torch.dtype | None:
    """Keep all weights in float32 to train them, since an update is often less than the step between two coarse numbers.

    What they are computed in, where that is another dtype.
    """
    model.requires_grad_(True)  # merging leaves what it merged frozen
    dtype = model.dtype
    cast(nn.Module, model).float()
    return dtype if dtype != torch.float32 else None


def _weights(edit: UpdateEdit, tuned: FineTuned, model: Checkpoint) -> list[str]:
    """The weights that an edit works on. Raises where there are none, or where it needs an adapter and there is none."""
    if edit.needs.factors and not tuned.factors:
        raise ValueError(
            f"the edit {describe(edit)} works on the factors of an adapter, and {tuned.files.name!r} is a whole model: "
            "choose another target, or another edit"
        )
    if tuned.factors:
        return select(tuned.factors, edit.needs.targets)
    if edit.needs.whole:
        return select(tuned.whole, edit.needs.targets)
    empty = checkpoints.skeleton(model)
    linear = [
        name for name, module in empty.named_modules() if isinstance(module, nn.Linear) and module is not empty.get_output_embeddings()
    ]
    if not linear:
        raise ValueError(
            f"model {tuned.files.name!r} has no linear layers but its head ({type(empty).__name__}): no edit of them can be applied"
        )
    return select([f"{name}.weight" for name in linear if f"{name}.weight" in tuned.whole], edit.needs.targets)


def _seen(setting: Setting, edit: UpdateEdit, model: Checkpoint, tuned: FineTuned, names: list[str]) -> Mapping[str, Any]:
    """What an edit keeps of forward passes over its rows, by weight."""
    if edit.needs.watches is None:
        return {}
    watched = model if edit.needs.watches == "finetuned" else replace(model, path=str(tuned.started.folder), revision=None, base=None)
    opened, template = setting.opened(watched)
    rows = template.encode_all(setting.calibration(edit), "calibration")
    return edit.observe(opened, _layers(opened, names), [_batch(opened, rows)])


def _removed(setting: Setting, model: Checkpoint, before: FineTuned, after: FineTuned, names: list[str]) -> dict[str, float]:
    """The share of the update's energy that an edit removed from linear layers, on held-out harmful and task rows."""
    from peft.tuners.lora import LoraLayer

    opened, template = setting.opened(model)
    layers = {name: layer for name, layer in _layers(opened, names).items() if isinstance(layer, nn.Linear | LoraLayer)}
    found = {}
    for name in ("harm", "task"):
        known = [row for row in setting.roles.benchmarks.get(name, []) if row.response]
        rows = template.encode_all(known[: probes.ROWS], name)
        found[name] = energy.removed_energy(opened, layers, before, after, _batch(opened, rows))
    return found


def _layers(model: PreTrainedModel, names: list[str]) -> dict[str, nn.Module]:
    """The layer of every weight, an adapted one with its adapter. A bias has none, nor has an expert that others are fused with."""
    prefix, modules = PREFIX if adapters.carried(model) else "", dict(model.named_modules())
    found = {name: modules.get(prefix + name.removesuffix(".weight")) for name in names if name.endswith(".weight")}
    return {name: layer for name, layer in found.items() if layer is not None}


def _batch(model: PreTrainedModel, rows: list[Encoded]) -> Batch:
    chunks = [rows[i : i + CALIBRATION_BATCH] for i in range(0, len(rows), CALIBRATION_BATCH)]
    return Batch.of("calibration", chunks, model.config.pad_token_id or 0)


def _whole(setting: Setting, checkpoint: Checkpoint, scratch: Path) -> folders.Files:
    """The files of a checkpoint; those of an adapter's merged model are made."""
    files = folders.locate(checkpoint)
    if files.base is None:
        return files
    model, template = setting.opened(checkpoint)
    checkpoints.save(adapters.merged(model), template.tokenizer, scratch)
    return folders.locate(Checkpoint(str(scratch)))


def scored(setting: Setting, model: PreTrainedModel, template: Template, say: Callable[[str], None]) -> Evaluation:
    """The figures of a merged model. Raises where the judge could not score all but a few of the answers."""
    recipe, benchmarks = setting.recipe, setting.benchmarks
    found = evaluate(
        model, template, benchmarks, setting.judge, recipe.max_new_tokens, setting.roles.scorer, batch=recipe.answers_at_once, say=say
    )
    if "harm" in found.scores and found.scores["harm"].n == 0:
        reason = next(record.reason for record in found.records if record.benchmark == "harm")
        raise ValueError(f"the judge {name_of(setting.judge)!r} could not score any harm prompt ({reason}): choose another one")
    for name in sorted(JUDGED & found.scores.keys()):
        score = found.scores[name]
        if score.unscored > UNSCORED * (score.n + score.unscored):
            reason = next(record.reason for record in found.records if (record.benchmark, record.verdict) == (name, Label.UNSCORED))
            raise ValueError(
                f"the judge {name_of(setting.judge)!r} left {score.unscored} of {score.n + score.unscored} {name} prompts unscored, more "
                f"than {100 * UNSCORED:g} % ({reason}): give it what it needs, such as a longer input, or choose another one"
            )
    return found


def _told(edit: Edit, changes: Changes, mend: str) -> dict[str, Any]:
    """What an edit changed, as documents have it. Raises where it changed nothing."""
    entries = sum(changes.sizes.values())
    if changes.count == 0:
        raise ValueError(f"the edit {describe(edit)} changed none of {entries} entries: nothing to evaluate; {mend}")
    return {
        "changed entries": changes.count,
        "entries": entries,
        "tensors left as they were": sum(count == 0 for count in changes.changed.values()),
        "update norm before": changes.norm_before,
        "update norm after": changes.norm_after,
        **changes.facts,
    }
