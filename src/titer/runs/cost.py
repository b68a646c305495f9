"""The cost of a stage: seconds and peak memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch


@dataclass
class Cost:
    seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def measure() -> Iterator[Cost]:
    """Measure the seconds and the peak memory of what runs inside.

    The memory is the GPU's where there is one, else the resident set, sampled every 20 ms.
    """
    cost, start, over = Cost(), time.perf_counter(), threading.Event()
    process = psutil.Process()

    def sample() -> None:
        while not over.is_set():
            cost.peak_mb = max(cost.peak_mb, process.memory_info().rss / 1e6)
            over.wait(0.02)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield cost
    finally:
        over.set()
        sampler.join()
        cost.seconds = time.perf_counter() - start
        if torch.cuda.is_available():
            cost.peak_mb = torch.cuda.max_memory_allocated() / 1e6
