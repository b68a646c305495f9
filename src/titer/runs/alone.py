"""One stage by itself, from a checkpoint to a checkpoint: what `titer align | release | finetune | edit | evaluate` do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from titer.weights import adapters, checkpoints, folders
from titer.findings import flags
from titer.runs import stages
from titer.edits.antidote import Antidote
from titer.edits.random_mask import RandomMask
from titer.edits.scale import Scale
from titer.runs.cost import measure
from titer.methods import Defense, Edit, Method, TensorEdit, UpdateEdit
from titer.weights.folders import ADAPTER, OVER
from titer.weights.settings import Checkpoint
from titer.runs.pipeline import Report, summarize_answers, write_answers
from titer.runs.recipe import describe
from titer.registry import name_of
from titer.errors import unknown
from titer.report.tables import environment, plain
from titer.runs.search import Search, searched
from titer.runs.setting import Setting
from titer.runs.store import MANIFEST, write
from titer.data.template import Template
from titer.training.settings import Watch

USED = ("model", "data", "benchmark", "template", "system", "seed", "max_length", "gradient_checkpointing", "threads")  # by every stage
REFERENCES = {
    "base": "the model that alignment started from",
    "aligned": "the model that fine-tuning started from, as it is no adapter over it",
    "safe": "the aligned model fine-tuned on refusals",
    "unsafe": "the aligned model fine-tuned on harmful rows",
}
EVALUATION = ("protocol", "judge", "max_new_tokens", "answers_at_once")


def stage(
    setting: Setting, kind: str, method: Method | None, folder: Path, whole: bool, report: Report, search: Search | None = None
) -> dict[str, Any]:
    """Compute a stage in its folder, or take up what an interrupted one left there; its document, written as `stage.json`.

    The checkpoint holds the adapter, or with `whole` the merged model. An evaluation leaves scores and answers only. With a `search`
    an edit's value is chosen first.
    """
    finished = folder / "stage.json"
    if finished.is_file():
        return dict(json.loads(finished.read_text()))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    watch = partial(report, f"{kind} {name_of(method)}" if method else kind)
    with measure() as cost:
        if isinstance(method, Edit):
            found = _edited(setting, method, folder, whole, report, search)
        else:
            found = _changed(setting, kind, method, folder, whole, watch)
        watch(0, 0, {})
    document = plain({"stage": kind, "method": describe(method) if method else {}, **_provenance(setting, kind), **found})
    document |= {"seconds": round(cost.seconds, 2), "peak_mb": round(cost.peak_mb, 1)}
    document |= {"flags": flags.described(flags.alone([*made_by(setting.recipe.model.path), document]))}
    write(finished, document)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return dict(document)


def references(model: Checkpoint, edit: Edit, given: Mapping[str, str]) -> dict[str, Checkpoint]:
    """The other models that an edit asks for: those given by name, else what the checkpoint tells of where it came from.

    Raises where one is missing, or given for nothing.
    """
    wanted = edit.needs.references if isinstance(edit, TensorEdit) else ("aligned", *edit.needs.references)
    for name in given.keys() - set(wanted):
        raise unknown(f"reference of the edit {name_of(edit)!r}:", name, wanted)
    under = folders.locate(model).base
    found = recorded(model.path) | ({wanted[0]: str(under.folder)} if under else {}) | dict(given)
    for name in wanted:
        if name not in found:
            raise ValueError(f"the edit {name_of(edit)!r} of {model.path!r} needs {REFERENCES[name]}: give it as --reference {name}=MODEL")
    return {name: dataclasses.replace(model, path=found[name], revision=None, base=None) for name in wanted}


def recorded(model: str) -> dict[str, str]:
    """What the stages that made a checkpoint tell of the models before it."""
    found: dict[str, str] = {}
    for document in made_by(model):
        start = document.get("recipe", {}).get("model", {}).get("path")
        if start and document["stage"] in ("align", "finetune"):
            found["base" if document["stage"] == "align" else "aligned"] = start
        found |= document.get("references", {})
    return found


def nulls(edit: Method) -> dict[str, Edit]:
    """The controls of an edit's own size, by name: what it does beyond them is owed to its idea. Raises where it has none."""
    if not isinstance(edit, UpdateEdit):
        raise ValueError(f"the edit {name_of(edit)!r} has no nulls that are computed beside it: leave --nulls out")
    return {"scale": Scale(match=edit)} | ({"random_mask": RandomMask(match=edit)} if isinstance(edit, Antidote) else {})


def _edited(setting: Setting, edit: Edit, folder: Path, whole: bool, report: Report, search: Search | None) -> dict[str, Any]:
    """Edit a model on disk; what its document has of it. No hash of the weights in memory, where they never are, but of the files."""
    found: dict[str, Any] = {}
    if search:
        edit, facts, found["search"] = searched(setting, edit, search, folder, report)
        found["method"] = describe(edit)
    else:
        watch = partial(report, f"{edit.stage} {name_of(edit)}")
        facts = stages.edited(setting, edit, setting.recipe.model, setting.references, folder, watch)
    made = folders.locate(Checkpoint(str(folder)))
    if whole and made.base is not None:
        model, template = setting.opened(dataclasses.replace(setting.recipe.model, path=str(folder), revision=None, base=None))
        for file in (ADAPTER, "adapter_model.safetensors", OVER):
            (folder / file).unlink(missing_ok=True)
        checkpoints.save(adapters.merged(model), template.tokenizer, folder)
        made = folders.locate(Checkpoint(str(folder)))
    others = {name: _named(folders.locate(of)) for name, of in setting.references.items()}
    paths = {name: of.path for name, of in setting.references.items()}
    return found | {"facts": facts, "references": paths, "reference models": others, "sha256": folders.digest(made)}


def _changed(setting: Setting, kind: str, method: Method | None, folder: Path, whole: bool, watch: Watch) -> dict[str, Any]:
    """Train, edit or score a model in memory, and save it if it was changed; what its document has of it."""
    found: dict[str, Any] = {}
    model, template = setting.opened(setting.recipe.model)
    base = setting.start.base or setting.start
    if isinstance(method, Defense):
        if setting.start.base is not None:  # the model after a stage before this one: what the fresh adapter lies over
            model = adapters.merged(model)
            checkpoints.save(model, template.tokenizer, folder / "base")
            base = folders.locate(Checkpoint(str(folder / "base")))
        resume = folder / "checkpoint.safetensors"
        model, found["facts"] = stages.trained(setting, model, template, kind, method, resume, watch)
    else:
        found = _scored(setting, adapters.merged(model), template, folder)
    if method is not None:
        model = adapters.merged(model) if whole else model
        checkpoints.save(model, template.tokenizer, folder, base if adapters.carried(model) else None)
    return found | {"weights": checkpoints.fingerprint(adapters.merged(model))}


def made_by(model: str) -> list[dict[str, Any]]:
    """The documents of the stages that made a checkpoint, the oldest first, as far back as their folders are still there."""
    found: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while (folder := Path(model).expanduser().resolve()) not in seen and folder.is_dir():
        seen.add(folder)
        if (folder / MANIFEST).is_file():  # a stage of a run, in the store
            about = json.loads((folder / MANIFEST).read_text())["about"]
            return [{"stage": about["kind"], "recipe": dict(zip(("template", "system"), about["template"], strict=False))}, *found]
        if not (folder / "stage.json").is_file():
            break
        document = json.loads((folder / "stage.json").read_text())
        found.insert(0, document)
        model = document["recipe"]["model"]["path"]
    return found


def _scored(setting: Setting, model: PreTrainedModel, template: Template, folder: Path) -> dict[str, Any]:
    said: list[str] = []
    result = stages.scored(setting, model, template, said.append)
    sha256 = write_answers(result.records, folder / "answers.jsonl")
    return {
        "scores": {name: dataclasses.asdict(score) for name, score in result.scores.items()},
        "judge": describe(setting.judge) | dict(setting.judge.provenance),
        "benchmark": describe(setting.roles.scorer),
        "facts": summarize_answers(result.records, sha256, said),
    }


def _provenance(setting: Setting, kind: str) -> dict[str, Any]:
    """What the stage was made from and by."""
    recipe = describe(setting.recipe)
    asked = ["attack"] if "asked" in setting.benchmarks else []
    used = (*USED, *{"align": ["align"], "finetune": ["finetune", "attack"], "evaluate": [*EVALUATION, *asked]}.get(kind, []))
    return {
        "recipe": {name: recipe[name] for name in used},
        "model": _named(setting.start),
        "data": setting.roles.digests(),
        "sources": setting.roles.sources,
        "environment": environment(),
    }


def _named(files: folders.Files) -> dict[str, Any]:
    return {"name": files.name, "revision": files.revision, "sha256": folders.digest(files)}
