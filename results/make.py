"""Compute the bundles of claims.yaml: `python -m results.make [CLAIM ...]`. Resumable; what the
store has is not computed again.

A bundle that is there keeps of its finished cells the pipelines that are as they were, where the
rest of its recipe and the versions are those of now, and only the missing ones are computed: whoever
changes a figure by code removes the bundle, or says `--afresh`, which computes all.

`--cell` computes one cell of each claim afresh, in an empty store, and compares it with its bundle:
exit code 1 where they differ.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from results import bundles, ladder
from titer.config import validate
from titer.report import progress
from titer.runs import recipe
from titer.runs.documents import cpu_make, environment
from titer.runs.sweep import Cell, Sweep, cells
from titer.runs.workers import Processes
from titer.scoring.curve import FACT

RUNS = bundles.HERE.parent / "runs"
FACTS = (
    "probes",
    FACT,
    "removed energy",
    "update norm before",
    "update norm after",
)  # of a stage, beside its scores


def claims() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((bundles.HERE / "claims.yaml").read_text()))


def extract(document: dict[str, Any]) -> dict[str, Any]:
    """Extract from a pipeline's document what a claim rests on."""
    kept = ("kind", "method", "scores", "outcomes", "struck out", "weights", "seconds", "peak_mb")
    looks = [
        {name: round_floats(stage["facts"][name]) for name in FACTS if name in stage["facts"]}
        for stage in document["stages"]
    ]
    found = zip(document["stages"], looks, strict=True)
    return {
        "stages": [
            {key: stage[key] for key in kept} | ({"facts": facts} if facts else {})
            for stage, facts in found
        ]
    }


def round_floats(value: Any) -> Any:
    """Probes to four digits, of which a figure shows three."""
    if isinstance(value, dict):
        return {key: round_floats(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [round_floats(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Kept:
    """What need not be computed."""

    cells: Mapping[Cell, Mapping[str, dict[str, Any]]] = field(default_factory=dict)  # pipelines
    makes: Set[str] = frozenset()  # of the CPUs that computed them


def pipelines_to_keep(name: str, recipe_now: recipe.Recipe) -> Kept:
    """What a claim's bundle has of the pipelines that are as they were, in its finished cells; none
    where all else of the recipe or the versions are others.
    """
    if not bundles.path(name).is_file():
        return Kept()
    bundle = bundles.read(name)
    try:
        then = validate(
            recipe.Recipe, bundle["recipe"]
        )  # a field that it has not yet has its default
    except ValueError:  # or has no longer
        return Kept()
    same_recipe = replace(then, pipelines=recipe_now.pipelines) == recipe_now
    if not same_recipe or versions(bundle["environment"]) != versions(environment()):
        return Kept()
    found = {
        Cell(tuple(cell["settings"]), cell["seed"]): {
            pipeline: document
            for pipeline, document in cell["pipelines"].items()
            if then.pipelines.get(pipeline) == recipe_now.pipelines.get(pipeline)
        }
        for cell in bundle["cells"]
        # older ones have no outcomes
        if cell["status"] == "done" and any("outcomes" in stage for stage in bundles.stages(cell))
    }
    return Kept(found, makes(bundle)) if any(found.values()) else Kept()


def versions(of: dict[str, Any]) -> dict[str, Any]:
    """Keep of an environment what a figure depends on.

    The recipe itself says how many threads a cell has, and another make of CPU moves last bits
    alone. One that tells of no ranks is of one process.
    """
    told = {"ranks": 1, "sharded": False} | of
    return {key: value for key, value in told.items() if key not in ("threads", "cpu")}


def compute(name: str, plan: Sweep, kept: Kept | None = None) -> dict[str, Any]:
    """The bundle of a claim: its plan's cells, in the plan's order, of which the pipelines that are
    kept are not computed.
    """
    kept, now = kept or Kept(), recipe.load(plan.recipe)
    wanted = tuple(plan.only or now.pipelines)
    has = {cell: kept.cells.get(cell, {}) for cell in plan.cells}
    by_missing: dict[tuple[str, ...], list[Cell]] = {}
    for cell in plan.cells:
        missing = tuple(pipeline for pipeline in wanted if pipeline not in has[cell])
        by_missing.setdefault(missing, []).append(cell)
    fresh: dict[Cell, dict[str, Any]] = {cell: {} for cell in by_missing.pop((), [])}
    for missing, lacking in by_missing.items():
        only = plan.only if missing == wanted else missing
        # a folder for each recipe: the cells of another one are not met
        folder = plan.folder / recipe.digest(recipe.only(now, missing))[:12]
        left = replace(plan, cells=lacking, only=only, folder=folder)
        left.check()
        with progress.count_cells(Console(stderr=True), len(lacking)) as watch:
            fresh |= zip(lacking, left.run(watch)["cells"], strict=True)
    cpus = kept.makes | ({cpu_make()} if by_missing else set())
    return {
        "claim": name,
        "recipe": recipe.describe(now),
        "environment": environment() | {"cpu": ", ".join(sorted(cpus))},
        "cells": [join(cell, fresh[cell], has[cell], wanted) for cell in plan.cells],
    }


def join(
    cell: Cell, ran: dict[str, Any], kept: Mapping[str, Any], wanted: Sequence[str]
) -> dict[str, Any]:
    """A bundle's cell of the pipelines that were computed and those that were kept."""
    found = {
        **kept,
        **{name: extract(document) for name, document in ran.get("pipelines", {}).items()},
    }
    told = {key: ran[key] for key in ("status", "error") if key in ran} or {"status": "done"}
    joined = {"settings": list(cell.settings), "seed": cell.seed} | told
    joined["pipelines"] = {name: found[name] for name in wanted if name in found}
    bundles.drop_repeats(joined)
    return joined


def text(bundle: dict[str, Any]) -> str:
    """JSON with a line a cell, so that a change shows where it is."""
    head = json.dumps({key: value for key, value in bundle.items() if key != "cells"}, indent=1)
    cells = ",\n".join(json.dumps(cell) for cell in bundle["cells"])
    return head[:-2] + f',\n "cells": [\n{cells}\n]\n}}\n'


def differs(name: str, claim: dict[str, Any]) -> list[str]:
    """List where one cell, computed afresh, is not as the claim's bundle has it.

    On a CPU of the make that the bundle was computed on, weights and scores are the same bit for
    bit. On another one the last bits of sums differ, and training lets them grow: there each score
    must lie in the bundle's interval.
    """
    bundle = bundles.read(name)
    published, bits = bundle["cells"][0], same_make(bundle)
    cell = Cell(tuple(published["settings"]), published["seed"])
    with tempfile.TemporaryDirectory() as folder:
        fresh = compute(
            name,
            Sweep(
                claim["recipe"],
                [cell],
                Path(folder) / "cells",
                Path(folder) / "store",
                only=claim.get("only", []),
            ),
        )["cells"][0]
    return [
        f"{name}: {was['kind']} of {pipeline} has {fault}"
        for pipeline, document in published["pipelines"].items()
        for was, now in zip(document["stages"], fresh["pipelines"][pipeline]["stages"], strict=True)
        for fault in (other_bits(was, now) if bits else other_scores(was, now))
    ]


def same_make(bundle: dict[str, Any]) -> bool:
    """Tell whether all of a bundle was computed on CPUs of this make."""
    return makes(bundle) == {cpu_make()}


def makes(bundle: dict[str, Any]) -> set[str]:
    """The makes of the CPUs that a bundle was computed on: Intel's, before it was recorded."""
    return set(bundle["environment"].get("cpu", "GenuineIntel").split(", "))


def other_bits(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what of a stage is not the same bit for bit."""
    return [
        f"{key} {now[key]} where the bundle has {was[key]}"
        for key in ("weights", "scores")
        if was[key] != now[key]
    ]


def other_scores(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List the scores of a stage that lie outside the bundle's intervals."""
    return [
        f"{name} {now['scores'][name]['value']} outside the bundle's [{score['low']}, {score['high']}]"
        for name, score in was["scores"].items()
        if not score["low"] <= now["scores"][name]["value"] <= score["high"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("claims", nargs="*", help="all if left out")
    parser.add_argument("--afresh", action="store_true", help="compute what a bundle has, too")
    parser.add_argument(
        "--cell",
        action="store_true",
        help="compare one cell of each, computed afresh, with its bundle",
    )
    arguments = parser.parse_args()
    known = claims()
    wanted = {name: known[name] for name in arguments.claims or known}
    if arguments.cell:
        # a ladder's records rest on no cell of a sweep
        wanted = {name: claim for name, claim in wanted.items() if "ladder" not in claim}
        faults = [fault for name, claim in wanted.items() for fault in differs(name, claim)]
        alike = all(same_make(bundles.read(name)) for name in wanted)
        how = "bit for bit" if alike else "within its intervals: another make of CPU computed it"
        print(
            "\n".join(faults) or f"one cell of {', '.join(wanted)} is as its bundle has it, {how}"
        )
        return int(bool(faults))
    missing = 0
    for name, claim in wanted.items():
        if "ladder" in claim:
            bundle = ladder.compute(name, claim)
            bundles.path(name).write_text(text(bundle))
            missing += sum(cell["status"] != "done" for cell in bundle["cells"])
            continue
        points = [cell for grid in claim["grids"] for cell in cells(grid, [], claim["seeds"])]
        plan = Sweep(
            claim["recipe"],
            points,
            RUNS / f"results-{name}",
            RUNS / "store",
            claim.get("only", []),
            Processes(os.cpu_count() or 1),
        )
        now = recipe.load(claim["recipe"])
        bundle = compute(name, plan, None if arguments.afresh else pipelines_to_keep(name, now))
        bundles.path(name).write_text(text(bundle))
        missing += sum(cell["status"] != "done" for cell in bundle["cells"])
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
