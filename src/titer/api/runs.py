"""Recipes: run, looked at beforehand, weighed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer import paths
from titer.api.given import Data, Handed, Model, result_folder, store_of
from titer.api.results import Results
from titer.progress import Progress, Silent

if TYPE_CHECKING:
    from titer.runs.recipe import Recipe


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe = "lab",
    *,
    settings: Sequence[str] = (),
    seed: int | None = None,
    model: Model = None,
    data: Data | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Results:
    """Run a recipe's pipelines and compare them. Stages that the store has are not computed again.

    `recipe` is the name of one that titer brings, a YAML file, a mapping of the same fields, or a
    `Recipe`; `settings` are changes of fields, as "finetune.lr=1e-3". `model` and `data` take the
    place of the recipe's. Raises a ValueError whose text names what is wrong and what would do;
    then nothing is left in `out`.
    """
    from titer import registry
    from titer.runs import recipe as recipes

    folder, kept = result_folder(out)
    changed = [*Handed(folder).settings(model, data or {}), *settings]
    if isinstance(recipe, recipes.Recipe | Mapping):
        fields = (
            registry.describe(recipe)
            if isinstance(recipe, recipes.Recipe)
            else json.loads(json.dumps(recipe))
        )
        plan = recipes.from_mapping(fields, changed, seed)
    else:
        plan = recipes.load(str(recipe), changed, seed)
    return run_recipe(plan, folder, store_of(folder, store), progress, (kept,))


def run_recipe(
    recipe: Recipe,
    folder: Path,
    store: Path,
    progress: Progress | None = None,
    kept: tuple[Any, ...] = (),
) -> Results:
    """Run a recipe in a folder over a store."""
    from titer import report
    from titer.report import tables
    from titer.runs.documents import write_documents
    from titer.runs.execute import Run, claim
    from titer.runs.plan import Plan
    from titer.runs.store import Store

    plan = Plan.prepare(recipe)
    one = Run(plan, folder, Store(store))
    with claim(folder, plan):
        documents = write_documents(one, one.records(progress or Silent()))
        (folder / paths.TABLE).write_text(tables.to_markdown(documents), encoding="utf-8")
    report.write(documents, folder)
    return Results(folder, documents, kept)


def preview(recipe: Recipe, store: Path) -> list[str]:
    """Check a recipe with its rows and its model, and say what a run would do."""
    from titer.runs.plan import Plan
    from titer.runs.preview import preview
    from titer.runs.store import Store

    return preview(Plan.prepare(recipe), Store(store))


def plan(
    recipe: Recipe,
    *,
    gpu_memory: str | None = None,
    probe: bool = True,
    seeds: int = 1,
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Say the memory and the time of every step of a recipe, what fits and what to change.

    It is for this machine, or for a GPU with `gpu_memory`, as "24GB". With a `probe` the real model
    trains for a few updates here, for the times. Steps that a `store` has are left out.
    """
    from titer.runs.fitting import weigh
    from titer.runs.machine import find_machine
    from titer.runs.plan import Plan
    from titer.runs.store import Store

    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be at least 1")
    found = Plan.prepare(recipe)
    machine = find_machine(gpu_memory)
    return weigh(found, machine, Store(Path(store)) if store else None, probe, seeds)
