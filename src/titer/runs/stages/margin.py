"""A stage that measures how much rather a model would tell than refuse, for judges whose refusals
begin alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from titer import paths
from titer.data.rows import Row, digest
from titer.runs.stages.stage import AskingStage, Work
from titer.scoring.margin import harm_margins
from titer.training.ranks import Ranks
from titer.training.sharding import shard
from titer.training.train import accelerator_for


@dataclass(frozen=True, eq=False)
class MarginStage(AskingStage):
    """Take the harm margin of every harm prompt whose harmful answer is known."""

    joint: ClassVar[bool] = True
    rows: Sequence[Row]
    refusals: Sequence[str]  # how a refusal begins

    @property
    def about(self) -> dict[str, Any]:
        return self.lineage | {
            "kind": "margin",
            "rows": digest(self.rows),
            "refusals": list(self.refusals),
        }

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        model, template = self.open(work)
        ranks, watch = Ranks.of(accelerator := accelerator_for()), work.progress.advance
        if ranks.sharded:
            model = shard(model, accelerator)
        margins = harm_margins(model, template, self.rows, self.refusals, watch, ranks)
        if work.leads:
            (folder / paths.MARGINS).write_text(json.dumps(margins), encoding="utf-8")
        return {}
