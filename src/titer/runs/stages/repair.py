"""A stage that edits what fine-tuning added to an aligned model, one weight at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from titer.data.batches import Batch, Encoded
from titer.methods import Changes, UpdateEdit
from titer.registry import describe
from titer.runs.stages.edit import EditStage
from titer.runs.stages.stage import Work
from titer.training import probes
from titer.training.losses import pad_of
from titer.weights import adapters, checkpoints, experts, folders, language
from titer.weights.energy import removed_energy
from titer.weights.finetuned import PREFIX, FineTuned, open_named
from titer.weights.rewrite import rewrite_update
from titer.weights.settings import Checkpoint
from titer.weights.targets import select

CALIBRATION_BATCH = (
    16  # rows of a batch that an edit calibrates on; its result does not depend on it
)


class RepairStage(EditStage):
    """Edit the update of a fine-tuned model: an adapter, or a whole model beside the aligned one."""

    def rewrite(
        self, work: Work, folder: Path, scratch: Path
    ) -> tuple[Changes, str, dict[str, Any]]:
        assert isinstance(self.method, UpdateEdit)
        assert self.start is not None
        edit, model = self.method, work.checkpoint(self.start)
        checkpoint = {name: work.checkpoint(stage) for name, stage in self.others.items()}
        files = {
            name: self.whole_files(of, scratch / name)
            for name, of in checkpoint.items()
            if name in ("base", "aligned")
        }
        empty = checkpoints.skeleton(model)
        joined = edit.needs.factors and edit.keeps_rank  # its unit is what has factors of its own
        tuned = FineTuned.of(folders.locate(model), files.get("aligned"), empty, joined)
        names = weights_of(edit, tuned, empty)
        references: dict[str, Any] = {
            name: FineTuned.of(folders.locate(of), tuned.started, empty, joined)
            for name, of in checkpoint.items()
            if name in ("safe", "unsafe")
        }
        if "base" in files:
            references["base"] = open_named(files["base"], empty, joined)
        seen, unreached = self._observe(edit, model, tuned, names)
        watch = work.progress.advance
        changes = rewrite_update(edit, tuned, names, references, seen, folder, watch)
        facts = parts_of(edit, tuned, names, changes)
        if unreached:
            facts["matrices of experts that no row reached"] = len(unreached)
        if self.looks:
            edited = folders.locate(self.asking.at(folder))
            after = FineTuned.of(edited, tuned.started, empty, joined)
            facts["removed energy"] = self._removed_energy(model, tuned, after, names)
        return changes, "strengthen it", facts

    def _observe(
        self, edit: UpdateEdit, model: Checkpoint, tuned: FineTuned, names: list[str]
    ) -> tuple[Mapping[str, Any], list[str]]:
        """Let an edit watch forward passes over its rows.

        Returns what it keeps, by weight, and the weights of experts that no row reached.
        """
        if edit.needs.watches is None:
            return {}, []
        aligned = replace(model, path=str(tuned.started.folder), revision=None, base=None)
        opened, template = self.asking.open(model if edit.needs.watches == "finetuned" else aligned)
        rows = template.encode_all(self.rows, "calibration")
        layers = layers_of(opened, names)
        seen = edit.observe(opened, layers, [batch_of(opened, rows)])
        return seen, [
            name
            for name, layer in layers.items()
            if isinstance(layer, experts.Routed) and not layer.reached
        ]

    def _removed_energy(
        self, model: Checkpoint, before: FineTuned, after: FineTuned, names: list[str]
    ) -> dict[str, float]:
        """Measure the share of the update's energy that an edit removed from linear layers, by kind
        of rows.
        """
        from peft.tuners.lora import LoraLayer

        opened, template = self.asking.open(model)
        linear = {
            name: layer
            for name, layer in layers_of(opened, names).items()
            if isinstance(layer, nn.Linear | LoraLayer)
        }
        found = {}
        for name, rows in self.looks.items():
            encoded = template.encode_all(rows[: probes.ROWS], name)
            found[name] = removed_energy(opened, linear, before, after, batch_of(opened, encoded))
        return found


def weights_of(edit: UpdateEdit, tuned: FineTuned, empty: PreTrainedModel) -> list[str]:
    """Name the weights that an edit works on, of a model with the layers of `empty`.

    Raises where there are none, or where it needs an adapter and there is none.
    """
    needs = edit.needs
    if needs.factors and not tuned.factors:
        raise ValueError(
            f"the edit {describe(edit)} works on the factors of an adapter, and "
            f"{tuned.files.name!r} is a whole model: "
            "choose another target, or another edit"
        )
    if tuned.factors:
        return select(tuned.factors, needs.targets)
    if needs.whole:
        return select(tuned.whole, needs.targets)
    head = empty.get_output_embeddings()
    linear = [name for name, of in language.linear_layers(empty).items() if of is not head]
    if not linear:
        raise ValueError(
            f"model {tuned.files.name!r} has no linear layers but its head "
            f"({type(empty).__name__}): no edit of them can "
            "be applied"
        )
    return select(
        [
            *(f"{name}.weight" for name in linear if f"{name}.weight" in tuned.whole),
            *experts.find_experts(tuned.whole, empty),
        ],
        needs.targets,
    )


def parts_of(
    edit: UpdateEdit, tuned: FineTuned, names: Sequence[str], changes: Changes
) -> dict[str, Any]:
    """Say how much of the update the edit worked on, and what of it was left as it was.

    The share is of the update's energy, the square of its norm.
    """
    rest = [name for name in {**tuned.factors, **tuned.whole} if name not in set(names)]
    # embeddings of more tokens have no update over those of fewer
    known = [name for name in rest if tuned.is_updated(name)]
    left = math.hypot(*(tuned.update(name).norm() for name in known))
    energy = changes.norm_before**2 + left**2
    facts: dict[str, Any] = {
        "share of the update edited": changes.norm_before**2 / energy if energy else 1.0,
        "norm of the rest of the update": left,
    }
    if tuned.factors and tuned.whole:
        facts["held whole"] = sorted(tuned.whole)
    sides = {side: [getattr(of, side).name for of in tuned.factors.values()] for side in "ab"}
    untouched = [
        side.upper()
        for side, of in sides.items()
        if of and of[0] in changes.changed and not any(changes.changed.get(name) for name in of)
    ]
    if untouched and changes.count and edit.entrywise:
        facts["factors left as they were"] = untouched
    return facts


def layers_of(model: PreTrainedModel, names: Sequence[str]) -> dict[str, nn.Module]:
    """Find the layer of every weight, an adapted one with its adapter.

    A bias has none. Where there are experts the model is taken apart for them.
    """
    prefix, modules = PREFIX if adapters.has_adapter(model) else "", dict(model.named_modules())
    base: PreTrainedModel = model.get_base_model() if prefix else model  # type: ignore[operator]
    places = experts.find_experts(names, base)
    if places:
        stacked = adapters.adapters(model) if prefix else {}
        experts.take_apart(base, {name.removeprefix(PREFIX): of for name, of in stacked.items()})
    found = {
        name: experts.layer_of(base, places[name])
        if name in places
        else modules.get(prefix + name.removesuffix(".weight"))
        for name in names
        if name in places or name.endswith(".weight")
    }
    return {name: layer for name, layer in found.items() if layer is not None}


def batch_of(model: PreTrainedModel, rows: list[Encoded]) -> Batch:
    """Put rows into one batch of several parts."""
    chunks = [rows[i : i + CALIBRATION_BATCH] for i in range(0, len(rows), CALIBRATION_BATCH)]
    return Batch.of("calibration", chunks, pad_of(model))
