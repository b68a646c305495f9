"""The cells of a sweep as tasks of a Ray cluster, over one store on a file system that all its
machines share.

A machine's worker process computes cells one after another, in the folder where the sweep was
started, with as many threads as a local process has. It ends with the sweep.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import traceback
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
    part of one. As many cells run as the machines have room for, or `jobs`.
    """

    address: str  # host:port of its head, or `auto`: the cluster of this machine
    jobs: int | None = None
    cpus: int | None = None
    gpus: float = 0.0
    _running: set[Any] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> RayCluster:
        """Connect. Raises where no cluster answers, and where no machine has room for a cell."""
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
        if not self._room():
            ray.shutdown()
            raise ValueError(
                f"no machine of the cluster has room for a cell of {self.cpus or 1} CPUs and "
                f"{self.gpus:g} GPUs: give less to --ray-cpus or --ray-gpus"
            )
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()

    def _room(self) -> int:
        """Count the cells that the machines have room for at a time."""
        import ray

        wanted = {"CPU": self.cpus or 1, "GPU": self.gpus}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            int(min(machine.get(name, 0) / need for name, need in wanted.items() if need))
            for machine in machines
        )

    @property
    def at_once(self) -> int:
        return self.jobs or self._room()

    def run(self, job: Job) -> Ended:
        import ray

        cell = recipes.load(job.recipe, job.settings, job.seed)
        cpus = self.cpus or cell.threads or 1
        threads = int(os.environ.get(THREADS, cpus))
        # tried again by the sweep, which counts
        task = ray.remote(compute).options(num_cpus=cpus, num_gpus=self.gpus, max_retries=0)
        running = task.remote(job, Path.cwd(), threads, all_code())
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

    def stop(self) -> None:
        import ray

        with self._lock:
            for running in self._running:
                # one that is out of reach keeps no other from being stopped
                with suppress(ray.exceptions.RayError, RuntimeError, ValueError):
                    ray.cancel(running, force=True)
        ray.shutdown()


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
