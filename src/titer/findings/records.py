"""A run's stages as its documents tell them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from titer.scoring.figures import NAMES
from titer.scoring.statistics import Score, read


@dataclass(frozen=True)
class Stage:
    fields: Mapping[str, Any]  # as written, with whatever a later version adds

    @property
    def kind(self) -> str:
        return str(self.fields["kind"])

    @property
    def method(self) -> str:
        return str((self.fields.get("method") or {}).get("method", ""))

    @property
    def label(self) -> str:
        return f"{self.kind} {self.method}".strip()

    @property
    def folder(self) -> str:
        return str(self.fields["folder"])

    @property
    def weights(self) -> str:
        return str(self.fields.get("weights", ""))

    @property
    def struck(self) -> list[str]:
        """Why its HS is struck out; empty where it is not."""
        return list(self.fields.get("struck out") or [])

    def fact(self, name: str) -> Any:
        """What is known of the stage beside its scores; None where it is not recorded."""
        return (self.fields.get("facts") or {}).get(name)

    @cached_property
    def scores(self) -> dict[str, Score]:
        return {name: read(fields) for name, fields in self.fields["scores"].items()}

    def score(self, name: str) -> Score | None:
        """The score if it was measured; None also where no prompt could be scored."""
        score = self.scores.get(name)
        return None if score is None or math.isnan(score.value) else score


def stages(documents: Mapping[str, Any]) -> dict[str, list[Stage]]:
    """Every pipeline's stages in order."""
    return {
        name: [Stage(fields) for fields in document["stages"]]
        for name, document in documents.items()
    }


def once(found: Mapping[str, Sequence[Stage]]) -> list[tuple[str, Stage]]:
    """Every stage once, under the first pipeline that has it."""
    listed: dict[str, tuple[str, Stage]] = {}
    for name, of in found.items():
        for stage in of:
            listed.setdefault(stage.folder, (name, stage))
    return list(listed.values())


def last(kinds: Sequence[str], of: Sequence[Stage]) -> Stage | None:
    return next((stage for stage in reversed(of) if stage.kind in kinds), None)


def figures(found: Mapping[str, Sequence[Stage]]) -> dict[str, str]:
    """The names of all figures that some stage has: the known ones first."""
    present = {name: None for _, stage in once(found) for name in stage.scores}
    return {name: NAMES[name] for name in NAMES if name in present} | {
        name: name for name in present if name not in NAMES
    }


def quoted(score: Score) -> str:
    """A score in a sentence, its interval with it."""
    text = f"{score.value:z.1f}"
    if not math.isnan(score.low + score.high):
        text += f" [{score.low:z.1f}, {score.high:z.1f}]"
    return (
        f"{text} ({score.unscored} of {score.n + score.unscored} prompts unscored)"
        if score.unscored
        else text
    )
