"""Sweeps: every cell once, failures missing and never results, the same after an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer.progress import Silent
from titer.runs import recipe
from titer.runs.execute import Run, claim
from titer.runs.plan import Plan
from titer.runs.store import Store
from titer.runs.sweep import Cell, Sweep, cells
from titer.runs.workers import Ended, Job, Processes, Workers


def test_the_cells_are_all_combinations():
    found = cells(["a.b=1,2.5", "c=x,null"], ["d=0"], [0, 3])
    assert len(found) == len({cell.name for cell in found}) == 8
    assert found[0] == Cell(("d=0", "a.b=1", 'c="x"'), 0)
    assert found[-1] == Cell(("d=0", "a.b=2.5", "c=null"), 3)
    assert [cell.settings for cell in cells(["lr=4e-4,1.6e-3,none"], [], [0])] == [
        ("lr=0.0004",),
        ("lr=0.0016",),
        ('lr="none"',),
    ]
    assert [cell.settings for cell in cells(["p=[q, k],[v]"], [], [0])] == [
        ('p=["q", "k"]',),
        ('p=["v"]',),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "attack.p"], "--grid 'attack.p': give path.to.field=value,value"),
        (["--grid", "attack.p="], "give path.to.field=value,value"),
        (["--grid", "attack.pp=0,1"], "unknown key 'pp'"),
        (["--grid", "attack.p=0,2"], "p=2.0: the harmful ratio must lie between 0 and 1"),
        (["--seeds", "0,0"], "give different ones"),
        (["--seeds", "a"], "--seeds 'a': give whole numbers"),
        (["--set", "attack.p"], "give path.to.field=value"),
    ],
)
def test_what_is_wrong_with_a_cell_is_found_before_any_is_run(
    monkeypatch, capsys, tmp_path, arguments, message
):
    code, out, err = titer(
        monkeypatch, capsys, "sweep", "lab", *arguments, "--out", str(tmp_path / "out")
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def figures(bundle: dict) -> dict:
    """Return what a bundle says, without what a clock says."""
    return {
        (*cell["settings"], cell["seed"]): [
            (stage["weights"], stage["scores"]) for stage in cell["pipelines"]["sft"]["stages"]
        ]
        for cell in bundle["cells"]
        if cell["status"] == "done"
    }


SMALL = 'pipelines={"sft": {"edit": "scale"}}'


@pytest.mark.slow
def test_a_sweep_says_what_its_cells_came_to_and_counts_the_missing(
    monkeypatch,
    capsys,
    recipe_file,
    tmp_path,
):
    grid = ["--grid", "attack.n=50,49,1000", "--seeds", "3", "--jobs", "2"]
    arguments = [recipe_file, "--set", SMALL, *grid, "--out", str(tmp_path / "out")]
    code, printed, _ = titer(monkeypatch, capsys, "sweep", *arguments, "--json")
    bundle = json.loads(printed)
    assert code == 1
    assert json.loads((tmp_path / "out/sweep.json").read_text()) == bundle
    assert [cell["status"] for cell in bundle["cells"]] == ["done", "done", "missing"]
    assert bundle["missing"] == 1
    assert {cell["tries"] for cell in bundle["cells"]} == {1}  # its own error would come again
    assert "ask for 200 harmful rows but there are 50" in bundle["cells"][2]["error"]
    assert "pipelines" not in bundle["cells"][2]
    for n in (50, 49):
        setting = Plan.prepare(recipe.load(recipe_file, [SMALL, f"attack.n={n}"], 3))
        [stages] = (
            Run(setting, tmp_path / f"run{n}", Store(tmp_path / f"own{n}"))
            .records(Silent())
            .values()
        )
        assert [stage.weights for stage in stages] == [
            weights for weights, _ in figures(bundle)[SMALL, f"attack.n={n}", 3]
        ]
    written = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")
    }
    assert len(written) == 1 + 2 + 2
    code, printed, _ = titer(monkeypatch, capsys, "sweep", *arguments)
    assert code == 1
    assert "attack.n=50" in printed
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")
    } == written


def start(recipe_path: str, folder: Path, store: Path) -> subprocess.Popen:
    arguments = [
        "sweep",
        recipe_path,
        "--set",
        SMALL,
        "--seeds",
        "0,1",
        "--out",
        str(folder),
        "--store",
        str(store),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "from titer.cli import main; main()", *arguments],
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_an_interrupted_sweep_ends_its_cells_and_goes_on_to_the_same_end(recipe_file, tmp_path):
    cut = start(recipe_file, tmp_path / "cut", tmp_path / "one")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "one").glob("stages/*")) and time.monotonic() < deadline:
        time.sleep(0.05)  # until a cell has finished a stage
    cut.send_signal(signal.SIGINT)
    assert cut.wait() == 130
    assert not (tmp_path / "cut/sweep.json").exists()
    running = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path / "cut").encode() in _read(path)
    ]
    assert running == []
    both = [
        start(recipe_file, tmp_path / "cut", tmp_path / "one"),
        start(recipe_file, tmp_path / "other", tmp_path / "one"),
    ]
    assert [process.wait() for process in both] == [0, 0]  # two at once on one store
    first, second = (
        json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("cut", "other")
    )
    assert len(figures(first)) == 2
    assert figures(first) == figures(second)
    kinds = [entry.about["kind"] for entry in Store(tmp_path / "one").entries()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "align": 2,
        "finetune": 2,
        "edit": 2,
        **dict.fromkeys(("answer", "judge", "margin"), 1 + 2 + 2 + 2),
    }
    assert Store(tmp_path / "one").verify() == {}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended meanwhile


class Scripted(Workers):
    """Ends jobs as it is told, in this order."""

    at_once = 1

    def __init__(self, *ends: Ended):
        self.ends, self.ran = list(ends), []

    def run(self, job: Job) -> Ended:
        self.ran.append(job)
        job.folder.mkdir(exist_ok=True)
        return self.ends.pop(0)

    def stop(self) -> None:
        raise AssertionError("nobody interrupted it")


@pytest.mark.parametrize(
    ("ends", "tries", "told"),
    [
        ([Ended({})], 1, ["running", "done"]),
        ([Ended(error="error: x")], 1, ["running", "failed", "missing"]),
        ([Ended(error="k", lost=True), Ended({})], 2, ["running", "failed", "running", "done"]),
        (
            [Ended(error="k", lost=True), Ended(error="error: x")],
            2,
            ["running", "failed", "running", "failed", "missing"],
        ),
        (
            [Ended(error="k", lost=True), Ended(error="error: x", lost=True)],
            2,
            ["running", "failed", "running", "failed", "missing"],
        ),
    ],
)
def test_a_cell_whose_worker_was_lost_is_tried_again_and_one_that_failed_is_not(
    tmp_path, ends, tries, told
):
    workers, heard = Scripted(*ends), []
    sweep = Sweep("lab", [Cell((), 0)], tmp_path, tmp_path / "store", workers=workers)
    [cell] = sweep.run(lambda _, status: heard.append(status))["cells"]
    assert (cell["tries"], heard, workers.ends) == (tries, told, [])
    assert cell.get("error") == (None if told[-1] == "done" else "error: x")


def test_a_cell_of_other_code_is_not_done(monkeypatch, tmp_path):
    workers = Scripted(Ended({}), Ended({}), Ended({}))
    sweep = Sweep("lab", [Cell((), 0)], tmp_path, tmp_path / "store", workers=workers)
    for version in ("a", "a", "b"):
        monkeypatch.setattr("titer.runs.sweep.all_code", lambda version=version: version)
        assert sweep.run(lambda *_: None)["missing"] == 0
    assert len(workers.ran) == 2
    assert sorted(os.listdir(tmp_path / "cells")) == [Cell((), 0).name, f"{Cell((), 0).name}.json"]
    (tmp_path / "cells" / Cell((), 0).name).rmdir()
    sweep.run(lambda *_: None)
    assert len(workers.ran) == 3  # without its folder it is not done


def test_a_killed_local_process_is_lost_and_one_that_fails_tells_its_error(monkeypatch, tmp_path):
    job = Job("nosuch", [], 0, [], tmp_path / "out", tmp_path / "store")
    failed = Processes().run(job)
    assert failed.error.startswith("error: unknown recipe")
    assert not failed.lost
    shell = tmp_path / "python"
    shell.write_text("#!/bin/sh\nkill -9 $$\n")
    shell.chmod(0o700)
    monkeypatch.setattr("titer.runs.workers.sys.executable", str(shell))
    assert Processes().run(job) == Ended(error="killed by signal 9", lost=True)


def test_the_cells_of_a_sweep_read_their_recipe_and_rows_once(monkeypatch, recipe_file, tmp_path):
    points = cells(["finetune.lr=1e-3,2e-3", "attack.n=50,40"], [], [0, 1])
    sweep = Sweep(recipe_file, points, tmp_path / "out", tmp_path / "store")
    for cell in points:
        with claim(
            sweep._folder(cell), Plan.read(recipe.load(recipe_file, cell.settings, cell.seed))
        ):
            pass
    read: list[str] = []

    def spy(where: str, name: str) -> None:
        from importlib import import_module

        module = import_module(where)
        function = getattr(module, name)

        def noted(*given, **rest):
            read.append(str(given[0]))
            return function(*given, **rest)

        monkeypatch.setattr(module, name, noted)

    spy("titer.runs.recipe", "read")
    spy("titer.data.files", "read")
    sweep.check()
    assert len(points) == 8
    names = sorted(Path(path).name for path in read)
    assert names == ["alignment.jsonl", "harmful.jsonl", "mine.yaml", "task.jsonl", "test.jsonl"]


def test_cells_of_another_recipe_or_of_other_rows_are_not_taken_for_this_one(
    recipe_file,
    plan,
    tmp_path,
):
    sweep = Sweep(recipe_file, [Cell((), 0)], tmp_path / "out", tmp_path / "store")
    sweep.check()
    cell = tmp_path / "out" / "cells" / Cell((), 0).name
    with claim(cell, Plan.prepare(recipe.load(recipe_file))):
        pass
    sweep.check()
    before = (cell / "run.json").read_bytes()
    mine, rows = Path(recipe_file), Path(plan["data"]["task"])
    for path, was, now in ((mine, "updates: 6", "updates: 5"), (rows, "bigger", "larger")):
        text = path.read_text()
        assert was in text
        path.write_text(text.replace(was, now, 1))
        with pytest.raises(
            ValueError,
            match="out holds cells of another recipe or of other rows: give another --out",
        ):
            sweep.check()
        path.write_text(text)
    sweep.check()
    assert (cell / "run.json").read_bytes() == before


def test_a_sweep_takes_no_folder_that_is_not_its_own(recipe_file, tmp_path):
    ends = [Ended({})] * 9

    def sweep(*grid: str, folder: Path = tmp_path / "sweep") -> Sweep:
        points = cells(grid, [], [0])
        return Sweep(recipe_file, points, folder, tmp_path / "store", workers=Scripted(*ends))

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("of a person's own")
    with pytest.raises(ValueError, match="mine holds something else: give another --out"):
        sweep("attack.p=0.1", folder=tmp_path / "mine").check()
    for grid in ("attack.p=0.1,0.2", "attack.p=0.1,0.2,0.3", "attack.p=0.2"):
        mine = sweep(grid)
        mine.check()
        mine.run(lambda *_: None)


def test_what_a_method_prints_is_no_document_of_a_cell(monkeypatch, tmp_path):
    job = Job("lab", [], 0, [], tmp_path / "out", tmp_path / "store")
    shell, printed = tmp_path / "python", tmp_path / "printed"
    shell.write_text(f"#!/bin/sh\ncat {printed}\n")
    shell.chmod(0o700)
    monkeypatch.setattr("titer.runs.workers.sys.executable", str(shell))
    documents = {"sft": {"stages": [{"kind": "base"}]}}
    printed.write_text(f"lam=0.1\n{{mine}}\n{json.dumps(documents, indent=2)}\n")
    assert Processes().run(job) == Ended(documents)
    printed.write_text("lam=0.1\n")
    ended = Processes().run(job)
    assert ended.pipelines is None
    assert ended.error == "error: no documents are in what it printed: 'lam=0.1\\n'"
    assert not ended.lost
