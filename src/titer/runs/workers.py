"""Where the cells of a sweep run: in local processes, or elsewhere by what a `Workers` says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# threads that wait for one another must not spin: several cells share the cores
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Job:
    """A cell to be run: what `titer run` is told."""

    recipe: str
    settings: Sequence[str]
    seed: int
    only: Sequence[str]  # these pipelines; none named: all
    folder: Path
    store: Path


@dataclass(frozen=True)
class Ended:
    """How a job ended: with the documents of its pipelines, or with an error of one line."""

    pipelines: dict[str, Any] | None = None
    error: str = ""
    # whatever ran it was killed, by a person, by the system, or with its machine: not its own error
    lost: bool = False


class Workers(ABC):
    """Run jobs, several at a time, within a `with` statement."""

    def expect(self, threads: Collection[int | None]) -> None:  # noqa: B027
        """Be told beforehand the threads of the recipes that will be run, as they say them."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:  # noqa: B027
        pass

    @property
    @abstractmethod
    def at_once(self) -> int:
        """The number of jobs that may be given at a time."""

    @abstractmethod
    def run(self, job: Job) -> Ended:
        """Run a job to its end. Called by several threads at a time."""

    @abstractmethod
    def stop(self) -> None:
        """End at once all that runs; the store has the stages that were finished."""


@dataclass
class Processes(Workers):
    """Local processes, `jobs` at a time, which share the cores."""

    jobs: int = 1
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def at_once(self) -> int:
        return self.jobs

    def run(self, job: Job) -> Ended:
        settings = [part for setting in job.settings for part in ("--set", setting)]
        settings += [part for name in job.only for part in ("--only", name)]
        command = [sys.executable, "-m", "titer", "run", job.recipe, *settings]
        command += ["--seed", str(job.seed), "--out", str(job.folder), "--store", str(job.store)]
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        process = subprocess.Popen(
            [*command, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"OMP_NUM_THREADS": str(threads), **os.environ, **WAITING},
            start_new_session=True,
        )
        with self._lock:
            self._running.add(process)
        out, error = process.communicate()
        with self._lock:
            self._running.discard(process)
        if process.returncode == 0:
            return _read(out)
        if process.returncode < 0:
            return Ended(error=f"killed by signal {-process.returncode}", lost=True)
        lines = error.strip().splitlines() or [f"exit code {process.returncode}"]
        return Ended(error=lines[-1])

    def stop(self) -> None:
        with self._lock:
            for process in self._running:
                os.killpg(process.pid, signal.SIGKILL)


def _read(printed: str) -> Ended:
    """Read the documents that a run printed last: a method of a person's own may have printed, too."""
    _, _, last = f"\n{printed}".rpartition("\n{")
    try:
        return Ended(json.loads("{" + last))
    except ValueError:
        return Ended(error=f"error: no documents are in what it printed: {printed[-80:]!r}")
