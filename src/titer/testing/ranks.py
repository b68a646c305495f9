"""Several ranks of one training, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOGETHER = """
import os, sys
import torch.distributed
torch.distributed.barrier()
torch.distributed.destroy_process_group()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""
# A rank that is gone while another still holds a connection to it may abort the other. Threads of torch
# may outlast their group where weights are sharded: one launch in twenty aborted at its end.

# as `accelerate launch --use_fsdp --fsdp_version 2` sets it
SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def run_on_ranks(
    script: str,
    folder: Path,
    *words: str,
    imports: Path | None = None,
    ranks: int = 2,
    shards: bool = False,
) -> None:
    """Run the text of a script on ranks of the CPU, and wait until all have ended.

    Args:
        script: its `sys.argv[1:]` are the folder and the words.
        folder: where the script is written, as `rank.py`.
        imports: a folder that the script imports from.
        ranks: how many there are.
        shards: whether the launch asks for FSDP.

    Raises:
        AssertionError: a rank failed. With what both have printed.
    """
    place = folder / "rank.py"
    place.write_text(script + TOGETHER, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if shards:
        environment |= SHARDS
    if imports is not None:
        paths = [str(imports), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    ended = subprocess.run(
        [*launch, str(place), str(folder), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, f"a rank failed:\n{ended.stdout}"
