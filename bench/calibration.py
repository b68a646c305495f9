"""The cost of Antidote's look at its calibration rows over a bare forward pass of the same rows.

Run it as `python -m bench.calibration`. Exit code 1 if time or memory is above its bar, by the
median.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from bench import count, shapes
from bench.clock import Spread, time_in_turns
from bench.cost import environment, write
from bench.shapes import Shape
from titer.data.batches import Batch
from titer.edits.antidote import feature_norms
from titer.errors import unknown
from titer.methods import Harmful
from titer.runs.stages.repair import CALIBRATION_BATCH
from titer.training.train import accelerator_for
from titer.weights import adapters
from titer.weights.settings import ALL_LINEAR, Lora

TIME_BAR = 1.15  # times the bare pass's
PEAK_BAR = 1.10  # times its most bytes alive at once, weights among them


@dataclass(frozen=True)
class Pass:
    """A pass over the calibration rows."""

    run: Callable[[], object]

    def mean(self, measure: Callable[[Callable[[], object]], float]) -> float:
        return measure(self.run)


@dataclass(frozen=True)
class Cost:
    shape: str
    watched: str  # layers
    seconds: Spread
    bare_seconds: Spread
    ratio: Spread  # of the seconds, within the pairs
    peak: int  # bytes
    bare_peak: int

    @property
    def met(self) -> bool:
        return self.ratio.median <= TIME_BAR and self.peak <= PEAK_BAR * self.bare_peak


def cases(
    shape: Shape, lora: Lora, device: torch.device
) -> Iterator[tuple[str, PreTrainedModel, dict[str, nn.Module]]]:
    """The layers of an adapter, of one on all linear layers, and of a model without."""
    for name, adapter in (("q, v", lora), ("all-linear", replace(lora, targets=(ALL_LINEAR,)))):
        model = shape.model(adapter, device)
        yield (
            f"adapter on {name}",
            model,
            {each: model.get_submodule(each) for each in adapters.adapters(model)},
        )
    model = shape.model(None, device)
    head = model.get_output_embeddings()
    yield (
        "all linear",
        model,
        {
            name: of
            for name, of in model.named_modules()
            if isinstance(of, nn.Linear) and of is not head
        },
    )


def passes(shape: Shape, model: PreTrainedModel, layers: dict[str, nn.Module]) -> tuple[Pass, Pass]:
    """The bare pass over a batch of rows, and Antidote's."""
    batch = Batch.of(
        "calibration", [shape.rows("harmful", Harmful)[:CALIBRATION_BATCH]], 0, model.device
    )

    def bare() -> None:
        with torch.no_grad():
            for part in batch.parts:
                model(input_ids=part.ids, attention_mask=part.mask, use_cache=False)

    return Pass(bare), Pass(lambda: feature_norms(model, layers, [batch]))


def costs(at: dict[str, Shape], lora: Lora, device: torch.device) -> Iterator[Cost]:
    for name, shape in at.items():
        for what, model, layers in cases(shape, lora, device):
            bare, mine = passes(shape, model, layers)
            lasting = [*model.parameters(), *model.buffers()]
            bare_peak, peak = (count.peak(lasting, one.run) for one in (bare, mine))
            times = time_in_turns(bare, mine, shape.pairs)
            yield Cost(name, what, times.subject, times.baseline, times.ratio, peak, bare_peak)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.calibration", description=__doc__)
    parser.add_argument(
        "--shape",
        action="append",
        help="one of shapes.yaml; may be given again; none: the large ones",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one tiny shape, to see that it runs; bars mean nothing there",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder for calibration.json"
    )
    parser.add_argument("--device", help="cpu, or the best there is")
    options = parser.parse_args(arguments)
    at, lora = shapes.load(options.quick)
    for name in options.shape or []:
        if name not in at:
            print(f"error: {unknown('shape', name, at)}", file=sys.stderr)
            return 2
    at = {
        name: shape
        for name, shape in at.items()
        if name in (options.shape or [name for name in at if name != "lab"])
    }
    accelerator = accelerator_for(options.device)
    content, found = (
        {"format": 1, "environment": environment(accelerator), "quick": options.quick},
        [],
    )
    for one in costs(at, lora, accelerator.device):
        found.append(one)
        print(
            f"{one.shape}, {one.watched}: {one.seconds.median * 1e3:.1f} / "
            f"{one.bare_seconds.median * 1e3:.1f} ms, time "
            f"{one.ratio.median:.3f} ({one.ratio.q1:.3f}-{one.ratio.q3:.3f}) of {TIME_BAR}, "
            f"peak {one.peak / one.bare_peak:.3f} of {PEAK_BAR:.2f}: "
            f"{'met' if one.met else 'missed'}",
            flush=True,
        )
    rows = [asdict(one) | {"met": one.met} for one in found]
    write(options.out, "calibration", content | {"costs": rows})
    return 0 if options.quick or all(one.met for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
