"""Settings of a training stage: how long, how fast, on which weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from titer.config import Config
from titer.weights.settings import Lora


@dataclass(frozen=True)
class Training(Config):
    """The settings of a training stage, the same for every defense."""

    updates: int  # optimizer updates
    lr: float  # peak learning rate of AdamW
    batch: int = 10  # rows of a micro-batch
    accumulate: int = 1  # micro-batches of an update
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = 0.0  # share of the updates in which the learning rate rises from 0
    weight_decay: float = 0.1
    clip: float | None = 1.0  # largest norm of the update's gradient
    lora: Lora | None = field(default_factory=Lora)  # None trains all weights
    # what passes compute in, where it is coarser than the weights; weights and moments stay as they are
    autocast: Literal["bfloat16"] | None = None

    def __post_init__(self) -> None:
        # beyond these a training would not end, or its rows not fit into any memory
        for name, most in (("updates", 10**8), ("batch", 2**16), ("accumulate", 2**16)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)}: must lie between 1 and {most}")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: must be above 0")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup={self.warmup}: must be a share between 0 and 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip}: must be above 0, or null for none")

    def with_rows(self, rows: int) -> Training:
        """Return the settings with micro-batches of so many rows, which divide `batch`, and as many
        rows in an update.
        """
        assert self.batch % rows == 0, "the rows of an update stay as many"
        return replace(self, batch=rows, accumulate=self.accumulate * (self.batch // rows))

    @property
    def divisors(self) -> list[int]:
        """The rows of ever smaller micro-batches, its own first, into which an update divides alike."""
        return [rows for rows in range(self.batch, 0, -1) if self.batch % rows == 0]

    def among(self, ranks: int) -> Training:
        """Return the settings of each of several ranks that share an update, whose rows stay as many.

        A rank makes fewer micro-batches, and where these are too few, smaller ones. Raises where the
        rows of an update cannot be divided evenly.
        """
        fewer = math.gcd(self.accumulate, ranks)
        smaller = ranks // fewer
        if self.batch % smaller:
            raise ValueError(
                f"batch={self.batch}, accumulate={self.accumulate}: {ranks} ranks cannot share the "
                f"{self.batch * self.accumulate} rows of an update evenly; give a batch or an "
                f"accumulate that is a multiple of {ranks}, or another number of ranks"
            )
        return replace(self, batch=self.batch // smaller, accumulate=self.accumulate // fewer)

    def spread(self, ranks: int) -> Training:
        """Return the settings of each of several ranks that share an update, evenly or not.

        Their micro-batches, no larger than before, hold its rows and may hold more: the last ranks
        then have fewer rows, or none.
        """
        share = -(-self.batch * self.accumulate // ranks)  # rows of a rank, rounded up
        accumulate = -(-share // self.batch)
        return replace(self, batch=-(-share // accumulate), accumulate=accumulate)


# the term of an update that counts the rows drawn by then of those that the stage trains on; it is
# absent where each update until then drew a full batch of them
DRAWN = "rows drawn"

Watch = Callable[[int, int, Mapping[str, float]], None]  # (update, of how many, terms by name)


def unwatched(done: int, of: int, terms: Mapping[str, float]) -> None:
    """Watch nothing."""
