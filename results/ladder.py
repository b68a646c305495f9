"""The bundles of claims that name a ladder: a record for every pipeline of a recipe at every point of
a grid, each by a `titer attack` of its own. Resumable, as the other claims are.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from results import bundles
from results.names import display_name
from titer import paths
from titer.findings.ladder import REACH, LadderRecord, RungRecord
from titer.findings.records import check, quote
from titer.runs import recipe
from titer.runs.documents import environment
from titer.runs.sweep import Cell, cells
from titer.scoring.pooled import pooled

RUNS = bundles.HERE.parent / "runs"
NONE = "-"  # missing
KEPT = {"name", "beyond", "aware", "cost", "figure", "harm", "word", "why", "dose"}  # of a rung


@dataclass(frozen=True)
class Point:
    """A ladder to be set: at which model, of which cell."""

    claim: str
    recipe: str
    ladder: str
    pipeline: str
    cell: Cell

    @property
    def folder(self) -> Path:
        name = self.pipeline.replace("+", "-")
        return RUNS / f"results-{self.claim}" / f"{self.cell.name}-{name}"

    @property
    def command(self) -> list[str]:
        options = {
            "--recipe": self.recipe,
            "--ladder": self.ladder,
            "--pipeline": self.pipeline,
            "--seed": str(self.cell.seed),
            "--out": str(self.folder),
            "--store": str(RUNS / "store"),
        }
        told = [part for option in options.items() for part in option]
        settings = [part for setting in self.cell.settings for part in ("--set", setting)]
        return [sys.executable, "-m", "titer", "attack", *told, *settings, "--json"]


def compute(name: str, claim: Mapping[str, Any], jobs: int | None = None) -> dict[str, Any]:
    """Return the bundle of a claim."""
    points = [cell for grid in claim["grids"] for cell in cells(grid, [], claim["seeds"])]
    pipelines = claim.get("only") or list(recipe.load(claim["recipe"]).pipelines)
    every = [
        Point(name, claim["recipe"], claim["ladder"], pipeline, cell)
        for cell in points
        for pipeline in pipelines
    ]
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        found = dict(zip(every, pool.map(climb, every), strict=True))
    return {
        "claim": name,
        "recipe": recipe.describe(recipe.load(claim["recipe"])),
        "ladder": claim["ladder"],
        "environment": environment(),
        "cells": [_cell(cell, {p.pipeline: found[p] for p in every if p.cell == cell}) for cell in points],
    }  # fmt: skip


def climb(point: Point) -> dict[str, Any]:
    """Return what a ladder found, or why there is nothing."""
    ran = subprocess.run(point.command, capture_output=True, text=True, check=False)
    if ran.returncode not in (0, 1):  # 1: a rung is missing, as the record says
        return {"error": (ran.stderr.strip().splitlines() or ["no word"])[-1]}
    return extract(json.loads((point.folder / paths.LADDER).read_text(encoding="utf-8")))


def extract(document: Mapping[str, Any]) -> dict[str, Any]:
    """Extract from a ladder's record what a claim rests on."""
    kept = ("ladder", "sha256", "bar", "pipeline", "breaks", "worst", "flags")
    rungs = []
    for rung in document["rungs"]:
        told = {key: rung[key] for key in rung if key in KEPT}
        task = ((rung["record"] or {}).get("scores") or {}).get("task")
        rungs.append(told | {"task": task})
    return {key: document[key] for key in kept} | {"rungs": rungs}


def _cell(cell: Cell, found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    errors = {name: of["error"] for name, of in found.items() if "error" in of}
    return {
        "settings": list(cell.settings),
        "seed": cell.seed,
        "status": "missing" if errors else "done",
        **({"error": "; ".join(f"{name}: {why}" for name, why in errors.items())} if errors else {}),
        "ladders": {name: of for name, of in found.items() if "error" not in of},
    }  # fmt: skip


def records(claim: str) -> dict[str, dict[str, LadderRecord]]:
    """Read the records of a claim, by pipeline and by the settings of a cell."""
    found: dict[str, dict[str, LadderRecord]] = {}
    for cell in json.loads(bundles.path(claim).read_text())["cells"]:
        settings = " ".join(cell["settings"])
        for name, document in cell["ladders"].items():
            read = check(LadderRecord, document, f"{claim}, {name}")
            found.setdefault(name, {})[settings] = read
    return found


def table(claim: str) -> list[list[str]]:
    """The harm of every rung, as a mean over worlds, and what breaking each model cost."""
    found = {name: list(of.values()) for name, of in records(claim).items()}
    first = next(iter(found.values()))[0]
    lines = [["rung", "access", "passes", *map(display_name, found)]]
    for rung in first.rungs:
        same = [[record.rung(rung.name) for record in of] for of in found.values()]
        told = [rung.name, rung.cost.access, str(rung.cost.passes)]
        lines.append([*told, *map(harm, same)])
    for access in REACH:
        told = [f"*cost to break by {access}*", access, ""]
        lines.append([*told, *(breaks(of, access) for of in found.values())])
    return lines


def harm(of: Sequence[RungRecord]) -> str:
    """Write the harm of a rung over worlds; a world that misses it is told of."""
    values = [rung.harm.value for rung in of if rung.harm]
    if not values:
        return NONE
    known = pooled(values)
    lacking = f" ({len(of) - len(values)} of {len(of)} missing)" if len(values) < len(of) else ""
    if not known.known:
        return f"{fmean(values):.1f}{lacking}"
    return f"{known.value:.1f} [{max(known.low, 0):.1f}, {min(known.high, 100):.1f}]{lacking}"


def breaks(of: Sequence[LadderRecord], access: str) -> str:
    """Name the rungs that broke a model, by world."""
    return ", ".join(record.breaks[access].below or "none shown" for record in of)


def worst(claim: str) -> list[list[str]]:
    """The worst rung of every model, and the prompts that some rung had answered."""
    lines = [["model", "settings", "worst rung", "HS", "answered under at least one rung"]]
    for name, of in records(claim).items():
        for settings, record in of.items():
            each = record.worst
            scores = [quote(score) if score else NONE for score in (each.harm, each.prompts)]
            lines.append([display_name(name), settings, each.rung or NONE, *scores])
    return lines
