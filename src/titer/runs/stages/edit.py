"""What all stages that edit have in common: the models they ask for, and what they say of their
changes.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer import paths
from titer.data.rows import Row, digest
from titer.methods import Changes
from titer.registry import describe
from titer.runs.stages.stage import ModelStage, Work
from titer.weights import adapters, checkpoints, folders
from titer.weights.folders import ADAPTER, TENSORS, Files
from titer.weights.settings import Checkpoint

ADAPTER_FILES = (ADAPTER, TENSORS, paths.OVER)


@dataclass(frozen=True, eq=False)
class EditStage(ModelStage):
    """Change weights on disk, into a checkpoint of its own. Raises where nothing was changed."""

    others: Mapping[str, ModelStage]  # the models that the edit asks for
    rows: Sequence[Row]  # those that it sees or trains on
    whole: bool  # save the merged model, not its adapter
    looks: Mapping[str, Sequence[Row]]  # rows to measure the removed energy on

    @property
    def references(self) -> Mapping[str, ModelStage]:
        return self.others

    @property
    def about(self) -> dict[str, Any]:
        return self.lineage | {
            "rows": {"calibration": digest(self.rows)},
            "whole": self.whole,
            "probes": {name: digest(rows) for name, rows in self.looks.items()},
        }

    @abstractmethod
    def rewrite(
        self, work: Work, folder: Path, scratch: Path
    ) -> tuple[Changes, str, dict[str, Any]]:
        """Write the edited model; return its changes, what to do where there are none, and more
        facts.
        """

    def compute(self, work: Work, folder: Path) -> dict[str, Any]:
        scratch = folder / paths.MERGED
        changes, mend, facts = self.rewrite(work, folder, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        listed = [
            {
                "tensor": name,
                "entries": size,
                "changed": changes.changed[name],
                "norm of the change": changes.moved[name],
            }
            for name, size in changes.sizes.items()
        ]
        (folder / paths.CHANGES).write_text(json.dumps(listed, indent=2), encoding="utf-8")
        told = self._tell(changes, mend) | facts
        if self.whole:
            self._merge(folder)
        return told

    def whole_files(self, checkpoint: Checkpoint, scratch: Path) -> Files:
        """Find the files of a checkpoint; of an adapter those of its merged model, which is made."""
        files = folders.locate(checkpoint)
        if files.base is None:
            return files
        model, template = self.asking.open(checkpoint)
        checkpoints.save(adapters.merge_adapter(model), template.tokenizer, scratch)
        return folders.locate(Checkpoint(str(scratch)))

    def _merge(self, folder: Path) -> None:
        """Put the merged model in the place of an adapter."""
        if folders.locate(Checkpoint(str(folder))).base is None:
            return
        model, template = self.asking.open(self.asking.at(folder))
        for file in ADAPTER_FILES:
            (folder / file).unlink(missing_ok=True)
        checkpoints.save(adapters.merge_adapter(model), template.tokenizer, folder)

    def _tell(self, changes: Changes, mend: str) -> dict[str, Any]:
        entries = sum(changes.sizes.values())
        if changes.count == 0:
            raise ValueError(
                f"the edit {describe(self.method)} changed none of {entries} entries: nothing to "
                f"evaluate; {mend}"
            )
        return {
            "changed entries": changes.count,
            "entries": entries,
            "tensors left as they were": sum(count == 0 for count in changes.changed.values()),
            "update norm before": changes.norm_before,
            "update norm after": changes.norm_after,
            **changes.facts,
        }
