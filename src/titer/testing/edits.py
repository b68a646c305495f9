"""The contract of an edit: given what it asks for, it writes finite values, twice the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from titer.data.batches import Batch
from titer.data.rows import Row, pair
from titer.lab.world import World
from titer.methods import Edit, Retraining, StreamEdit, TensorEdit, UpdateEdit
from titer.testing.small import adapted, moved, rows, save, sparse, state, tiny
from titer.training.settings import Training
from titer.training.writers import rewrite_stream
from titer.weights import adapters
from titer.weights.finetuned import PREFIX, FineTuned
from titer.weights.folders import Files
from titer.weights.rewrite import rewrite_tensors, rewrite_update
from titer.weights.targets import select
from titer.weights.tensors import Stored, open_tensors

FINETUNE = Training(updates=20, lr=1e-3, batch=4)


def edits_an_adapter(edit: UpdateEdit, folder: Path) -> None:
    """The update that an adapter holds is edited."""
    aligned = save(tiny(torch.float32), folder / "aligned")
    tuned = adapted(tiny(torch.float32), seed=1)
    _edit(edit, tuned, aligned, save(tuned, folder / "tuned", aligned), folder)


def edits_a_whole_model(edit: UpdateEdit, folder: Path) -> None:
    """The update of a model trained as a whole is edited, by an edit that needs no factors."""
    if edit.needs.factors:
        return
    aligned = save(tiny(torch.float32), folder / "aligned")
    tuned = moved(tiny(torch.float32), 0.01, seed=1)
    _edit(edit, tuned, aligned, save(tuned, folder / "tuned"), folder)


def _edit(
    edit: UpdateEdit, model: PreTrainedModel, aligned: Files, tuned: Files, folder: Path
) -> None:
    """Edit a fine-tuned model twice, and look at what came out."""
    needs, found = edit.needs, FineTuned.of(tuned, aligned)
    references = _references(edit, aligned, found, folder)
    before = _digests(folder)
    linear = [
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    ]
    names = select(found.factors or (found.whole if needs.whole else linear), needs.targets)
    watched = tiny(torch.float32) if needs.watches == "aligned" else model
    prefix = PREFIX if adapters.has_adapter(watched) else ""
    layers = {name: watched.get_submodule(prefix + name.removesuffix(".weight")) for name in names}
    batch = Batch.of("calibration", [rows()["harmful"][:6]], 0)
    for i in range(2):
        seen = edit.observe(watched, layers, [batch]) if needs.watches else {}
        place = folder / f"out{i}"
        place.mkdir()
        rewrite_update(edit, found, names, references, seen, place, lambda *_: None)
    _check(before, folder)


def _references(
    edit: UpdateEdit, aligned: Files, tuned: FineTuned, folder: Path
) -> dict[str, FineTuned | Mapping[str, Stored]]:
    """Make the other models that the edit asks for, and no others."""
    found: dict[str, FineTuned | Mapping[str, Stored]] = {}
    for i, name in enumerate(edit.needs.references):
        if name == "base":
            base = save(moved(tiny(torch.float32), 0.02, seed=9), folder / name)
            found[name] = open_tensors(base)
        elif tuned.factors:
            other = save(adapted(tiny(torch.float32), seed=10 + i), folder / name, aligned)
            found[name] = FineTuned.of(other, aligned)
        else:
            other = save(moved(tiny(torch.float32), 0.01, seed=10 + i), folder / name)
            found[name] = FineTuned.of(other, aligned)
    return found


def edits_before_release(edit: TensorEdit, folder: Path) -> None:
    """The tensors of an aligned model are edited by those of the base."""
    base = save(tiny(torch.float32), folder / "base")
    aligned = save(moved(tiny(torch.float32), 0.02, seed=1), folder / "aligned")
    before = _digests(folder)
    for i in range(2):
        place = folder / f"out{i}"
        place.mkdir()
        rewrite_tensors(edit, aligned, base, place, lambda *_: None)
    _check(before, folder)


def edits_what_is_written(edit: StreamEdit, folder: Path) -> None:
    """The weights that write to the residual stream are edited, of a dense and of a sparse model."""
    of = rows()
    for name, make in {"dense": tiny, "sparse": sparse}.items():
        (folder / name).mkdir()
        before = state(make(torch.float32))
        for i in range(2):
            model = make(torch.float32)
            changes = rewrite_stream(edit, model, of["harmful"], of["rows"][-12:])
            save(model, folder / name / f"out{i}")
        after = state(model)
        stray = [key for key in after if key not in changes.changed]
        assert all(torch.equal(before[key], after[key]) for key in stray), (
            "it changed other weights"
        )
        assert changes.count, "it changed nothing"
        _check({}, folder / name)


def chooses_rows_and_settings(edit: Retraining, folder: Path) -> None:
    """The rows come from the pool, the same each time; the settings are those of a training."""
    world = World(0)
    pool: list[Row] = [*pair(world.alignment, world.harmful)]
    chosen = edit.rows(list(pool))
    assert chosen, "it chooses no rows"
    assert chosen == edit.rows(list(pool)), "it chooses other rows the second time"
    strange = [row for row in chosen if row not in pool]
    assert not strange, f"it trains on rows that are not in the pool: {strange[0]}"
    settings = edit.training(FINETUNE)
    assert isinstance(settings, Training), f"its settings are {settings!r}, no Training"


def _check(before: Mapping[Path, str], folder: Path) -> None:
    """Both edits came to the same finite values, and changed no file that was there."""
    after = _digests(folder)
    touched = [str(path.relative_to(folder)) for path in before if before[path] != after.get(path)]
    assert not touched, f"it changed files that it was given: {', '.join(touched)}"
    first, second = (_tensors(folder / f"out{i}") for i in range(2))
    other = [name for name in first if not torch.equal(first[name], second[name])]
    assert not other, f"a second edit of the same model comes to other values: {', '.join(other)}"
    infinite = [name for name, value in first.items() if not value.isfinite().all()]
    assert not infinite, f"values are not finite: {', '.join(infinite)}"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def _digests(folder: Path) -> dict[Path, str]:
    """Hashes of all files."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def checks(edit: Edit) -> list[Callable[[Any, Path], None]]:
    """Return the checks of an edit of this kind."""
    if isinstance(edit, UpdateEdit):
        return [edits_an_adapter, edits_a_whole_model]
    if isinstance(edit, TensorEdit):
        return [edits_before_release]
    if isinstance(edit, StreamEdit):
        return [edits_what_is_written]
    return [chooses_rows_and_settings] if isinstance(edit, Retraining) else []
