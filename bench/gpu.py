"""What a GPU makes of 7 billion weights: seconds of an update of SFT, Vaccine, T-Vaccine and Booster,
tokens a second, the share of the card's own matrix products, the time beside TRL's SFTTrainer, and the
largest batch of a card of 24 GB.

Run it as `python -m bench.gpu`, on an otherwise idle CUDA device with 40 GB. It ends within eight
minutes: a part that the time is too short for is named and left out, and what was measured is in the
file after every part. Without a CUDA device nothing is measured, and the exit code is 3.

The model is that of `bench.largest`, of random weights in bfloat16 under a LoRA. Counted are the
operations that torch's counter sees, as everywhere in `bench`; an update of a frozen base has no gradients
of its weights, so SFT's are two thirds of what is often quoted as six a weight and token.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bench import count, largest, peers, subjects
from bench.clock import WARM, Spread, seconds
from bench.cost import environment, write
from bench.shapes import Shape
from titer.defenses.booster import Booster
from titer.methods import Answers, Defense
from titer.training.train import accelerator_for

SECONDS = 480.0
SHAPE = replace(largest.SHAPE, batch=8, pairs=5)
METHODS: dict[str, Defense] = largest.METHODS | {"Booster": Booster()}
SIDE = 8192  # of the square matrices whose product is the card's own rate
GIB = 24.0


@dataclass
class Measured:
    """What was measured so far, written after every part."""

    folder: Path
    head: dict[str, Any]
    until: float
    parts: dict[str, Any] = field(default_factory=dict)

    def measure(self, name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure a part, or say that the time is over; write all that there is."""
        late = time.monotonic() > self.until
        found = {"left out": "the time was over"} if late else part()
        self.parts[name] = found
        write(self.folder, "gpu", self.head | {"parts": self.parts})
        told = ", ".join(f"{key} {_short(value)}" for key, value in found.items())
        print(f"{name}: {told}", flush=True)
        return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rate(accelerator: Accelerator, side: int = SIDE) -> float:
    """Return the floating-point operations a second of a square matrix product in bfloat16."""
    left, right = torch.randn(2, side, side, device=accelerator.device, dtype=torch.bfloat16)
    times = [seconds(lambda: left @ right) for _ in range(WARM + 5)][WARM:]
    return float(2 * side**3 / Spread.of(times).median)


def updates(
    defense: Defense, shape: Shape, accelerator: Accelerator, of: float, sft: float | None
) -> dict[str, Any]:
    """Return what an update costs: `of` is the card's rate, `sft` the seconds of an update of SFT."""
    cuda = accelerator.device.type == "cuda"
    subject = subjects.defense_updates(defense, shape, largest.LORA, accelerator, torch.bfloat16)
    subject.prepare()
    for _ in range(WARM):
        subject.mean(seconds)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    took = Spread.of([subject.mean(seconds) for _ in range(shape.pairs)])
    flops = subject.mean(count.flops)
    found: dict[str, Any] = {
        "seconds": took.median,
        "q1": took.q1,
        "q3": took.q3,
        "tokens a second": shape.batch * shape.length / took.median,
        "share of the card": flops / took.median / of,
        "flops": flops,
    }
    if cuda:
        found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found | ({"over SFT": took.median / sft} if sft else {})


def beside_trl(shape: Shape, accelerator: Accelerator, mine: float) -> dict[str, Any]:
    """Return the time of an update of TRL's trainer on the same model and rows, and titer's over it."""
    if not find_spec("trl"):
        return {"left out": "trl is not installed"}
    model = shape.model(largest.LORA, accelerator.device, torch.bfloat16)
    took = peers.trl(shape.batch)(model, shape.rows("rows", Answers))[peers.SETTLING :]
    theirs = Spread.of(took).median
    return {"seconds": theirs, "titer over TRL": mine / theirs}


def largest_batch(defense: Defense, accelerator: Accelerator, until: float) -> dict[str, Any]:
    """Return the largest batch under the cap; where the time ends on the way, what is known to fit."""
    best, late = 0, False

    def fits(rows: int) -> bool:
        nonlocal best, late
        late |= time.monotonic() > until
        held = not late and largest.fits(defense, replace(SHAPE, batch=rows), accelerator)
        best = max(best, rows) if held else best
        return held

    rows = largest.largest(fits)
    return {"at least": best} if late else {"rows": rows}


def _clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to be done within")
    parser.add_argument("--quick", action="store_true", help="tiny, on any device: does it run?")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="for gpu.json")
    options = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or options.quick):
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 3
    accelerator = accelerator_for("cpu" if options.quick else None)
    shape = peers.QUICK if options.quick else SHAPE
    # a part that has begun is not stopped: the last minute is for it
    until = time.monotonic() + max(options.seconds - 60, options.seconds / 2)
    head = {"environment": environment(accelerator), "quick": options.quick}
    measured = Measured(options.out, head, until)
    of = measured.measure(
        "product", lambda: {"flops a second": rate(accelerator, 256 if options.quick else SIDE)}
    ).get("flops a second", 1.0)
    sft: float | None = None
    for name, defense in METHODS.items():

        def part(of_method: Defense = defense, over: float | None = sft) -> dict[str, Any]:
            return updates(of_method, shape, accelerator, of, over)

        found = measured.measure(f"update, {name}", part)
        sft = sft or found.get("seconds")
        _clear()
    if sft:
        mine = sft
        measured.measure("update, TRL", lambda: beside_trl(shape, accelerator, mine))
        _clear()
    if options.quick:
        return 0
    total = torch.cuda.get_device_properties(accelerator.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, GIB * 2**30 / total), accelerator.device)
    for name, defense in METHODS.items():

        def batch(of_method: Defense = defense) -> dict[str, Any]:
            return largest_batch(of_method, accelerator, until)

        measured.measure(f"rows in {GIB:g} GiB, {name}", batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
