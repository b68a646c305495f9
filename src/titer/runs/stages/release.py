"""A stage that edits the tensors of an aligned model, before it is released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from titer.methods import Changes, TensorEdit
from titer.runs.stages.edit import EditStage
from titer.runs.stages.stage import Work
from titer.weights import checkpoints, language
from titer.weights.rewrite import rewrite_tensors
from titer.weights.tensors import open_tensors

MEND = "the base holds the weights of the aligned model, or the step is lost in their dtype"


class ReleaseStage(EditStage):
    """Edit a checkpoint tensor by tensor, by the base that alignment started from."""

    def rewrite(
        self, work: Work, folder: Path, scratch: Path
    ) -> tuple[Changes, str, dict[str, Any]]:
        assert isinstance(self.method, TensorEdit)
        assert self.start is not None
        aligned = self.whole_files(work.checkpoint(self.start), scratch / "model")
        base = self.whole_files(work.checkpoint(self.others["base"]), scratch / "base")
        beside = language.unread(
            open_tensors(aligned), checkpoints.skeleton(self.asking.at(aligned.folder))
        )
        watch = work.progress.advance
        return rewrite_tensors(self.method, aligned, base, folder, watch, beside), MEND, {}
