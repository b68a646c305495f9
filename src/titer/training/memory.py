"""Memory that does not suffice: how a failure is known for it, and how what it held is freed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory did not suffice, of the CPU or of an accelerator."""
    if isinstance(error, MemoryError):
        return True
    on_cpu = "can't allocate memory" in str(error)  # torch has no class for the CPU's
    told = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return bool(on_cpu or told)


def free_memory() -> None:
    """Give back what nothing holds any more, but for which the allocator still counts."""
    clear_device_cache(garbage_collection=True)


def halve_answers(size: int, say: Callable[[str], None]) -> int:
    """Free memory where so many answers at a time did not fit, say so, and return half as many."""
    free_memory()
    half = (size + 1) // 2
    say(f"out of memory with {size} answers at a time; going on with {half}")
    return half
