"""A stage that measures how much rather a model would tell than refuse, for judges whose refusals
begin alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer import paths
from titer.data.rows import Row, digest
from titer.runs.keys import code_key
from titer.runs.stages.asking import Asking
from titer.runs.stages.stage import ModelStage, Stage, Work
from titer.scoring.margin import harm_margins
from titer.weights import adapters


@dataclass(frozen=True, eq=False)
class MarginStage(Stage):
    """Take the harm margin of every harm prompt whose harmful answer is known."""

    of: ModelStage
    rows: Sequence[Row]
    refusals: Sequence[str]  # how a refusal begins
    asking: Asking

    @property
    def inputs(self) -> list[Stage]:
        return [self.of]

    @property
    def about(self) -> dict[str, Any]:
        return {
            "kind": "margin",
            "of": self.of.key,
            "rows": digest(self.rows),
            "refusals": list(self.refusals),
            "code": code_key(type(self)),
            **self.asking.about,
        }

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        model, template = self.asking.open(work.checkpoint(self.of))
        model = adapters.merge_adapter(model).eval()
        margins = harm_margins(model, template, self.rows, self.refusals)
        (folder / paths.MARGINS).write_text(json.dumps(margins), encoding="utf-8")
        return {}
