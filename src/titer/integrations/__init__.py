"""titer's methods inside other libraries' own loops, and its figures in their trackers.

    Trainer = defended(SFTTrainer, Lisa(k1=100, k2=900), rows={"alignment": refusals})
    Trainer(model=model, args=SFTConfig(...), train_dataset=dataset).train()

    titer.run("lab", progress=Tracked("tensorboard", "tracked"))

docs/python.md says what they mean for rows, epochs and checkpoints.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from titer.integrations.trackers import Tracked
    from titer.integrations.trainer import defended

__all__ = ["Tracked", "defended"]

WHERE = {"Tracked": "trackers", "defended": "trainer"}  # each with what it loads


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module 'titer.integrations' has no attribute {name!r}")
    return getattr(importlib.import_module(f"titer.integrations.{WHERE[name]}"), name)
