"""The cells of a sweep as tasks of a Ray cluster, over one store on a file system that all its
machines share.

A machine's worker process computes cells one after another, in the folder where the sweep was
started, with as many threads as a local process has. It ends with the sweep, and on a GPU with its
cell.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import traceback
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titer.errors import EvidenceError, cause
from titer.runs import recipe as recipes
from titer.runs.keys import all_code
from titer.runs.workers import WAITING, Ended, Job, Workers

THREADS = "OMP_NUM_THREADS"


@dataclass
class RayCluster(Workers):
    """The workers of a Ray cluster that runs already.

    A cell takes `cpus` (None: as many as its recipe has threads, or one) and `gpus`, which may be a
    part of one (None: one where a machine has any). As many cells run as the machines have room
    for, or `jobs`.
    """

    address: str  # host:port of its head, or `auto`: the cluster of this machine
    jobs: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    _threads: Collection[int | None] = (None,)  # of the recipes that will be run
    _running: set[Any] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, threads: Collection[int | None]) -> None:
        self._threads = threads

    def __enter__(self) -> RayCluster:
        """Connect. Raises where no cluster answers, and where no machine has room for some cell."""
        try:
            import ray
        except ModuleNotFoundError:
            raise ValueError(
                "--ray needs Ray, which is not installed: pip install 'titer[ray]'"
            ) from None
        given = {THREADS: os.environ[THREADS]} if THREADS in os.environ else {}
        try:
            ray.init(
                self.address,
                runtime_env={"env_vars": {**WAITING, **given}},
                log_to_driver=False,
                logging_level="error",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"--ray {self.address}: no cluster answers ({cause(error)}): give `auto` on a machine "
                "where `ray start` has run, or the address that it printed"
            ) from None
        if self.gpus is None:
            # Ray hides no GPU from a cell that asks for none: all cells would be on the first.
            # Said once, so that no cell goes to a CPU when a machine is lost
            self.gpus = 1.0 if any(machine.get("GPU") for machine in _machines()) else 0.0
        most = max(map(self._cpus, self._threads))
        if not self._room(most):  # Ray would wait for one that has
            ray.shutdown()
            raise ValueError(
                f"no machine of the cluster has room for a cell of {most} CPUs and {self.gpus:g} GPUs: "
                "give less to --ray-cpus, --ray-gpus or the recipe's threads"
            )
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()

    def _cpus(self, threads: int | None) -> int:
        """Return the CPUs of a cell whose recipe has these threads."""
        return self.cpus or threads or 1

    def _room(self, cpus: int) -> int:
        """Count the cells of so many CPUs that the machines have room for at a time."""
        wanted = {"CPU": cpus, "GPU": self.gpus}
        return sum(
            int(min(machine.get(name, 0) / need for name, need in wanted.items() if need))
            for machine in _machines()
        )

    @property
    def at_once(self) -> int:
        return self.jobs or self._room(min(map(self._cpus, self._threads)))

    def run(self, job: Job) -> Ended:
        import ray

        cell = recipes.load(job.recipe, job.settings, job.seed)
        cpus = self._cpus(cell.threads)
        threads = int(os.environ.get(THREADS, cpus))
        running = self._task(cpus).remote(job, Path.cwd(), threads, all_code())
        with self._lock:
            self._running.add(running)
        try:
            ended: Ended = ray.get(running)
            return ended
        except ray.exceptions.RayTaskError as error:  # a fault that is not the input's
            [*_, last] = traceback.format_exception_only(error.cause)
            return Ended(error=" ".join(last.split()))
        except ray.exceptions.RayError as error:
            return Ended(error=f"its worker was lost: {cause(error)}", lost=True)
        finally:
            with self._lock:
                self._running.discard(running)

    def _task(self, cpus: int) -> Any:
        """Return what computes a cell of so many CPUs in a worker."""
        import ray

        gpus = self.gpus or 0.0
        # a worker that stayed would keep its context, and what its allocator holds, on a GPU that the
        # next cell need not get; Ray does not take this limit from `options`
        calls = 1 if gpus else 0  # 0: any number
        # tried again by the sweep, which counts
        of = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=calls, max_retries=0)
        return of(compute)

    def stop(self) -> None:
        import ray

        with self._lock:
            for running in self._running:
                # one that is out of reach keeps no other from being stopped
                with suppress(ray.exceptions.RayError, RuntimeError, ValueError):
                    ray.cancel(running, force=True)
        ray.shutdown()


def _machines() -> list[dict[str, float]]:
    """List what each machine of the cluster that is connected has, by the name of the resource."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def compute(job: Job, place: Path, threads: int, code: str) -> Ended:
    """Run a cell in a worker of the cluster, in the folder and with the threads that it is given.

    `code` is that of the titer that started the sweep: another one would compute something else.
    """
    import torch

    from titer import api

    here = socket.gethostname()
    if all_code() != code:
        return Ended(error=f"error: {here} has another titer: install there what the sweep has")
    if not place.is_dir() or not (place / job.folder.parent).is_dir():
        return Ended(
            error=f"error: {here} does not see {place / job.folder.parent}: the sweep's folder must "
            "be on a file system that all machines share"
        )
    os.chdir(place)  # what a recipe names lies from there
    torch.set_num_threads(threads)  # or those that the recipe says
    try:
        recipe = recipes.only(recipes.load(job.recipe, job.settings, job.seed), job.only)
        documents = api.run_recipe(recipe, job.folder, job.store).documents
    except (ValueError, OSError) as error:  # as the command line tells it
        kind = "undecided" if isinstance(error, EvidenceError) else "error"
        return Ended(error=f"{kind}: {' '.join(str(error).split()) or type(error).__name__}")
    return Ended(json.loads(json.dumps(documents)))
