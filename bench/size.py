"""What titer does with much: `python -m bench.size`.

A million rows of a file are read, a store of ten thousand stages is listed, measured, verified and
collected, and a sweep of a thousand cells is planned, once before any of them has begun and once
where all have. Exit code 1 if a bar is missed. Seconds are of the processor, which other jobs do
not lengthen by taking turns.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from titer import paths
from titer.config import hash_of
from titer.data.sources import Source
from titer.findings.records import Claim, check
from titer.runs import recipe as recipes
from titer.runs.cost import measure
from titer.runs.plan import Plan
from titer.runs.roles import Data, roles
from titer.runs.store import write
from titer.runs.sweep import Sweep, cells

BAR_FILE = 3.0  # times the bytes of a file that its rows may take while they are read
BAR_SECONDS = 10.0  # of a command on the store, of planning a sweep
KINDS = ("align", "finetune", "edit", *("answer", "judge", "margin") * 3)
WEIGHTS_BYTES = 100_000_000  # of a model; nothing is written, and who reads them is slow
COMMANDS = (["ls"], ["du"], ["verify", "--no-weights"], ["gc"])


def write_rows(path: Path, count: int) -> None:
    """Write rows of about 300 bytes, no two of which are alike."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {
                "prompt": " ".join([str(number), *rng.choices(words, k=16)]),
                "response": " ".join(rng.choices(words, k=20)),
            }
            file.write(json.dumps(row) + "\n")


def measure_rows(folder: Path, count: int) -> dict[str, float]:
    """Read a file as the rows of a user's task, and hash them, as the plan of a run does."""
    path = folder / "rows.jsonl"
    write_rows(path, count)
    gc.collect()
    with measure() as start:
        time.sleep(0.1)
    began = time.process_time()
    with measure() as cost:
        found = roles(Data(task=Source(str(path))), None, frozenset({"task"}))
        loaded = time.process_time()
        assert len(found.digests) == 1
    size = path.stat().st_size / 1e6
    assert len(found.task) == count
    path.unlink()
    return {
        "rows": count,
        "file_mb": size,
        "load_seconds": loaded - began,
        "hash_seconds": time.process_time() - loaded,
        "start_mb": start.peak_mb,
        "peak_mb": cost.peak_mb,
        "times_the_file": (cost.peak_mb - start.peak_mb) / size,
    }


def write_store(root: Path, count: int) -> None:
    """Write stages of a few kilobytes, and beside them weights that take no room on the disk."""
    (root / paths.LOCKS).mkdir(parents=True)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        folder = root / paths.FINISHED / hash_of(number)[:32]
        folder.mkdir(parents=True)
        files = {paths.MADE: json.dumps({"facts": {}, "seconds": 1.0, "peak_mb": 1.0})}
        files |= dict.fromkeys(("config.json", paths.ANSWERS), f"{number}\n" * 300)
        for name, text in files.items():
            (folder / name).write_text(text)
        hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
        if kind in KINDS[:3]:
            with (folder / "model.safetensors").open("wb") as file:
                file.truncate(WEIGHTS_BYTES)
            hashes["model.safetensors"] = "0" * 64
        about = {"kind": kind, "method": {"method": "sft"}, "code": "0" * 64, "from": str(number)}
        about |= {"versions": {"torch": torch.__version__}, "rows": {"rows": "0" * 64}}
        write(folder / paths.MANIFEST, {"files": hashes, "dropped": [], "about": about})


def measure_store(folder: Path, count: int) -> dict[str, float]:
    root = folder / "store"
    write_store(root, count)
    found: dict[str, float] = {"stages": count}
    for command in COMMANDS:
        call = [sys.executable, "-m", "titer", "store", *command, str(root)]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found |= {f"{command[0]}_seconds": cpu}
        found |= {f"{command[0]}_elapsed": time.perf_counter() - began}
    return found


def measure_sweep(folder: Path, count: int) -> dict[str, float]:
    values = ",".join(f"{number}e-6" for number in range(1, count // 10 + 1))
    points = cells([f"finetune.lr={values}", "attack.p=0.1,0.2"], [], range(5))
    sweep = Sweep("lab", points, folder / "sweep", folder / "of-sweep")
    recipes.load("lab")  # what is imported once
    found: dict[str, float] = {"cells": len(points), "fresh_seconds": _seconds(sweep.check)}
    world = Plan.read(recipes.load("lab"))
    for cell in points:
        plan = Plan.read(
            recipes.load("lab", cell.settings, cell.seed), read_rows=lambda *_: world.roles
        )
        place = folder / "sweep" / paths.CELLS / cell.name
        place.mkdir(parents=True)
        claim = {"identity": f"run {plan.identity}", "recipe": {}}
        write(place / paths.RUN, check(Claim, claim, "the bench").model_dump())
    return found | {"begun_seconds": _seconds(sweep.check)}


def _seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def find_missed(found: dict[str, dict[str, float]]) -> list[str]:
    """Name the figures that are above their bars."""
    bars = {"times_the_file": BAR_FILE}
    bars |= {f"{command[0]}_seconds": BAR_SECONDS for command in COMMANDS}
    bars |= dict.fromkeys(("fresh_seconds", "begun_seconds"), BAR_SECONDS)
    return [
        f"{name} is {value:.2f}, above {bars[name]:g}"
        for part in found.values()
        for name, value in part.items()
        if name in bars and value > bars[name]
    ]


PARTS: dict[str, tuple[Callable[[Path, int], dict[str, float]], int, int]] = {
    "rows": (measure_rows, 1_000_000, 2000),  # how many, and how many for a quick look
    "store": (measure_store, 10_000, 24),
    "sweep": (measure_sweep, 1_000, 20),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.size", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; none named: all")
    parser.add_argument("--quick", action="store_true", help="a hundredth of it, to see it run")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for size.json")
    options = parser.parse_args(arguments)
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"there is no part {min(unknown)!r}, but {', '.join(PARTS)}")
    found: dict[str, Any] = {}
    for name in options.parts or PARTS:
        part, whole, few = PARTS[name]
        with tempfile.TemporaryDirectory(prefix="bench-size-") as folder:
            found[name] = part(Path(folder), few if options.quick else whole)
        told = ", ".join(f"{key} {value:.6g}" for key, value in found[name].items())
        print(f"{name}: {told}", flush=True)
    missed = find_missed(found)
    print("\n".join(missed) or "every bar is met")
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"load": os.getloadavg()[0], **found, "missed": missed}
    (options.out / "size.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
