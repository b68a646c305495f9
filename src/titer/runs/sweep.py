"""A recipe over a grid of settings and seeds.

Every cell is a `titer run` in a process of its own; the stages that they share are computed once. A
cell that fails is tried once more and then is missing, with its error: never a result. A sweep that
was interrupted goes on when it is started again.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from titer import paths
from titer.config import read_yaml
from titer.findings import flags
from titer.findings.records import CellRecord, load_document
from titer.findings.seeds import by_settings, cell_name
from titer.runs import recipe as recipes
from titer.runs.execute import is_free
from titer.runs.keys import all_code
from titer.runs.plan import Plan
from titer.runs.store import write

TRIES = 2


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
    points = list(itertools.product(*axes))
    return [Cell((*settings, *point), seed) for point in points for seed in seeds]


@dataclass
class Sweep:
    """Cells to be run in a folder, at most `jobs` at a time, over one store."""

    recipe: str
    cells: Sequence[Cell]
    folder: Path
    store: Path
    jobs: int = 1
    only: Sequence[str] = ()  # these pipelines; none named: all
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Raise before any cell is run where the settings of one are wrong.

        So it does where the folder holds cells of another recipe or of other rows.
        """
        for cell in self.cells:
            recipe = recipes.load(self.recipe, cell.settings, cell.seed)
            recipe, folder = recipes.only(recipe, self.only), self._folder(cell)
            if folder.exists() and not is_free(folder, f"run {Plan.read(recipe).identity}"):
                raise ValueError(
                    f"{self.folder} holds cells of another recipe or of other rows: "
                    "give another --out, or remove it"
                )

    def _folder(self, cell: Cell) -> Path:
        return self.folder / paths.CELLS / cell.name

    def run(self, report: Callable[[Cell, str], None]) -> dict[str, Any]:
        """Run the cells that are not done; return the bundle, which is written as sweep.json.

        `report(cell, status)` is called as it goes: running, done, failed, missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ThreadPoolExecutor(self.jobs) as pool, self._interruptible():
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
        for attempt in range(TRIES):
            report(cell, "running")
            status, out, error = self._process(cell, folder)
            if status == 0:
                write(
                    marker,
                    about | {"status": "done", "tries": attempt + 1, "pipelines": json.loads(out)},
                )
                report(cell, "done")
                break
            report(cell, "failed")
            lines = error.strip().splitlines() or [f"exit code {status}"]
            write(marker, about | {"status": "missing", "tries": attempt + 1, "error": lines[-1]})
        else:
            report(cell, "missing")
        return load_document(marker, CellRecord)

    def _process(self, cell: Cell, folder: Path) -> tuple[int, str, str]:
        settings = [part for setting in cell.settings for part in ("--set", setting)]
        settings += [part for name in self.only for part in ("--only", name)]
        command = [sys.executable, "-m", "titer", "run", self.recipe, *settings]
        command += [
            "--seed",
            str(cell.seed),
            "--out",
            str(folder),
            "--store",
            str(self.store),
            "--json",
        ]
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        # threads that wait for one another must not spin: several processes share the cores
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        with self._lock:
            self._running.add(process)
        out, error = process.communicate()
        with self._lock:
            self._running.discard(process)
        return process.returncode, out, error

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """End the running cells at once on Ctrl-C or SIGTERM inside; the store has their stages."""

        def stop(number: int, frame: Any) -> None:
            with self._lock:
                for process in self._running:
                    os.killpg(process.pid, signal.SIGKILL)
            os._exit(130)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
