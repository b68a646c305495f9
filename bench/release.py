"""The cost of rewriting a checkpoint before release: `python -m bench.release`.

It is in seconds a tensor, and in memory. Base and aligned model are random checkpoints on disk, in
bfloat16 and a shard a layer. The update between them is noise, and a few directions that stand out
of it. Exit code 1 if the peak is above the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file

from titer import registry
from titer.methods import TensorEdit
from titer.runs.cost import measure
from titer.weights.folders import Files
from titer.weights.rewrite import rewrite_tensors

BAR_MB = 2000.0  # resident, of the whole process
STRONG = 16  # directions of the update that stand out


@dataclass(frozen=True)
class Cost:
    method: str
    layers: int
    width: int
    tensors: int
    checkpoint_mb: float
    seconds: float
    cpu_seconds: float  # of all threads, which other jobs do not lengthen by taking turns
    peak_mb: float  # resident; before it began it was
    start_mb: float


def tensors(layers: int, width: int, aligned: bool) -> Iterator[dict[str, torch.Tensor]]:
    """The q and v of every layer, a layer at a time."""
    for layer in range(layers):
        found = {}
        for name in ("q_proj", "v_proj"):
            generator = torch.Generator().manual_seed(2 * layer + (name == "v_proj"))
            w = 0.02 * torch.randn(width, width, generator=generator)
            if aligned:
                noise = torch.randn(width, width, generator=generator)
                strong = torch.randn(width, STRONG, generator=generator) @ torch.randn(
                    STRONG, width, generator=generator
                )
                w += 1e-3 * noise + 3e-4 * strong
            found[f"model.layers.{layer}.self_attn.{name}.weight"] = w.bfloat16()
        yield found


def checkpoint(folder: Path, layers: int, width: int, aligned: bool) -> Files:
    folder.mkdir()
    where: dict[str, str] = {}
    for i, found in enumerate(tensors(layers, width, aligned), 1):
        path = folder / f"model-{i:05d}-of-{layers:05d}.safetensors"
        save_file(found, path, {"format": "pt"})
        where |= dict.fromkeys(found, path.name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": where}), encoding="utf-8"
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_hidden_layers": layers}), encoding="utf-8"
    )
    return Files(folder.name, folder, None)


def cost(method: str, layers: int, width: int) -> Cost:
    edit = cast(TensorEdit, registry.build("edits", method))
    with tempfile.TemporaryDirectory(prefix="bench-release-") as name:
        folder = Path(name)
        base, aligned = (
            checkpoint(folder / "base", layers, width, False),
            checkpoint(folder / "aligned", layers, width, True),
        )
        out = folder / "out"
        out.mkdir()
        with measure() as start:
            pass
        began = time.process_time()
        with measure() as found:
            changes = rewrite_tensors(
                edit,
                aligned,
                base,
                out,
                lambda now, of, _: print(f"\r{method} {now} of {of}", end="", file=sys.stderr),
            )
        cpu = time.process_time() - began
        size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(file=sys.stderr)
    return Cost(
        method,
        layers,
        width,
        len(changes.changed),
        size,
        found.seconds,
        cpu,
        found.peak_mb,
        start.peak_mb,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.release", description=__doc__)
    parser.add_argument("methods", nargs="*", default=["lox"], help="edits before release")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder for release.json"
    )
    options = parser.parse_args(arguments)
    if torch.cuda.is_available():
        print(
            "error: with a GPU its memory is measure, and this needs the process's: set "
            "CUDA_VISIBLE_DEVICES=''",
            file=sys.stderr,
        )
        return 2
    found = []
    for method in options.methods:
        found.append(one := cost(method, options.layers, options.width))
        print(
            f"{one.method}: {one.tensors} tensors of {one.width} x {one.width}, "
            f"{one.checkpoint_mb:.0f} MB on disk: "
            f"{one.seconds / one.tensors:.2f} s a tensor ({one.cpu_seconds / one.tensors:.2f} s "
            "of CPU), "
            f"peak {one.peak_mb:.0f} MB ({one.start_mb:.0f} MB before), bar {BAR_MB:.0f} MB"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    content = {
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "costs": [asdict(one) for one in found],
    }
    (options.out / "release.json").write_text(
        json.dumps(content, indent=1) + "\n", encoding="utf-8"
    )
    return 0 if all(one.peak_mb <= BAR_MB for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
