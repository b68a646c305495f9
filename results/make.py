"""Compute the bundles of claims.yaml: `python -m results.make [CLAIM ...]`. Resumable; what the
store has is not computed again.

A bundle that is there keeps of its finished cells the pipelines that are as they were, where the
rest of its recipe and the versions are those of now, and only the missing ones are computed: whoever
changes a figure by code removes the bundle, or says `--afresh`, which computes all.

`--cell` computes one cell of each claim afresh, in an empty store, and compares it with its bundle:
exit code 1 where they differ.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from results import bundles
from titer.config import validate
from titer.report import progress
from titer.runs import recipe
from titer.runs.documents import cpu_make, environment
from titer.runs.sweep import Cell, Sweep, cells
from titer.scoring.curve import FACT

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs"
INTEL = "GenuineIntel"
FACTS = (
    "probes",
    FACT,
    "removed energy",
    "update norm before",
    "update norm after",
)  # of a stage, beside its scores


def claims() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((HERE / "claims.yaml").read_text()))


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


Known = Mapping[Cell, Mapping[str, dict[str, Any]]]  # pipelines of cells, by name


def pipelines_to_keep(name: str, recipe_now: recipe.Recipe) -> Known:
    """What a claim's bundle has of the pipelines that are as they were, in its finished cells; none
    where all else of the recipe or the versions are others.
    """
    if not (HERE / f"{name}.json").is_file():
        return {}
    bundle = bundles.read(name, HERE)
    try:
        then = validate(
            recipe.Recipe, bundle["recipe"]
        )  # a field that it has not yet has its default
    except ValueError:  # or has no longer
        return {}
    same_recipe = replace(then, pipelines=recipe_now.pipelines) == recipe_now
    if not same_recipe or versions(bundle["environment"]) != versions(environment()):
        return {}
    return {
        Cell(tuple(cell["settings"]), cell["seed"]): {
            pipeline: document
            for pipeline, document in cell["pipelines"].items()
            if then.pipelines.get(pipeline) == recipe_now.pipelines.get(pipeline)
        }
        for cell in bundle["cells"]
        # older ones have no outcomes
        if cell["status"] == "done" and any("outcomes" in stage for stage in bundles.stages(cell))
    }


def versions(of: dict[str, Any]) -> dict[str, Any]:
    """Keep of an environment what a figure depends on.

    The recipe itself says how many threads a cell has, and another make of CPU moves last bits
    alone.
    """
    return {key: value for key, value in of.items() if key not in ("threads", "cpu")}


def compute(name: str, plan: Sweep, known: Known | None = None) -> dict[str, Any]:
    """The bundle of a claim: its plan's cells, in the plan's order, of which the pipelines that are
    known are not computed.
    """
    now = recipe.load(plan.recipe)
    wanted = tuple(plan.only or now.pipelines)
    kept = {cell: dict((known or {}).get(cell, {})) for cell in plan.cells}
    by_missing: dict[tuple[str, ...], list[Cell]] = {}
    for cell in plan.cells:
        missing = tuple(pipeline for pipeline in wanted if pipeline not in kept[cell])
        by_missing.setdefault(missing, []).append(cell)
    fresh: dict[Cell, dict[str, Any]] = {cell: {} for cell in by_missing.pop((), [])}
    for missing, lacking in by_missing.items():
        only = plan.only if missing == wanted else missing
        left = replace(plan, cells=lacking, only=only, folder=plan.folder / digest(now, missing))
        left.check()
        with progress.count_cells(Console(stderr=True), len(lacking)) as watch:
            fresh |= zip(lacking, left.run(watch)["cells"], strict=True)
    return {
        "claim": name,
        "recipe": recipe.describe(now),
        "environment": environment(),
        "cells": [join(cell, fresh[cell], kept[cell], wanted) for cell in plan.cells],
    }


def digest(now: recipe.Recipe, pipelines: Sequence[str]) -> str:
    """Name what is computed, so that the folder of another recipe is not met."""
    told = json.dumps([recipe.describe(now), list(pipelines)], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def join(
    cell: Cell, ran: dict[str, Any], kept: dict[str, Any], wanted: Sequence[str]
) -> dict[str, Any]:
    """A bundle's cell of the pipelines that were computed and those that were kept."""
    found = kept | {
        pipeline: extract(document) for pipeline, document in ran.get("pipelines", {}).items()
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
    bundle = json.loads((HERE / f"{name}.json").read_text())
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
    """Tell whether this CPU is of the make that a bundle was computed on; before it was recorded
    that was Intel's.
    """
    return bool(bundle["environment"].get("cpu", INTEL) == cpu_make())


def makes(name: str, found: Sequence[dict[str, Any]], keep: Known) -> str:
    """The makes of the CPUs that a bundle's cells were computed on, this one's where some were now."""
    then = json.loads((HERE / f"{name}.json").read_text())["environment"].get("cpu", INTEL)
    computed = any(
        cell["pipelines"].keys() - keep.get(Cell(tuple(cell["settings"]), cell["seed"]), {}).keys()
        for cell in found
    )
    return ", ".join(sorted({*then.split(", "), *([cpu_make()] if computed else [])}))


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
        faults = [fault for name, claim in wanted.items() for fault in differs(name, claim)]
        alike = all(same_make(json.loads((HERE / f"{name}.json").read_text())) for name in wanted)
        how = "bit for bit" if alike else "within its intervals: another make of CPU computed it"
        print(
            "\n".join(faults) or f"one cell of {', '.join(wanted)} is as its bundle has it, {how}"
        )
        return int(bool(faults))
    missing = 0
    for name, claim in wanted.items():
        points = [cell for grid in claim["grids"] for cell in cells(grid, [], claim["seeds"])]
        plan = Sweep(
            claim["recipe"],
            points,
            RUNS / f"results-{name}",
            RUNS / "store",
            jobs=os.cpu_count() or 1,
            only=claim.get("only", []),
        )
        keep = {} if arguments.afresh else pipelines_to_keep(name, recipe.load(claim["recipe"]))
        bundle = compute(name, plan, keep)
        if any(keep.values()):
            bundle["environment"]["cpu"] = makes(name, bundle["cells"], keep)
        (HERE / f"{name}.json").write_text(text(bundle))
        missing += sum(cell["status"] != "done" for cell in bundle["cells"])
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
