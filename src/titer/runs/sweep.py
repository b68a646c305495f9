"""A recipe over a grid of settings and seeds.

Every cell is a `titer run`, by default in a process of its own (`runs.workers`); the stages that
they share are computed once. A cell that fails is missing, with its error: never a result. One
whose worker was killed is tried once more. A sweep that was interrupted goes on when it is started
again.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from titer import paths
from titer.config import hash_of, read_yaml
from titer.findings import flags
from titer.findings.records import CellRecord, load_document
from titer.findings.seeds import by_settings, cell_name
from titer.methods import Benchmark
from titer.registry import describe
from titer.runs import recipe as recipes
from titer.runs.execute import is_free
from titer.runs.keys import all_code
from titer.runs.plan import Plan
from titer.runs.roles import Data, Roles, roles
from titer.runs.store import write
from titer.runs.workers import Ended, Job, Processes, Workers

TRIES = 2  # of a cell whose worker was killed


@dataclass(frozen=True)
class Cell:
    """A point of the grid with a seed."""

    settings: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        return cell_name(self.settings, self.seed)


def cells(grid: Sequence[str], settings: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """List every combination of the grid's values, `path.to.field=1,2,3`, settings and seeds."""
    axes, given = [], []
    for axis in grid:
        path, equals, text = axis.partition("=")
        given.append(path)
        values = read_yaml(f"[{text}]", f"--grid {axis!r}")
        if not equals or not path or not values:
            raise ValueError(f"--grid {axis!r}: give path.to.field=value,value,...")
        axes.append([f"{path}={json.dumps(value)}" for value in values])
    if len(set(given)) < len(given):
        raise ValueError(f"--grid {max(given, key=given.count)} is given twice: take one out")
    if len(set(seeds)) < len(seeds) or not seeds:
        raise ValueError(f"--seeds {','.join(map(str, seeds))}: give different ones, at least one")
    if twice := next((axis for axis in axes for each in axis if axis.count(each) > 1), None):
        raise ValueError(f"--grid {twice[0].partition('=')[0]} has a value twice: take one out")
    points = list(itertools.product(*axes))
    return [Cell((*settings, *point), seed) for point in points for seed in seeds]


@dataclass
class Sweep:
    """Cells to be run in a folder by some workers, over one store."""

    recipe: str
    cells: Sequence[Cell]
    folder: Path
    store: Path
    only: Sequence[str] = ()  # these pipelines; none named: all
    workers: Workers = field(default_factory=Processes)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise before any cell is run where the settings of one are wrong.

        So it does where the folder holds cells of another recipe, of other rows, or what is no
        sweep.
        """
        self._check_folder()
        raw, read_rows, threads = recipes.read(self.recipe), _read_once(), set[int | None]()
        for cell in self.cells:
            recipe = recipes.from_mapping(deepcopy(raw), cell.settings, cell.seed)
            recipe, folder = recipes.only(recipe, self.only), self._folder(cell)
            threads.add(recipe.threads)
            if not folder.exists():
                continue
            plan = Plan.read(recipe, read_rows=read_rows)
            if not is_free(folder, f"run {plan.identity}"):
                raise ValueError(
                    f"{self.folder} holds cells of another recipe or of other rows: "
                    "give another --out, or remove it"
                )
        self.workers.expect(threads)

    def _check_folder(self) -> None:
        """Raise where the folder holds what is no sweep's: its page would take the place of a file."""
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if there and not there & {paths.SWEEP, paths.CELLS}:
            raise ValueError(
                f"{self.folder} holds something else: give another --out, or remove it"
            )

    def _folder(self, cell: Cell) -> Path:
        return self.folder / paths.CELLS / cell.name

    def run(self, report: Callable[[Cell, str], None]) -> dict[str, Any]:
        """Run the cells that are not done; return the bundle, which is written as sweep.json.

        `report(cell, status)` is called as it goes: running, done, failed, missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (
            self.workers,
            ThreadPoolExecutor(self.workers.at_once) as pool,
            self._interruptible(),
        ):
            found = list(pool.map(lambda cell: self._cell(cell, report), self.cells))
        bundle = {
            "recipe": self.recipe,
            "code": all_code(),
            "cells": found,
            "missing": sum(cell["status"] != "done" for cell in found),
            "flags": disagreeing(found),
        }
        write(self.folder / paths.SWEEP, bundle)
        return bundle

    def _cell(self, cell: Cell, report: Callable[[Cell, str], None]) -> dict[str, Any]:
        """Return what a cell came to, computed or as it lies in its folder."""
        folder, marker = self._folder(cell), self._folder(cell).with_suffix(".json")
        if marker.is_file() and folder.is_dir():  # whose recipe and rows have been checked
            found = load_document(marker, CellRecord)
            if found["status"] == "done" and found.get("code") == all_code():
                report(cell, "done")
                return found
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = {"settings": list(cell.settings), "seed": cell.seed, "code": all_code()}
        job = Job(self.recipe, cell.settings, cell.seed, self.only, folder, self.store)
        ended, tries = Ended(lost=True), 0
        while ended.lost and tries < TRIES:
            report(cell, "running")
            ended, tries = self.workers.run(job), tries + 1
            if self._stopping.is_set():
                threading.Event().wait()  # for the end of this process: nothing more is begun
            if ended.pipelines is None:
                report(cell, "failed")
                told: dict[str, Any] = {"status": "missing", "error": ended.error}
            else:
                told = {"status": "done", "pipelines": ended.pipelines}
            write(marker, about | {"tries": tries} | told)
        report(cell, "missing" if ended.pipelines is None else "done")
        return load_document(marker, CellRecord)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """End the running cells at once on Ctrl-C or SIGTERM inside; the store has their stages."""

        def stop(number: int, frame: Any) -> None:
            self._stopping.set()
            try:
                self.workers.stop()
            finally:  # whatever a cluster says of it
                os._exit(130)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _read_once() -> Callable[..., Roles]:
    """Return a reader of rows that knows those that it has read, as most cells have the same."""
    known: dict[Any, Roles] = {}

    def read(
        data: Data,
        benchmark: Benchmark | None,
        wanted: Set[str],
        earlier: Mapping[str, frozenset[str]],
    ) -> Roles:
        asked = hash_of([describe(data), describe(benchmark), sorted(wanted)])
        key = asked, frozenset(earlier.items())
        if key not in known:
            known[key] = roles(data, benchmark, wanted, earlier)
        return known[key]

    return read


def disagreeing(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the flags that the seeds of one setting raise together."""
    found = [
        (settings, flag)
        for settings, by_seed in by_settings(cells).items()
        for flag in flags.seeds(by_seed)
    ]
    return flags.as_documents(
        [replace(flag, pipeline=" ".join([*settings, flag.pipeline])) for settings, flag in found]
    )
