"""A plan of one stage: what a single command computes, and how its checkpoint comes into the folder
that was asked for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from titer import paths, registry
from titer.errors import unknown
from titer.findings import flags
from titer.findings.records import SCHEMA, Record, check, load_document, plain
from titer.methods import Edit, UpdateEdit
from titer.progress import Progress
from titer.registry import describe, name_of
from titer.runs.chain import trace
from titer.runs.documents import environment
from titer.runs.execute import Executor, score_record, with_inputs
from titer.runs.plan import REFERENCES, Plan, name_files
from titer.runs.search import Search, search
from titer.runs.stages.edit import EditStage
from titer.runs.store import Store, write
from titer.weights import adapters, checkpoints, folders
from titer.weights.settings import Checkpoint

# of a recipe: what every stage uses, and what each kind does besides
USED = (
    "model",
    "data",
    "benchmark",
    "template",
    "system",
    "seed",
    "max_length",
    "gradient_checkpointing",
    "threads",
)
USED_BY = {
    "align": ("align",),
    "finetune": ("finetune", "attack"),
    "evaluate": ("protocol", "judge", "max_new_tokens", "answers_at_once", "engine", "own_format"),
}

# of a plan's provenance, what an evaluation tells beside all that a stage does
TOLD = ("judge", "benchmark", "decoding", "own format")


def make(
    plan: Plan, kind: str, folder: Path, progress: Progress, asked: Search | None = None
) -> dict[str, Any]:
    """Compute a stage that makes a model, and put its checkpoint into a folder; its record, as
    written there.

    What an interrupted command left there is taken up. With a search an edit's value is chosen
    first.
    """
    finished = folder / paths.RECORD
    if finished.is_file():
        return load_document(finished, Record)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    work = Executor(Store(folder / paths.STORE), progress, folder)
    stage, found = plan.single(kind), dict[str, Any]()
    if asked:
        assert isinstance(stage.method, Edit)
        edit, found["search"] = search(plan, stage.method, asked, work)
        stage = plan.with_edit(edit).single(kind)
    work.expect([stage])
    made = work.made(stage)
    left_out = shutil.ignore_patterns(paths.MANIFEST, paths.MADE)
    shutil.copytree(
        work.folder(stage), folder, ignore=left_out, copy_function=link, dirs_exist_ok=True
    )
    if isinstance(stage, EditStage):  # whose weights are never in memory as a whole
        found |= name_models(plan) | {
            "sha256": folders.digest(folders.locate(Checkpoint(str(folder))))
        }
    else:
        model, _ = plan.asking.open(plan.asking.at(folder))
        found["weights"] = checkpoints.fingerprint(adapters.merge_adapter(model))
    cost = {"seconds": made.seconds, "peak_mb": made.peak_mb}
    fields = {
        "kind": kind,
        "method": stage.how,
        **provenance(plan, kind),
        **found,
        "facts": made.facts,
        **cost,
    }
    document = write_record(plan, fields, folder)
    shutil.rmtree(folder / paths.STORE)
    return document


def evaluate(plan: Plan, folder: Path, store: Store, progress: Progress) -> dict[str, Any]:
    """Score a model, and leave its answers and its record in a folder; the record."""
    finished = folder / paths.RECORD
    if finished.is_file():
        return load_document(finished, Record)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    work, scoring = Executor(store, progress), plan.score(plan.given("base", plan.recipe.model))
    work.expect([scoring])
    with store.needed(plan.identity, [stage.key for stage in with_inputs([scoring])]):
        record = score_record(scoring, work)
        shutil.copy(work.folder(scoring) / paths.ANSWERS, folder)  # with its mode
    told = plan.provenance()
    found = {name: told[name] for name in TOLD if name in told}
    kept = {"scores", "outcomes", "judges", "disagreements"}
    kept |= {"scoring_seconds", "peak_mb", "weights", "facts"}
    figures = {name: value for name, value in record.fields.items() if name in kept}
    fields = {"kind": "evaluate", "method": {}, **provenance(plan, "evaluate"), **found, **figures}
    return write_record(plan, fields, folder)


def write_record(plan: Plan, fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the record of a single command, with the flags that it raises over the stages before
    it.
    """
    document = plain({"schema": SCHEMA, **fields})
    raised = flags.alone([*trace(plan.recipe.model.path), document])
    document["flags"] = flags.as_documents(raised)
    check(Record, document, str(folder))
    write(folder / paths.RECORD, document)
    return dict(document)


def nulls(edit: Edit) -> dict[str, Edit]:
    """Build the controls of an edit's own size, by name: what it does beyond them is owed to its
    idea.

    Raises where it has none.
    """
    if not isinstance(edit, UpdateEdit):
        raise ValueError(
            f"the edit {name_of(edit)!r} has no nulls that are computed beside it: leave --nulls out"
        )
    names = ["scale", *(["random_mask"] if name_of(edit) == "antidote" else [])]
    built = {name: registry.build("edits", {"method": name, "match": edit}) for name in names}
    return {name: null for name, null in built.items() if isinstance(null, Edit)}


def find_references(
    model: Checkpoint, edit: Edit, given: Mapping[str, str], recorded: Mapping[str, str]
) -> dict[str, Checkpoint]:
    """Find the other models that an edit alone asks for: those given by name, else those that the
    checkpoint tells of.

    Raises where one is missing, or given for nothing.
    """
    wanted = (
        edit.needs.references if edit.stage == "release" else ("aligned", *edit.needs.references)
    )
    for name in given.keys() - set(wanted):
        raise unknown(f"reference of the edit {name_of(edit)!r}:", name, wanted)
    under = folders.locate(model).base
    found = (
        dict(recorded) | ({wanted[0]: str(under.folder)} if under and wanted else {}) | dict(given)
    )
    for name in wanted:
        if name not in found:
            raise ValueError(
                f"the edit {name_of(edit)!r} of {model.path!r} needs {REFERENCES[name]}: give it "
                f"as --reference {name}=MODEL"
            )
    return {name: replace(model, path=found[name], revision=None, base=None) for name in wanted}


def provenance(plan: Plan, kind: str) -> dict[str, Any]:
    """Say what a stage was made from and by."""
    recipe = describe(plan.recipe)
    asked = ["attack"] if "asked" in plan.benchmarks else []
    used = (*USED, *USED_BY.get(kind, ()), *(asked if kind == "evaluate" else ()))
    return {
        "recipe": {name: recipe[name] for name in used},
        "model": plan.named,
        "data": plan.digests_of(plan.recipe.attack),
        "prompts": plan.prompts,
        "sources": plan.roles.sources,
        "environment": environment() | ({"engine": plan.engine} if kind == "evaluate" else {}),
    }


def name_models(plan: Plan) -> dict[str, Any]:
    """Name the other models that an edit asked for."""
    return {
        "references": {name: of.path for name, of in plan.references.items()},
        "reference models": {
            name: name_files(folders.locate(of)) for name, of in plan.references.items()
        },
    }


def link(source: str, target: str) -> None:
    """Give a file a second name, or where the disk cannot a copy: an interruption loses nothing,
    and no room is taken.
    """
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
