"""A lab sweep of 24 cells, killed at every kind of write and at random moments: `make kills` (a
quarter of an hour on two cores).

Two sweeps at once on one store say what is expected. Then one sweep on another store is killed,
SIGKILL to it and all its cells, at each of POINTS and at five random moments, and started again
each time. It must end with the same weights and scores, bit for bit, and no stage that was finished
at a kill may be computed again. Last, a bit of a finished stage is flipped, found and mended.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from titer.runs.store import Store

SWEEP = [
    "sweep",
    "lab",
    "--grid",
    "finetune.lr=4e-4,8e-4,1.6e-3,3.2e-3",
    "--grid",
    "attack.p=0.1,0.2",
    "--seeds",
    "0,1,2",
]
SMALL = [
    "align.updates=110",
    "finetune.updates=30",
    "attack.n=100",
    "threads=1",
    'pipelines={"sft": {"edit": "scale"}}',
]
WRITES = (
    "checkpoint.safetensors",
    "made.json",
    "stage.json",
    "manifest.json",
    "stages/",
    "run.json",
    "cells/",
    "sweep.json",
)
POINTS = [(write, when) for write in WRITES for when in ("before", "after")]
MOMENTS = 5
HOOK = """
import os, signal
def replace(source, target, *, rename=os.replace, plan=os.environ.get("TITER_KILL")):
    try:
        write, _, when = open(plan).read().partition(" ")
    except (OSError, TypeError):
        write = when = ""
    path = str(target)
    hit = write and (
        path.rpartition("/")[0].endswith("/" + write[:-1])
        if write.endswith("/")
        else path.endswith("/" + write)
    )
    if hit and when == "before":
        os.unlink(plan), os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if hit:
        os.unlink(plan), os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


class Lab:
    """Sweeps in one folder."""

    def __init__(self, root: Path):
        self.root = root
        (root / "hook").mkdir()
        (root / "hook/sitecustomize.py").write_text(HOOK)
        self.plan = root / "plan"

    def start(self, name: str, store: str, jobs: int) -> subprocess.Popen:
        settings = [part for setting in SMALL for part in ("--set", setting)]
        command = [
            sys.executable,
            "-c",
            "from titer.cli import main; main()",
            *SWEEP,
            *settings,
            "--jobs",
            str(jobs),
        ]
        command += ["--out", str(self.root / name), "--store", str(self.root / store)]
        path = os.pathsep.join([str(self.root / "hook"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {
            "PYTHONPATH": path,
            "TITER_KILL": str(self.plan),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self, name: str) -> None:
        """Whatever works on a sweep, at once."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(self.root / name).encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                pass  # it has ended meanwhile

    def figures(self, name: str) -> list:
        cells = json.loads((self.root / name / "sweep.json").read_text())["cells"]
        return [
            (
                cell["settings"],
                cell["seed"],
                [
                    (stage["weights"], stage["scores"])
                    for stage in cell["pipelines"]["sft"]["stages"]
                ],
            )
            for cell in cells
        ]


def finished(store: Store) -> dict[str, int]:
    """When each stage's manifest was written."""
    return {
        entry.key: (entry.folder / "manifest.json").stat().st_mtime_ns for entry in store.entries()
    }


def unchanged(store: Store, before: dict[str, int]) -> dict[str, int]:
    """Return what is finished now. Raises where something that was has been computed again."""
    now = finished(store)
    assert {key: now[key] for key in before} == before
    return now


def killed(lab: Lab, process: subprocess.Popen, at_most: float) -> bool:
    """Wait until the hook has killed a process of the sweep, or time is over; then kill all of it.

    False where it had ended before.
    """
    deadline = time.monotonic() + at_most
    while process.poll() is None and lab.plan.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    ended = process.poll() == 0
    lab.kill("cut")
    process.wait()
    return not ended


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab, rng = Lab(Path(folder)), random.Random(0)
        both = [lab.start(name, "one", 1) for name in ("first", "second")]
        assert [process.wait() for process in both] == [0, 0]
        expected = lab.figures("first")
        assert len(expected) == 24
        assert lab.figures("second") == expected
        print(
            "two sweeps at once on one store: 24 cells, the same weights and scores, "
            f"{len(Store(lab.root / 'one').entries())} stages"
        )

        store, seen = Store(lab.root / "other"), dict[str, int]()
        early, late = (
            [point for point in POINTS if (point[0] == "sweep.json") is end]
            for end in (False, True)
        )
        for write, when in [*early, *[("", "")] * MOMENTS, *late]:  # sweep.json is written last
            lab.plan.write_text(f"{write} {when}")
            seconds = 900.0 if write else rng.uniform(4, 25)
            where = f"{when} {write}" if write else f"a random moment, after {seconds:.1f} s"
            assert killed(lab, lab.start("cut", "other", 2), seconds), (
                f"the sweep ended before it was killed: {where}"
            )
            assert not write or not lab.plan.exists(), f"nobody was killed: {where}"
            seen = unchanged(store, seen)
            print(f"killed {where}: {len(seen)} stages finished", flush=True)
        lab.plan.unlink(missing_ok=True)
        assert lab.start("cut", "other", 2).wait() == 0
        assert lab.figures("cut") == expected
        seen = unchanged(store, seen)
        assert store.verify() == {}
        print(
            f"ended with the expected weights and scores, bit for bit, and {len(seen)} stages, "
            "none computed twice"
        )

        entry = next(entry for entry in store.entries() if entry.about["kind"] == "align")
        path = entry.folder / "model.safetensors"
        text = bytearray(path.read_bytes())
        text[len(text) // 2] ^= 1
        path.write_bytes(text)
        assert store.verify() == {entry.key: ["model.safetensors"]}
        assert lab.start("again", "other", 2).wait() == 0
        assert lab.figures("again") == expected
        assert store.verify() == {}
        unchanged(store, {key: when for key, when in seen.items() if key != entry.key})
        print("a flipped bit was found, and its stage alone computed again, to the same end")


if __name__ == "__main__":
    main()
