"""Rewrite a checkpoint on disk by an edit, in the memory of its largest tensor.

Tensors are edited one at a time. The new checkpoint is a copy in which the bytes of some tensors
are replaced. So it keeps shards, index, dtypes, configuration and tokenizer, and nothing is loaded
but the tensor at hand.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from titer.methods import Changes, TensorEdit, UpdateEdit
from titer.paths import OVER
from titer.weights import checkpoints, folders
from titer.weights.finetuned import FineTuned, Weight
from titer.weights.folders import ADAPTER, Files
from titer.weights.norms import norm
from titer.weights.tensors import Stored, open_tensors
from titer.weights.update import Update

if TYPE_CHECKING:
    from titer.training.settings import Watch

CONFIGURATIONS = ("config.json", ADAPTER)
TOKENIZER = (  # beginnings of the names of a tokenizer's files
    *("tokenizer", "vocab", "merges", "added_tokens", "special_tokens", "chat_template", "spiece"),
    "sentencepiece",
)
WRONG = "the base is not the model that alignment started from, so give that one: "


@dataclass
class Copy:
    """A checkpoint that is being written, and what was changed in it."""

    folder: Path
    changed: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    before: float = 0.0  # squared norms of the update
    after: float = 0.0

    def files(self, paths: Iterable[Path]) -> None:
        """Copy files, the configuration last: without it a folder is no checkpoint."""
        for path in sorted(paths, key=lambda path: path.name in CONFIGURATIONS):
            shutil.copyfile(path, self.folder / path.name)

    def put(self, stored: Stored, old: Tensor, value: Tensor) -> Tensor:
        """Write a value in the place of an old one, and return it as the file has it.

        It is rounded to the dtype of the file, which is never wider. Raises where it leaves the
        range of that dtype.
        """
        new, was = value.to(stored.kind), old.to(stored.kind)
        if not new.isfinite().all():
            raise ValueError(
                f"{stored.name!r} leaves the range of {stored.kind}: edit less strongly"
            )
        self.changed[stored.name], self.sizes[stored.name] = int((new != was).sum()), new.numel()
        self.moved[stored.name] = float(norm(new.to(stored.wide) - was.to(stored.wide)))
        stored.write(self.folder, new)
        return new.to(stored.wide)

    def changes(self, facts: Mapping[str, object]) -> Changes:
        """Return what was changed, with the facts that the edit gives."""
        return Changes(
            self.changed,
            self.sizes,
            self.moved,
            math.sqrt(self.before),
            math.sqrt(self.after),
            facts,
        )


def rewrite_tensors(
    edit: TensorEdit,
    aligned: Files,
    base: Files,
    folder: Path,
    watch: Watch,
    unread: Collection[str] = (),
) -> Changes:
    """Write the edited aligned checkpoint into `folder`, and call `watch` after every tensor.

    `unread` names tensors that text never reaches, which are left alone. Both models are whole
    ones, not adapters. Raises where they do not belong together, or the edit cannot be applied to
    them. Then, and after an interruption, `folder` is no checkpoint.
    """
    ours, theirs = open_tensors(aligned), open_tensors(base)
    if _architecture(base) != _architecture(aligned):
        raise ValueError(
            f"{WRONG}{base.name!r} has {_architecture(base)}, {aligned.name!r} "
            f"{_architecture(aligned)}"
        )
    names = edit.select({name: of.shape for name, of in ours.items() if name not in unread})
    _check(names, ours, theirs)
    copy = Copy(folder)
    copy.files({tensor.path for tensor in ours.values()})
    for i, name in enumerate(names):
        of = ours[name]
        old = of.read().to(of.wide)
        # a base that is kept wider was rounded when alignment began
        w0 = theirs[name].read().to(of.kind).to(of.wide)
        new = copy.put(of, old, edit.tensor(name, old, w0))
        copy.before, copy.after = (
            copy.before + float(norm(old - w0)) ** 2,
            copy.after + float(norm(new - w0)) ** 2,
        )
        watch(i + 1, len(names), {})
    copy.files(_rest(aligned))
    return copy.changes({})


def rewrite_update(
    edit: UpdateEdit,
    tuned: FineTuned,
    names: Sequence[str],
    references: Mapping[str, FineTuned | Mapping[str, Stored]],
    seen: Mapping[str, object],
    folder: Path,
    watch: Watch,
) -> Changes:
    """Write the edited fine-tuned model into `folder`.

    It is an adapter where it was one and the edit keeps its rank, else a whole model. `names` are
    the weights to work on, `seen` what the edit saw in forward passes. Raises where the edit cannot
    be applied. Then, and after an interruption, `folder` is no checkpoint.
    """
    weights = [Weight(name, tuned, references, seen.get(name)) for name in names]
    state = edit.prepare(weights)
    copy = Copy(folder)
    if tuned.factors and edit.keeps_rank:
        copy.files({factors.a.path for factors in tuned.factors.values()})
    else:
        copy.files(
            {tensor.path for tensor in (tuned.aligned if tuned.factors else tuned.whole).values()}
        )
        if tuned.factors:
            _merge(tuned, {*tuned.factors, *tuned.whole} - set(names), folder)
    for i, weight in enumerate(weights):
        if tuned.factors and edit.keeps_rank:
            _put_factors(copy, tuned, weight, edit.edit(weight, state))
        else:
            _put_whole(copy, tuned, weight, edit.edit(weight, state))
        watch(i + 1, len(weights), {})
    if tuned.factors and edit.keeps_rank:
        copy.files(path for path in _rest(tuned.files) if path.name != ADAPTER)
        _configure(tuned.files, folder)
    elif tuned.factors:
        own = [path for path in _rest(tuned.files) if path.name not in (*CONFIGURATIONS, OVER)]
        base = _rest(tuned.started)
        if checkpoints.has_tokenizer(tuned.files):
            # all of one tokenizer: a template of the base beside it would take the place of its own
            base = [path for path in base if not path.name.startswith(TOKENIZER)]
        copy.files({path.name: path for path in [*base, *own]}.values())
    else:
        copy.files(_rest(tuned.files))
    return copy.changes(edit.facts(state))


def compare(before: FineTuned, after: FineTuned) -> Changes:
    """Return the changes by tensor between two fine-tunings of the same aligned model."""
    changed, sizes, moved = dict[str, int](), dict[str, int](), dict[str, float]()
    for name, of in before.tensors.items():
        old, new = of.read(), after.tensors[name].read()
        changed[name], sizes[name] = int((old != new).sum()), of.size
        moved[name] = float(norm(new.to(of.wide) - old.to(of.wide)))
    first, last = (
        math.hypot(*(tuned.update(name).norm() for name in tuned.factors or tuned.whole))
        for tuned in (before, after)
    )
    return Changes(changed, sizes, moved, first, last)


def _put_factors(
    copy: Copy, tuned: FineTuned, weight: Weight, result: Update | Tensor | None
) -> None:
    of, old = tuned.factors[weight.name], weight.update
    new = old if result is None else result
    assert isinstance(new, Update), f"{weight.name} came back whole"
    assert old.a is not None
    assert new.a is not None, f"{weight.name} came without factors"
    assert (new.b.shape, new.a.shape, new.scaling) == (old.b.shape, old.a.shape, old.scaling), (
        f"the rank of {weight.name} was not kept"
    )
    # an expert's gate and up are two weights over one A
    if of.a.name in copy.changed and (copy.changed[of.a.name] or not new.a.equal(old.a)):
        raise ValueError(
            f"{of.a.name!r} is a factor of several weights, and the edit changes it for each: choose an "
            "edit whose needs are `factors`, or one that leaves A alone"
        )
    a, b = copy.put(of.a, old.a, new.a), copy.put(of.b, old.b, new.b)
    copy.before += old.norm() ** 2
    copy.after += Update(b.to(old.b), a.to(old.a), old.scaling).norm() ** 2


def _put_whole(
    copy: Copy, tuned: FineTuned, weight: Weight, result: Update | Tensor | None
) -> None:
    of = tuned.aligned[weight.name] if tuned.factors else tuned.whole[weight.name]
    old, aligned = weight.finetuned, weight.aligned
    new = (
        old
        if result is None
        else aligned + result.dense()
        if isinstance(result, Update)
        else result
    )
    rounded = old.to(of.kind).to(old)  # as what takes its place is
    copy.before += float(norm(rounded - aligned)) ** 2
    copy.after += float(norm(copy.put(of, old, new) - aligned)) ** 2


def _merge(tuned: FineTuned, names: Iterable[str], folder: Path) -> None:
    """Write into the whole model what an adapter has for weights that the edit leaves alone.

    Raises where the aligned model has no place for one that the adapter holds whole: a head or
    embeddings that it ties, so that one tensor is both, or one for fewer tokens.
    """
    tied = sum(name.endswith(checkpoints.EMBEDDINGS) for name in tuned.aligned) < 2
    for name, held in tuned.whole.items():
        of = tuned.aligned.get(name)
        shared = tied and name.endswith(checkpoints.EMBEDDINGS)
        if of is None or shared or of.shape != held.shape:
            raise ValueError(
                f"adapter {tuned.files.name!r} holds {name!r} whole, for which "
                f"{tuned.started.name!r} has no place: merge it and give the "
                "whole model, or choose an edit that keeps the adapter"
            )
    for name in names:
        of = tuned.aligned[name]
        of.write(folder, tuned.value(name).to(of.kind))


def _rest(files: Files) -> list[Path]:
    """Return all files of a checkpoint but its tensors."""
    note = files.folder / OVER
    return [
        *([note] if note.is_file() else []),
        *(path for path in folders.parts(files) if path.suffix != ".safetensors"),
    ]


def _configure(adapter: Files, folder: Path) -> None:
    """Copy the adapter's configuration, with the path at which its base was found."""
    config = json.loads((adapter.folder / ADAPTER).read_text(encoding="utf-8"))
    assert adapter.base is not None
    if config.get("base_model_name_or_path") == adapter.base.name:
        shutil.copyfile(adapter.folder / ADAPTER, folder / ADAPTER)
        return
    config |= {"base_model_name_or_path": adapter.base.name, "revision": adapter.base.revision}
    (folder / ADAPTER).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _check(names: Sequence[str], ours: Mapping[str, Stored], theirs: Mapping[str, Stored]) -> None:
    """Raise where the base lacks a chosen tensor or has one of another shape."""
    for name in names:
        if name not in theirs:
            raise ValueError(f"{WRONG}it has no {name!r}")
        if theirs[name].shape != ours[name].shape:
            shapes = [" x ".join(map(str, of[name].shape)) for of in (theirs, ours)]
            raise ValueError(
                f"{WRONG}its {name!r} is {shapes[0]}, not {shapes[1]}; or leave this tensor out by "
                "targets"
            )


def _architecture(files: Files) -> dict[str, object]:
    config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    return {name: config.get(name) for name in ("model_type", "num_hidden_layers")}
