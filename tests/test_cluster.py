"""A sweep on a real Ray cluster of two workers, one of which is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from test_sweep import figures
from titer import api
from titer.integrations.cluster import RayCluster, compute
from titer.runs import recipe
from titer.runs.keys import all_code
from titer.runs.store import Store
from titer.runs.sweep import Sweep, cells
from titer.runs.workers import Ended, Job, Workers

START = 180  # seconds that a cluster may take to start on a busy machine
PATIENT = {  # Ray's own limits are those of a machine that does nothing else
    "RAY_agent_register_timeout_ms": f"{START}000",
    "RAY_raylet_start_wait_time_s": f"{START}",
    "RAY_worker_register_timeout_seconds": f"{START}",
    "RAY_health_check_timeout_ms": f"{START}000",
    "RAY_health_check_failure_threshold": "100",
    "RAY_USAGE_STATS_ENABLED": "0",
}
SMALL = [
    'pipelines={"sft": {}}',
    "align.updates=1",
    "finetune.updates=1",
    "dose_prompts=0",
    "prefill_prompts=0",
    "max_new_tokens=2",
    "data.limit=2",
]
GRID = ["finetune.lr=1e-3,2e-3,3e-3", "attack.n=50,40", "finetune.batch=4,2"]


class Here(Workers):
    """This process itself, which computes as a local one does (`test_sweep`)."""

    at_once = 1

    def run(self, job: Job) -> Ended:
        cell = recipe.load(job.recipe, job.settings, job.seed)
        return Ended(dict(api.run_recipe(cell, job.folder, job.store).documents))

    def stop(self) -> None:
        raise AssertionError("nobody interrupted it")


@pytest.fixture
def address(tmp_path_factory) -> Iterator[str]:
    """The address of a cluster with two CPUs, which ends with the test."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("ray")
    short = Path("/tmp") / f"titer-{os.getpid()}"  # the paths of its sockets must be short
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--num-cpus=2", "--include-dashboard=false", "--object-store-memory=80000000"]
    command += ["--port=0", "--disable-usage-stats", f"--temp-dir={short}"]
    said = folder / "said"
    with said.open("w") as out:
        head = subprocess.Popen(
            command, stdout=out, stderr=out, env=os.environ | PATIENT, start_new_session=True
        )
    try:
        yield _wait_for(said, head)
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait()
        subprocess.run(["rm", "-rf", str(short)], check=True)


def _wait_for(said: Path, head: subprocess.Popen) -> str:
    """Return the address that a cluster prints once it has started."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and head.poll() is None:
        for line in said.read_text().splitlines():
            if "--address='" in line:
                return line.split("--address='")[1].split("'")[0]
        time.sleep(0.2)
    pytest.fail(f"no cluster: {said.read_text()[-1000:]}")


def at_work() -> list[psutil.Process]:
    """The processes of the machine that compute cells."""
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if "ray::compute" in " ".join(each.info["cmdline"] or [])]


def wait_for(done: int, folder: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and len(list(folder.glob("cells/*.json"))) < done:
        time.sleep(0.05)


def kill_one(killed: list[int], folder: Path) -> None:
    """Kill a worker that computes, once a few cells are done."""
    wait_for(6, folder)
    while not killed:
        for process in at_work()[:1]:
            process.kill()
            killed.append(process.pid)
        time.sleep(0.01)


@pytest.mark.slow
def test_a_sweep_is_interrupted_and_a_worker_is_killed_and_nothing_is_lost(
    address, recipe_file, tmp_path
):
    points = cells(GRID, SMALL, [0, 1])
    assert len(points) == 24
    options = [part for axis in GRID for part in ("--grid", axis)]
    options += [part for setting in SMALL for part in ("--set", setting)]
    options += ["--seeds", "0,1", "--ray", address]
    options += ["--out", str(tmp_path / "there"), "--store", str(tmp_path / "two")]
    cut = subprocess.Popen(
        [sys.executable, "-m", "titer", "sweep", recipe_file, *options],
        stderr=subprocess.DEVNULL,
    )
    wait_for(2, tmp_path / "there")
    cut.send_signal(signal.SIGINT)
    assert cut.wait() == 130
    deadline = time.monotonic() + 30
    while at_work() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert at_work() == []
    assert not (tmp_path / "there/sweep.json").exists()

    there = Sweep(
        recipe_file, points, tmp_path / "there", tmp_path / "two", workers=RayCluster(address)
    )
    there.check()
    killed: list[int] = []
    threading.Thread(target=kill_one, args=(killed, tmp_path / "there"), daemon=True).start()
    bundle = there.run(lambda *_: None)
    assert killed
    assert bundle["missing"] == 0
    assert sum(cell["tries"] for cell in bundle["cells"]) == 25  # one was lost, and tried again
    here = Sweep(recipe_file, points, tmp_path / "here", tmp_path / "one", workers=Here())
    assert figures(bundle) == figures(here.run(lambda *_: None))
    assert len(figures(bundle)) == 24
    assert Store(tmp_path / "two").verify() == {}
    keys = Store(tmp_path / "one").keys()
    assert keys
    assert keys == Store(tmp_path / "two").keys()  # also of threads and versions


def test_a_cluster_that_is_not_there_is_told_in_a_line(monkeypatch, capsys, recipe_file, tmp_path):
    for arguments, message in (
        (["--ray-cpus", "2"], "give --ray auto or its address"),
        (["--ray-gpus", "0.5"], "give --ray auto or its address"),
        (["--ray-gpus", "0"], "give --ray auto or its address"),
    ):
        code, out, err = titer(
            monkeypatch, capsys, "sweep", recipe_file, *arguments, "--out", str(tmp_path / "out")
        )
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = titer(
        monkeypatch, capsys, "sweep", recipe_file, "--ray", "auto", "--out", str(tmp_path / "out")
    )
    assert code == 2
    assert "pip install 'titer[ray]'" in err


class Cluster(ModuleType):
    """Stands for Ray: a cluster of these machines, which computes nothing."""

    def __init__(self, *machines: dict[str, float]) -> None:
        super().__init__("ray")
        self.machines, self.tasks, self.connected = machines, list[dict[str, float]](), False

    def init(self, *_: object, **__: object) -> None:
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def nodes(self) -> list[dict]:
        assert self.connected
        return [{"Alive": True, "Resources": machine} for machine in self.machines]

    def remote(self, **options: float):
        self.tasks.append(options)
        return lambda function: function


def sweep_on(cluster, monkeypatch, recipe_file, folder, *settings, **given) -> Sweep:
    monkeypatch.setitem(sys.modules, "ray", cluster)
    points, workers = cells(GRID[:1], [*SMALL, *settings], [0]), RayCluster("auto", **given)
    there = Sweep(recipe_file, points, folder / "out", folder / "store", workers=workers)
    there.check()
    return there


@pytest.mark.parametrize(
    ("settings", "given", "wants"),
    [
        (["threads=8"], {}, "8 CPUs and 0 GPUs"),
        (["threads=null"], {"cpus": 5}, "5 CPUs and 0 GPUs"),
        ([], {"gpus": 0.5}, "1 CPUs and 0.5 GPUs"),
    ],
)
def test_a_sweep_with_a_cell_that_fits_on_no_machine_does_not_start(
    settings, given, wants, monkeypatch, recipe_file, tmp_path
):
    cluster = Cluster({"CPU": 4.0}, {"CPU": 2.0})
    there = sweep_on(cluster, monkeypatch, recipe_file, tmp_path, *settings, **given)
    with pytest.raises(
        ValueError, match=f"no machine of the cluster has room for a cell of {wants}"
    ):
        there.run(lambda *_: None)
    assert (cluster.tasks, cluster.connected) == ([], False)


@pytest.mark.parametrize(
    ("machines", "given", "gpus", "at_once"),
    [
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0}], {}, 1.0, 8),
        ([{"CPU": 64.0, "GPU": 8.0}], {"gpus": 0.5}, 0.5, 16),
        ([{"CPU": 64.0, "GPU": 8.0}], {"gpus": 0.0}, 0.0, 32),
        ([{"CPU": 4.0}, {"CPU": 3.0}], {}, 0.0, 3),
        ([{"CPU": 4.0}], {"jobs": 1}, 0.0, 1),
    ],
)
def test_a_cell_takes_a_gpu_where_there_are_some(
    machines, given, gpus, at_once, monkeypatch, recipe_file, tmp_path
):
    cluster = Cluster(*machines)
    there = sweep_on(cluster, monkeypatch, recipe_file, tmp_path, "threads=2", **given)
    with there.workers as workers:
        assert workers.at_once == at_once
        cluster.machines = cluster.machines[1:]  # the first is lost
        workers._task(2)
    taken = {"num_cpus": 2, "num_gpus": gpus, "max_calls": 1 if gpus else 0, "max_retries": 0}
    assert cluster.tasks == [taken]


@pytest.mark.parametrize(("gpus", "calls"), [(1.0, 1), (0.0, 0)])
def test_ray_ends_a_worker_that_has_had_a_gpu(gpus, calls):
    pytest.importorskip("ray")
    assert RayCluster("auto", gpus=gpus)._task(2)._max_calls == calls


def test_what_a_worker_cannot_do_is_an_error_of_one_line(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which a worker changes
    (tmp_path / "cells").mkdir()
    job = Job(recipe_file, [*SMALL, "attack.n=1000"], 0, [], Path("cells/a"), Path("store"))
    other = compute(job, tmp_path, 1, "another")
    assert "has another titer" in other.error
    assert not other.lost
    unseen = compute(job, tmp_path / "elsewhere", 1, all_code())
    assert "must be on a file system that all machines share" in unseen.error
    refused = compute(job, tmp_path, 1, all_code())
    assert refused.error.startswith("error: ")
    assert "ask for 200 harmful rows but there are 50" in refused.error
    assert (refused.lost, refused.pipelines) == (False, None)


def test_a_worker_computes_with_the_threads_that_it_is_given(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells").mkdir()
    torch.set_num_threads(1)
    job = Job(recipe_file, [*SMALL, "threads=null"], 0, [], Path("cells/a"), Path("store"))
    ended = compute(job, tmp_path, 2, all_code())
    assert ended.pipelines is not None
    assert ended.pipelines["sft"]["environment"]["threads"] == 2
    assert json.loads(Path("cells/a/sft.json").read_text()) == ended.pipelines["sft"]
