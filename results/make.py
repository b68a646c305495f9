"""Compute the bundles of claims.yaml: `python results/make.py [CLAIM ...]`. Resumable; what the store has is not computed again.

`--cell` computes one cell of each claim afresh, in an empty store, and compares it with its bundle: exit code 1 where they differ.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from titer import progress, recipe
from titer.results import environment
from titer.sweep import Cell, Sweep, cells

HERE = Path(__file__).parent
RUNS = HERE.parent / "runs"


def claims() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((HERE / "claims.yaml").read_text()))


def told(document: dict[str, Any]) -> dict[str, Any]:
    """Of a pipeline's document, what a claim rests on."""
    kept = ("kind", "method", "scores", "struck out", "weights", "seconds", "peak_mb")
    looks = [{"facts": {"probes": short(stage["facts"]["probes"])}} if "probes" in stage["facts"] else {} for stage in document["stages"]]
    return {"stages": [{key: stage[key] for key in kept} | look for stage, look in zip(document["stages"], looks, strict=True)]}


def short(value: Any) -> Any:
    """Probes to four digits, of which a figure shows three."""
    if isinstance(value, dict):
        return {key: short(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [short(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def computed(name: str, plan: Sweep) -> dict[str, Any]:
    """The bundle of a claim."""
    with progress.counted(Console(stderr=True), len(plan.cells)) as watch:
        bundle = plan.run(watch)
    found = [
        {key: cell[key] for key in ("settings", "seed", "status", "error") if key in cell}
        | {"pipelines": {pipeline: told(document) for pipeline, document in cell.get("pipelines", {}).items()}}
        for cell in bundle["cells"]
    ]
    return {"claim": name, "recipe": recipe.describe(recipe.load(plan.recipe)), "environment": environment(), "cells": found}


def text(bundle: dict[str, Any]) -> str:
    """JSON with a line a cell, so that a change shows where it is."""
    head = json.dumps({key: value for key, value in bundle.items() if key != "cells"}, indent=1)
    cells = ",\n".join(json.dumps(cell) for cell in bundle["cells"])
    return head[:-2] + f',\n "cells": [\n{cells}\n]\n}}\n'


def differs(name: str, claim: dict[str, Any]) -> list[str]:
    """Where one cell, computed afresh, is not as the claim's bundle has it: the plain pipeline's weights and scores."""
    bundle = json.loads((HERE / f"{name}.json").read_text())
    published = bundle["cells"][0]
    cell = Cell((*published["settings"], 'pipelines={"sft": {"align": "sft", "edit": "antidote"}}'), published["seed"])
    with tempfile.TemporaryDirectory() as folder:
        fresh = computed(name, Sweep(claim["recipe"], [cell], Path(folder) / "cells", Path(folder) / "store"))["cells"][0]
    wanted, got = published["pipelines"]["sft+antidote"]["stages"], fresh["pipelines"]["sft"]["stages"]
    return [
        f"{name}: {was['kind']} has {key} {now[key]} where the bundle has {was[key]}"
        for was, now in zip(wanted, got, strict=True)
        for key in ("weights", "scores")
        if was[key] != now[key]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("claims", nargs="*", help="all if left out")
    parser.add_argument("--cell", action="store_true", help="compare one cell of each, computed afresh, with its bundle")
    arguments = parser.parse_args()
    known = claims()
    wanted = {name: known[name] for name in arguments.claims or known}
    if arguments.cell:
        faults = [fault for name, claim in wanted.items() for fault in differs(name, claim)]
        print("\n".join(faults) or f"one cell of {', '.join(wanted)} is as its bundle has it, bit for bit")
        return int(bool(faults))
    missing = 0
    for name, claim in wanted.items():
        points = [cell for grid in claim["grids"] for cell in cells(grid, [], claim["seeds"])]
        plan = Sweep(claim["recipe"], points, RUNS / f"results-{name}", RUNS / "store", jobs=os.cpu_count() or 1)
        bundle = computed(name, plan)
        (HERE / f"{name}.json").write_text(text(bundle))
        missing += sum(cell["status"] != "done" for cell in bundle["cells"])
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
