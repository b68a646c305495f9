"""A stage that edits what an aligned model writes to its residual stream, before it is released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.data.rows import Row, digest
from titer.methods import Changes, StreamEdit
from titer.runs.stages.edit import EditStage
from titer.runs.stages.stage import Work
from titer.training.writers import rewrite_stream
from titer.weights import adapters, checkpoints


@dataclass(frozen=True, eq=False)
class AblateStage(EditStage):
    """Edit the weights of a model in memory, an adapter merged first."""

    against: Sequence[Row]  # rows that those it sees are compared with

    @property
    def about(self) -> dict[str, Any]:
        about = super().about
        return about | {"rows": {**about["rows"], "against": digest(self.against)}}

    def rewrite(
        self, work: Work, folder: Path, scratch: Path
    ) -> tuple[Changes, str, dict[str, Any]]:
        assert isinstance(self.method, StreamEdit)
        assert self.start is not None
        model, template = self.asking.open(work.checkpoint(self.start))
        model = adapters.merge_adapter(model)
        rows, others = (template.encode_all(of, "edit") for of in (self.rows, self.against))
        changes = rewrite_stream(self.method, model, rows, others)
        checkpoints.save(model, template.tokenizer, folder)
        return changes, "the step is lost in the dtype of the weights", {}
