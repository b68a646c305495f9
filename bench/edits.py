"""The cost of an edit after fine-tuning: `python -m bench.edits`.

It is in seconds a weight, and in memory. Base and aligned model are the random checkpoints of
`bench.release`; the fine-tuned one is an adapter over the aligned one, which Safe LoRA projects.
Its arithmetic is timed beside the dense formula on one weight. Exit code 1 if the peak is above the
bar.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from bench.release import BAR_MB, checkpoint
from titer.edits.safe_lora import SafeLoRA, surrogate
from titer.runs.cost import measure
from titer.weights.finetuned import PREFIX, FineTuned, Weight
from titer.weights.folders import Files
from titer.weights.rewrite import rewrite_update
from titer.weights.tensors import open_tensors
from titer.weights.update import Update


@dataclass(frozen=True)
class Cost:
    layers: int
    width: int
    rank: int
    tensors: int
    checkpoint_mb: float
    seconds: float
    cpu_seconds: float  # of all threads, which other jobs do not lengthen by taking turns
    peak_mb: float  # resident; before it began it was
    start_mb: float
    factored: float  # seconds of one weight's projection and cosine, read beforehand
    dense: float  # of the same by C (out, out) and dW (out, in)
    apart: float  # relative difference of the two, in the norm


def adapter(folder: Path, layers: int, width: int, rank: int, aligned: Files) -> Files:
    """A fine-tuning of q and v."""
    folder.mkdir()
    generator, factors = torch.Generator().manual_seed(0), {}
    for layer in range(layers):
        for name in ("q_proj", "v_proj"):
            key = f"{PREFIX}model.layers.{layer}.self_attn.{name}"
            factors[f"{key}.lora_A.weight"] = 0.02 * torch.randn(rank, width, generator=generator)
            factors[f"{key}.lora_B.weight"] = 0.02 * torch.randn(width, rank, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"]).save_pretrained(
        str(folder)
    )
    return Files(folder.name, folder, None, aligned)


def cost(edit: SafeLoRA, layers: int, width: int, rank: int) -> Cost:
    with tempfile.TemporaryDirectory(prefix="bench-edits-") as name:
        folder = Path(name)
        base, aligned = (
            checkpoint(folder / "base", layers, width, False),
            checkpoint(folder / "aligned", layers, width, True),
        )
        tuned = FineTuned.of(adapter(folder / "tuned", layers, width, rank, aligned), None)
        out, references = folder / "out", {"base": open_tensors(base)}
        out.mkdir()
        with measure() as start:
            pass
        began = time.process_time()
        with measure() as found:
            changes = rewrite_update(edit, tuned, list(tuned.factors), references, {}, out, show)
        cpu = time.process_time() - began
        size = (
            sum(path.stat().st_size for each in (base, aligned) for path in each.folder.iterdir())
            / 1e6
        )
        weight = Weight(next(iter(tuned.factors)), tuned, references)
        factored, dense, apart = arithmetic(weight.update, weight.aligned - weight.base)
    print(file=sys.stderr)
    return Cost(
        layers,
        width,
        rank,
        len(changes.changed) // 2,
        size,
        found.seconds,
        cpu,
        found.peak_mb,
        start.peak_mb,
        factored,
        dense,
        apart,
    )


def show(now: int, of: int, terms: object) -> None:
    print(f"\rsafe_lora {now} of {of}", end="", file=sys.stderr)


def arithmetic(dw: Update, v: Tensor) -> tuple[float, float, float]:
    """Seconds of C dW and its cosine through factors, and by dense matrices; how far the two are
    apart.
    """
    assert dw.a is not None
    a, b = dw.a, dw.b

    def by_factors() -> tuple[Tensor, float]:
        cdw = surrogate(dw, v)
        return cdw.b, cdw.cosine(dw)

    def by_dense() -> tuple[Tensor, float]:
        c = v @ v.T / v.square().sum().sqrt()
        b_new, whole = c @ b, b @ a
        projected = b_new @ a
        norms = float(projected.square().sum() * whole.square().sum())
        return b_new, float((projected * whole).sum()) / norms**0.5

    (one, cosine), (other, its) = by_factors(), by_dense()
    apart = max(float((one - other).norm() / other.norm()), abs(cosine - its))
    return clock(by_factors), clock(by_dense), apart


def clock(of: Callable[[], object]) -> float:
    """Median CPU seconds of five calls."""
    taken = []
    for _ in range(5):
        began = time.process_time()
        of()
        taken.append(time.process_time() - began)
    return median(taken)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.edits", description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder for edits.json"
    )
    options = parser.parse_args(arguments)
    if torch.cuda.is_available():
        print(
            "error: with a GPU its memory is measured, and this needs the process's: set "
            "CUDA_VISIBLE_DEVICES=''",
            file=sys.stderr,
        )
        return 2
    found = cost(
        SafeLoRA(layers=min(10, 2 * options.layers)), options.layers, options.width, options.rank
    )
    print(
        f"safe_lora: {found.tensors} weights of {found.width} x {found.width}, rank "
        f"{found.rank}, {found.checkpoint_mb:.0f} MB of base and "
        f"aligned model: {found.seconds / found.tensors:.2f} s a weight "
        f"({found.cpu_seconds / found.tensors:.2f} s of CPU), "
        f"peak {found.peak_mb:.0f} MB ({found.start_mb:.0f} MB before), bar {BAR_MB:.0f} MB; "
        "projection and cosine of one weight "
        f"{found.factored:.3f} s, by the dense formula {found.dense:.3f} s, relative difference "
        f"{found.apart:.1e}"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    content = {
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "cost": asdict(found),
    }
    (options.out / "edits.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if found.peak_mb <= BAR_MB else 1


if __name__ == "__main__":
    sys.exit(main())
