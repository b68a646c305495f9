"""Every command killed twenty times, and started again each time: part of `make kills` (about ten
minutes; names of commands leave the others in peace).

`run`, `align`, `release`, `finetune`, `edit` and `evaluate` are each computed once in peace. Then
each one gets SIGKILL at a random moment of its time, again and again in one folder. Where it ends
before, what it left is compared and a new folder begun. It must end with the same files, bit for
bit, but for times and memory.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KILLS = 20
LAB = ["--recipe", "lab", "--set", "data.world=0", "--set", "threads=1"]
COMMANDS = {  # in order: a later one starts from what an earlier one left in peace
    "run": [
        *("run", "lab", "--only", "sft+antidote", "--limit", "20", "--set", "threads=1"),
        *("--set", "align.updates=110", "--set", "finetune.updates=60"),
    ],
    "align": ["align", "lab", *LAB, "--set", "align.updates=110"],
    "release": ["release", "{align}", *LAB, "--method", "lox", "--reference", "base=lab"],
    "finetune": ["finetune", "{align}", *LAB, "--set", "finetune.updates=110"],
    "edit": ["edit", "{finetune}", *LAB, "--method", "antidote"],
    "evaluate": ["evaluate", "{edit}", *LAB, "--limit", "20"],
}
SHOWN = {"run.json", "figures.json"}  # a page's figures have its times, too
COSTS = {"seconds", "scoring_seconds", "peak_mb", "environment"}  # what may differ


def start(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "titer", *command, "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_costs(entry) for key, entry in value.items() if key not in COSTS}
    return [without_costs(entry) for entry in value] if isinstance(value, list) else value


def contents(out: Path) -> dict[str, str]:
    """Return the hash of every file that a command left, of JSON without times and memory."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or path.suffix in (".html", ".md") or name in SHOWN:
            continue  # pages and tables have times in them
        data = path.read_bytes()
        if path.suffix == ".json":
            told = without_costs(json.loads(data))
            data = json.dumps(told, sort_keys=True).replace(str(out), "OUT").encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def compare(found: dict[str, str], expected: dict[str, str], name: str) -> None:
    assert found.keys() == expected.keys(), f"{name}: {found.keys() ^ expected.keys()}"
    other = [file for file in expected if found[file] != expected[file]]
    assert not other, f"{name}: other contents of {', '.join(other)}"


def main(wanted: list[str]) -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root, places = Path(folder), dict[str, str]()
        for name, template in COMMANDS.items():
            command, whole = [word.format(**places) for word in template], root / name / "whole/out"
            begun = time.monotonic()
            whole.parent.mkdir(parents=True)  # the store lies beside `out`, each has its own
            process = start(command, whole)
            assert process.wait() == 0, process.communicate()[1].decode()
            seconds, places[name] = time.monotonic() - begun, str(whole)
            if wanted and name not in wanted:
                continue
            expected, folders, killed = contents(whole), 0, 0
            cut = root / name / "cut-0/out"
            while killed < KILLS:
                process = start(command, cut)
                try:
                    process.wait(rng.uniform(0.2, 1.0) * seconds)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    killed += 1
                    continue
                assert process.returncode == 0, process.communicate()[1].decode()
                compare(contents(cut), expected, name)
                folders += 1
                cut = root / name / f"cut-{folders}/out"
            process = start(command, cut)
            assert process.wait() == 0, process.communicate()[1].decode()
            compare(contents(cut), expected, name)
            print(
                f"{name}, {seconds:.1f} s: killed {KILLS} times, ended {folders + 1} times, each "
                f"with the same bits in {len(expected)} files",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
