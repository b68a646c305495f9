"""The machine that a plan is made for: its memory, and how quickly it does what was counted."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import cast

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import Encoded
from titer.defenses.sft import SFT
from titer.training.count import Effort
from titer.training.layers import recompute_layers, unembedding
from titer.training.rehearse import Size, adapt, count_bytes, find_head, rehearse
from titer.training.settings import Training
from titer.training.train import accelerator_for, train
from titer.weights import adapters

UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
CONTEXT = 0.6e9  # bytes that CUDA takes of a GPU before there is a tensor on it
# bytes that an allocator takes beyond those that are alive. That of the C library leaves gaps between
# what comes and goes: so many for a byte of activations as a model is trained, and for a byte of
# what its answers take (measured by bench/plan.py). That of CUDA rounds up
TRAINED_GAPS, READ_GAPS, CUDA_GAPS = 1.1, 0.5, 0.1
LOADED = 50e6  # bytes that a process takes for what torch and its kernels load as they are used
UPDATES, SETTLING = 4, 2  # of a probe, and those of them that do not count
# seconds of a probe, at least, and its updates at the most: short ones are soon disturbed
LASTING, MOST = 1.0, 24
LARGE = 2**24  # floats, more than any cache holds
# of a device's memory, by how much a size may differ that still names it: one that is sold as 24GB has
# 25.8
NAMED = 0.1


@dataclass(frozen=True)
class Machine:
    """A device with its memory. `here`: it is the one that this process runs on."""

    name: str
    kind: str  # cpu or cuda
    memory: float  # bytes that are there for a run
    before: float  # bytes that are taken before there is a model
    here: bool

    def takes(self, weights: float, made: float, activations: float | None = None) -> float:
        """Return the bytes that a stage takes, from those of its weights and those that it makes.

        `activations` are among them where it trains.
        """
        gaps = CUDA_GAPS * made
        if self.kind == "cpu":
            gaps = READ_GAPS * made if activations is None else TRAINED_GAPS * activations
        return self.before + weights + made + gaps


def find_machine(memory: str | None) -> Machine:
    """Return this machine, or a GPU with so much memory, as "24GB" or "24GiB".

    That is the GPU of this machine where its memory is about as large. On a CPU the memory of this
    machine is what is free now. Raises where the text is no size.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    of = torch.cuda.get_device_properties(accelerator_for().device) if kind == "cuda" else None
    if memory is not None:
        size = read_bytes(memory)
        here = of is not None and abs(size - of.total_memory) <= NAMED * of.total_memory
        return Machine(f"a GPU with {size / 1e9:.4g} GB", "cuda", size, CONTEXT, here)
    if of is not None:
        return Machine(str(of.name), kind, float(of.total_memory), CONTEXT, True)
    taken = float(psutil.Process().memory_info().rss)
    free = psutil.virtual_memory().available + taken
    return Machine(f"this machine's {free / 1e9:.4g} GB", kind, free, taken + LOADED, True)


def read_bytes(text: str) -> float:
    """Read a size of memory, as 24GB, 24 GiB or 512MB. Raises where it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)B?\s*", text.upper())
    if not found or not float(found[1]) > 0:
        raise ValueError(f"--gpu-memory {text!r}: give a size above 0, as 24GB or 24GiB")
    return float(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Rates:
    """Seconds of a machine for each piece of work that is counted."""

    kernel: float
    flop: float
    byte: float
    head: float  # an operation with the weight that makes logits

    def seconds(self, work: Effort) -> float:
        """Return the seconds that a piece of work takes."""
        return self.kernel * work.kernels + self.flop * (work.flops - work.head) + self.known(work)

    def known(self, work: Effort) -> float:
        """Return the seconds of it whose rates are measured by themselves."""
        return self.byte * work.moved + self.head * work.head


def clock() -> float:
    """Return seconds that others on this machine do not add to, where that can be had.

    On one thread of a CPU it is the processor's time of this process; else the time on the wall.
    """
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def probe(
    load: Callable[[], PreTrainedModel],
    skeleton: PreTrainedModel,
    dtype: torch.dtype,
    size: Size,
    settings: Training,
    machine: Machine,
    recompute: bool = False,
) -> Rates:
    """Time a few plain updates of a model at two sizes of micro-batch, and find a machine's rates.

    The larger size is that of the stage, or as many rows of it as take half of the memory. The model
    that `load` returns, of this dtype, is trained, under a fresh adapter where the settings have one.
    `skeleton` is the same model on the meta device. Where an update of one row takes more than the
    memory, an OutOfMemoryError is raised and nothing is loaded.
    """
    imagined = adapt(skeleton, dtype, settings.lora)
    weights = count_bytes(imagined)

    def count(size: Size) -> tuple[float, Effort]:
        of = _small(settings, size)
        counted = rehearse(imagined, SFT(), {"rows": size}, of, recompute=recompute)
        return machine.takes(weights, counted.peak, counted.activations), counted.update

    large = replace(size, other=None)
    taken, work = count(large)
    while taken > machine.memory / 2 and large.rows > 1:
        large = replace(large, rows=large.rows // 2)
        taken, work = count(large)
    if taken > machine.memory:
        raise torch.OutOfMemoryError(
            f"an update of one row takes {taken / 1e9:.2f} GB, and there are "
            f"{machine.memory / 1e9:.2f} GB"
        )
    model = load()
    trained = adapters.add_lora(model, settings.lora) if settings.lora else model
    if settings.lora is None:
        trained.requires_grad_(True).float()
    small = _halve(large)
    rates = Rates(0.0, 0.0, _time_writing(), _time_head(trained, large.rows * large.learned))
    works = [(small, count(small)[1]), (large, work)]
    with recompute_layers(trained) if recompute else nullcontext():
        found = [
            (each, _time_updates(trained, one.encode(1), _small(settings, one)) - rates.known(each))
            for one, each in works
        ]
    return _solve(found, rates)


def _small(settings: Training, size: Size) -> Training:
    """Return the settings of a probe with micro-batches of a size."""
    return replace(settings, updates=UPDATES, batch=size.rows, accumulate=1)


def _halve(size: Size) -> Size:
    """Return half of the rows of a micro-batch; of one row half of its tokens."""
    if size.rows > 1:
        return replace(size, rows=size.rows // 2)
    return replace(size, length=max(size.length // 2, 2), learned=max(size.learned // 2, 1))


def _time_updates(model: PreTrainedModel, rows: Sequence[Encoded], settings: Training) -> float:
    """Return the seconds of an update: the median of a few, and of more where they are short."""

    def measure(updates: int) -> float:
        ticks = [clock()]
        train(
            model, SFT(), {"rows": rows}, replace(settings, updates=updates, lr=1e-9), seed=0,
            watch=lambda *_: ticks.append(clock()),
        )  # fmt: skip
        return median(b - a for a, b in itertools.pairwise(ticks[SETTLING:]))

    seconds = measure(settings.updates)
    more = min(int(LASTING / seconds), MOST) if seconds > 0 else MOST
    return measure(more) if more > settings.updates else seconds


def _time_writing() -> float:
    """Return the seconds that a byte takes which a kernel writes, of tensors larger than a cache."""
    device = accelerator_for().device
    a, b = (torch.zeros(LARGE, device=device) for _ in range(2))
    ticks = [clock()]
    for _ in range(5):
        torch.add(a, b, out=a)
        ticks.append(clock())
    return min(b - a for a, b in itertools.pairwise(ticks)) / (4 * LARGE)


def _time_head(model: PreTrainedModel, tokens: int) -> float:
    """Return the seconds of an operation with the weight that makes logits, forward and back."""
    shape = find_head(model)
    if shape is None:
        return 0.0
    weight = cast(Tensor, unembedding(model).weight)
    state = weight.new_zeros(tokens, shape[1]).requires_grad_()
    wanted = [state, weight] if weight.requires_grad else [state]
    above = weight.new_zeros(tokens, shape[0])

    def products() -> None:
        torch.autograd.grad(nn.functional.linear(state, weight), wanted, above)

    seconds = min(_time(products) for _ in range(3))
    return seconds / (2 * (1 + len(wanted)) * tokens * shape.numel())


def _solve(found: Sequence[tuple[Effort, float]], rates: Rates) -> Rates:
    """Find what a kernel and an operation take, from two works and their seconds but for what has
    rates of its own.
    """
    (one, seconds_one), (two, seconds_two) = found
    flops_one, flops_two = (each.flops - each.head for each in (one, two))
    flop = max(seconds_two - seconds_one, 0.0) / max(flops_two - flops_one, 1.0)
    flop = min(flop, max(seconds_two, 0.0) / flops_two)
    kernel = max(seconds_two - flop * flops_two, 0.0) / two.kernels
    return replace(rates, kernel=kernel, flop=flop)


def rough_rates() -> Rates:
    """Find a machine's rates without a model, from a few small tensors: right to a factor of two or
    so.
    """
    device, size = accelerator_for().device, 512
    matrix = torch.randn(size, size, device=device)
    flop = min(_time(lambda: matrix @ matrix) for _ in range(5)) / (2 * size**3)
    vector = torch.zeros(64, 64, device=device, requires_grad=True)

    def chain() -> None:
        value = vector
        for _ in range(20):
            value = value * 1.5
        value.sum().backward()

    kernel = min(_time(chain) for _ in range(5)) / 40  # forward and backward
    return Rates(kernel, flop, _time_writing(), flop)


def _time(action: Callable[[], object]) -> float:
    start = clock()
    action()
    return clock() - start
