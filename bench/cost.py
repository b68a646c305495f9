"""The cost of an update of every registered defense over plain SFT's, and of plain SFT's over a
bare loop's: `python -m bench.cost`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from bench import count, shapes, subjects
from bench.clock import Spread, time_in_turns
from bench.shapes import Shape
from titer import registry
from titer.errors import unknown
from titer.methods import Defense
from titer.training.train import accelerator_for
from titer.weights.settings import Lora

BASELINE = "sft"  # every other defense is measured against it, and it itself against the bare loop
# a defense: its time over SFT's may be this many times its floating-point operations over SFT's
BAR = 1.10
SFT_BAR = 1.03  # SFT: its time over the bare loop's, where the model is LARGE
SFT_EXTRA = 1.5e-3  # SFT: its seconds above the bare loop's, where the model is small
LARGE = 40_000_000  # parameters


@dataclass(frozen=True)
class Counts:
    """The cost of an update on any machine."""

    flops: float
    kept: int  # bytes that graphs have saved for backward, at the peak
    peak: (
        int  # bytes alive at once: weights, the optimizer's moments, and all that the update makes
    )
    copies: (
        float  # of the trainable weights, beside the model's own and the optimizer's, at the peak
    )


@dataclass(frozen=True)
class Cost:
    """The cost of an update of a method at a shape, beside its baseline's."""

    shape: str
    trained: str  # lora or full
    method: str
    over: str  # its baseline: sft or bare
    seconds: Spread
    baseline_seconds: Spread
    ratio: Spread  # of the seconds, within the pairs
    extra: Spread  # seconds above the baseline's, within the pairs
    counts: Counts
    baseline: Counts
    bar: str
    met: bool  # by the median

    @property
    def flops(self) -> float:
        return self.counts.flops / self.baseline.flops


def counts(subject: subjects.Subject) -> Counts:
    """Prepare the subject and count its updates."""

    def gradients() -> None:
        subject.prepare()  # what it makes stays alive in the updates
        for kind in subject.kinds:
            kind.gradient()

    copies = count.copies(subject.model, gradients)
    kept = max(
        count.bytes_for_backward(subject.model, kind.update) for kind in subject.kinds
    )  # the first updates, which make the optimizer's moments
    peak = max(count.peak(subject.lasting(), kind.update) for kind in subject.kinds)
    return Counts(subject.mean(count.flops), kept, peak, copies)


def cost(
    key: tuple[str, str, str, str],
    shape: Shape,
    baseline: subjects.Subject,
    subject: subjects.Subject,
) -> Cost:
    of_baseline, of_subject = counts(baseline), counts(subject)
    gc.collect()
    times = time_in_turns(baseline, subject, shape.pairs)
    flops = of_subject.flops / of_baseline.flops
    if key[-1] == BASELINE:
        bar, met = f"time <= {BAR:.2f} x FLOPs", times.ratio.median <= BAR * flops
    elif subject.model.num_parameters() >= LARGE:
        bar, met = f"time <= {SFT_BAR}", times.ratio.median <= SFT_BAR
    else:
        bar, met = f"extra <= {SFT_EXTRA * 1e3} ms", times.extra.median <= SFT_EXTRA
    return Cost(
        *key,
        times.subject,
        times.baseline,
        times.ratio,
        times.extra,
        of_subject,
        of_baseline,
        bar,
        met,
    )


def costs(
    names: Sequence[str],
    at: dict[str, Shape],
    lora: Lora,
    accelerator: Accelerator,
    watch: Callable[[str], object] = lambda _: None,
) -> list[Cost]:
    """Measure every method at every shape, adapter and full."""
    found = []
    for shape_name, shape in at.items():
        for trained, adapter in (("lora", lora), ("full", None)):
            for name, defense in _variants(names).items():
                watch(f"{shape_name} {trained} {name}")
                over, sparse = "bare" if name == BASELINE else BASELINE, defense.needs.sparse
                if name == BASELINE:
                    baseline = subjects.bare(shape, adapter, accelerator)
                else:
                    baseline = subjects.defense_updates(
                        _defense(BASELINE), shape, adapter, accelerator, sparse=sparse
                    )
                subject = subjects.defense_updates(
                    defense, shape, adapter, accelerator, sparse=sparse
                )
                found.append(cost((shape_name, trained, name, over), shape, baseline, subject))
    return found


def write(folder: Path, name: str, content: Mapping[str, Any]) -> Path:
    """Write what a bench found; return where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def environment(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "type": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[
            0
        ],  # of the minute before; above the threads' number other jobs were running
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(),
    }


def describe_shapes(at: dict[str, Shape], lora: Lora) -> dict[str, Any]:
    """Name the shapes with the weights that their models have."""
    sizes = {}
    for name, shape in at.items():
        with torch.device("meta"):
            full, adapted = shape.model(None), shape.model(lora)
        sizes[name] = asdict(shape) | {
            "parameters": full.num_parameters(),
            "adapter": adapted.num_parameters(only_trainable=True),
        }
    return sizes


def table(found: Sequence[Cost]) -> Table:
    made = Table(
        "shape",
        "train",
        "method / over",
        "ms",
        "time (q1-q3)",
        "FLOPs",
        "time/FLOPs",
        "kept",
        "peak",
        "copies",
        "bar",
        box=None,
    )
    for one in found:
        ratio, flops = one.ratio, one.flops
        made.add_row(
            one.shape,
            one.trained,
            f"{one.method} / {one.over}",
            f"{one.seconds.median * 1e3:.1f} / {one.baseline_seconds.median * 1e3:.1f}",
            f"{ratio.median:.3f} ({ratio.q1:.3f}-{ratio.q3:.3f})",
            f"{flops:.3f}",
            f"{ratio.median / flops:.3f}",
            f"{one.counts.kept / 1e6:.1f} MB, {one.counts.kept / one.baseline.kept:.2f}x",
            f"{one.counts.peak / 1e6:.0f} MB, {one.counts.peak / one.baseline.peak:.3f}x",
            f"{one.counts.copies - one.baseline.copies:+.2f}",
            f"{'met' if one.met else '[bold]missed[/bold]'}: {one.bar}",
        )
    return made


def _variants(names: Sequence[str]) -> dict[str, Defense]:
    """Return the variants of these methods to measure, or them with their defaults."""
    variants = shapes.variants()
    told: dict[str, dict[str, Any]] = {
        name: {key: fields for key, fields in variants.items() if fields["method"] == name}
        or {name: {"method": name}}
        for name in names
    }
    return {key: _defense(config) for configs in told.values() for key, config in configs.items()}


def _defense(config: Any) -> Defense:
    return cast(Defense, registry.build("defenses", config))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.cost", description=__doc__)
    parser.add_argument("methods", nargs="*", help="defenses; none: all that are registered")
    parser.add_argument(
        "--shape", action="append", help="one of shapes.yaml; may be given again; none: all"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one tiny shape, to see that it runs; bars mean nothing there",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for cost.json")
    parser.add_argument("--device", help="cpu, or the best there is")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's choice by default")
    options = parser.parse_args(arguments)
    names = options.methods or registry.names("defenses")
    at, lora = shapes.load(options.quick)
    try:
        for name in options.methods:
            registry.load("defenses", name)
        for name in options.shape or []:
            if name not in at:
                raise unknown("shape", name, at)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    accelerator = accelerator_for(options.device)
    at = {name: shape for name, shape in at.items() if name in (options.shape or at)}
    start = time.time()
    head = {
        "format": 1,
        "environment": environment(accelerator),
        "lora": asdict(lora),
        "shapes": describe_shapes(at, lora),
    }
    with Console(stderr=True).status("counting") as status:
        found = costs(names, at, lora, accelerator, lambda now: status.update(now))
    rows = [
        asdict(one)
        | {"flops_ratio": one.flops, "copies_extra": one.counts.copies - one.baseline.copies}
        for one in found
    ]
    content = head | {"seconds": round(time.time() - start), "quick": options.quick, "costs": rows}
    path = write(options.out, "cost", content)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(found))
    console.print(f"{head['environment']}\n{path}", highlight=False, soft_wrap=True)
    return 0 if options.quick or all(one.met for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
