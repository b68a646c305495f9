"""The largest batch of SFT, Vaccine and T-Vaccine that fits a consumer's GPU.

Run it as `python -m bench.largest`.

A Llama of 7 billion random weights in bfloat16 under a LoRA (r = 8 on q and v), rows of 256 tokens,
the CUDA allocator held to 24 GB. A batch fits if two updates of it do. T-Vaccine has 8 of 32
layers, its worst draw (the first layer among them), with and without recomputation. Without a CUDA
device nothing is measured, and the exit code is 3.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator

from bench import subjects
from bench.shapes import Shape
from titer.defenses.sft import SFT
from titer.defenses.t_vaccine import TVaccine
from titer.defenses.vaccine import Vaccine
from titer.methods import Defense
from titer.training.train import accelerator_for
from titer.weights.settings import Lora

GIB = 24.0
SHAPE = Shape(
    vocabulary=32000,
    width=4096,
    hidden=11008,
    layers=32,
    heads=32,
    length=256,
    answer=0.5,
    batch=1,
    pairs=1,
)
LORA = Lora(r=8, alpha=16)
METHODS: dict[str, Defense] = {
    "SFT": SFT(),
    "Vaccine": Vaccine(),
    "T-Vaccine, off": TVaccine(top=True),
    "T-Vaccine, unselected": TVaccine(top=True, checkpoint="unselected"),
}
MOST = 512  # rows


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """Find the largest batch up to `most` that fits, if any smaller one does too; 0 if none."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fits(defense: Defense, shape: Shape, accelerator: Accelerator) -> bool:
    """Return True if two updates fit."""
    try:
        subject = subjects.defense_updates(defense, shape, LORA, accelerator, torch.bfloat16)
        subject.prepare()
        for _ in range(2):
            subject.kinds[0].update()
    except torch.OutOfMemoryError:
        return False
    finally:
        subject = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.largest", description=__doc__)
    parser.add_argument("--gib", type=float, default=GIB, help="what the allocator may take")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 3
    accelerator = accelerator_for()
    total = torch.cuda.get_device_properties(accelerator.device).total_memory
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, options.gib * 2**30 / total), accelerator.device
    )
    print(
        f"{torch.cuda.get_device_name(accelerator.device)}, allocator held to {options.gib:g} "
        f"GiB, rows of {SHAPE.length} tokens"
    )
    for name, defense in METHODS.items():

        def fits_rows(rows: int, of: Defense = defense) -> bool:
            return fits(of, replace(SHAPE, batch=rows), accelerator)

        batch = largest(fits_rows)
        print(f"{name}: {batch} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
