"""Ranks that divide work among them: rows to be read, prompts to be answered."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

Item = TypeVar("Item")
Place = TypeVar("Place")


@dataclass(frozen=True)
class Ranks:
    """This rank's place among all."""

    rank: int = 0
    count: int = 1
    # every rank holds a part of each weight alone, so all have to make the same number of passes
    sharded: bool = False

    @staticmethod
    def of(accelerator: Accelerator) -> Ranks:
        count = int(accelerator.num_processes)
        return Ranks(int(accelerator.process_index), count, count > 1 and has_shards())

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this rank's share of the items, every `count`-th.

        Where weights are sharded the shares are as long as one another: the last items are in several.
        """
        mine = list(items[self.rank :: self.count])
        most = -(-len(items) // self.count)
        return [*mine, *items[-1:]] if self.sharded and len(mine) < most else mine

    def join(self, found: Mapping[Place, Item]) -> dict[Place, Item]:
        """Return what all ranks have found, by its place."""
        return dict(gather_object(list(found.items()))) if self.count > 1 else dict(found)


ALONE = Ranks()


def has_shards() -> bool:
    """Tell whether the launch asks for shards: `accelerate launch --use_fsdp --fsdp_version 2`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def check_launch() -> None:
    """Raise where the launch asks for what is not done here, or does not say how many ranks it has."""
    ranks = os.environ.get("WORLD_SIZE") or "1"
    if not ranks.isdecimal():
        raise ValueError(f"WORLD_SIZE={ranks!r} is no number of ranks: unset it, or use a launcher")
    for name, what in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise ValueError(
                f"the launch asks for {what}, whose engine makes the updates itself and leaves no "
                "gradient to a defense: launch with --multi_gpu, or --use_fsdp --fsdp_version 2"
            )
    version = os.environ.get("FSDP_VERSION", "1")
    if has_shards() and version != "2":
        raise ValueError(f"the launch asks for FSDP {version}: give --fsdp_version 2")
    if has_shards() and os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
        raise ValueError("the launch asks for weights on the CPU: give --fsdp_offload_params false")
