"""Train with smaller micro-batches where those that the settings ask for do not fit into memory.

The stage then starts again from the model that it starts from. So it ends bit for bit as if begun
with the smaller micro-batches, whatever a defense had changed, kept or drawn when memory ran out.
Nothing is copied for it, and what is lost is the updates until then, mostly the first. An update
has as many rows as before, the same ones: its gradient is the same to rounding, but for a few
methods, which say so (`Needs.micro_batch`) and are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from titer import paths
from titer.methods import Defense
from titer.registry import name_of
from titer.training.memory import free_memory, is_out_of_memory
from titer.training.settings import Training

said = logging.getLogger(__name__)
Trained = TypeVar("Trained")
FACT = "rows of a micro-batch"  # where they are fewer than the settings say


def fit(
    attempt: Callable[[Training], Trained],
    method: Defense,
    settings: Training,
    ranks: int,
    folder: Path,
) -> tuple[Trained, dict[str, Any]]:
    """Return what `attempt` comes to with the largest micro-batches that fit, and facts of them.

    It is called with the settings, and after each failure with micro-batches of the next smaller
    size, at most half as large, that divides theirs. It starts from nothing each time, but for a
    checkpoint in `folder`, which is removed. The size that is tried is kept there too, so that an
    interrupted stage goes on with it; who has saved the model removes it.

    Raises where one row does not fit, or the method depends on the size. Of several ranks the others
    are in the midst of an update: the failure is raised as it is.
    """
    marker, now = folder / paths.FITTED, settings
    if ranks == 1 and marker.is_file():
        now = settings.with_rows(int(marker.read_text()))
    while True:
        try:
            found = attempt(now)
        except RuntimeError as error:
            if ranks > 1 or not is_out_of_memory(error):
                raise
            rows = _fewer(method, now)
        else:
            return found, {FACT: now.batch} if now.batch < settings.batch else {}
        # not in the handler, where the failure still holds the tensors of its pass
        free_memory()
        (folder / paths.RESUME).unlink(missing_ok=True)
        marker.write_text(str(rows))
        said.warning(
            "out of memory with %d rows of a micro-batch: the stage starts again with %d, and as many "
            "rows in an update",
            now.batch,
            rows,
        )
        now = now.with_rows(rows)


def _fewer(method: Defense, now: Training) -> int:
    """Return the rows of the next smaller micro-batch. Raises where there is none to be tried."""
    if now.batch == 1:
        raise ValueError(
            "out of memory with micro-batches of one row: set gradient_checkpointing=true, a smaller "
            "max_length or lora, or see `titer plan`"
        ) from None
    if reason := method.needs.micro_batch:
        raise ValueError(
            f"out of memory with batch={now.batch}, and {name_of(method)} with smaller micro-batches "
            f"is another method ({reason}): set a smaller batch yourself, or "
            "gradient_checkpointing=true"
        ) from None
    return next(rows for rows in now.divisors if rows <= now.batch // 2)
