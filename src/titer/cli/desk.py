"""Where two models are brought to be compared: results as they are, and models evaluated alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from titer import paths
from titer.cli.options import merge_data, with_limit

if TYPE_CHECKING:
    from titer.findings.gate import KnownBad
    from titer.findings.measured import Measured
    from titer.progress import Progress
    from titer.runs.gate import Evaluator


@dataclass(frozen=True)
class Desk:
    """Opens results as they are, and evaluates what is a model."""

    recipe: str
    settings: Sequence[str]  # of the evaluation of models
    folder: Path | None
    store: Path | None
    progress: Progress

    def open(self, place: str, name: str) -> Measured:
        """Read results, or evaluate a model into the folder of a name."""
        from titer.findings import measured

        if measured.is_measured(place):
            return measured.load(place)
        return self._evaluator(place).measure(place, name)

    def controls(self, base: str, first: Measured, given: str | None) -> list[KnownBad]:
        """Return the candidates that are known to be bad: planted, judged, given."""
        from titer.findings import gate as rules
        from titer.findings import measured, plants

        controls = plants.plant_controls(first.record)
        if not measured.is_measured(base):
            known = self._evaluator(base).judge_known(base, first)
            controls += [known] if known else []
        if given is not None:
            opened = self.open(given, "control")
            measured.check_comparable(first, opened)
            controls.append(rules.KnownBad(given, "given", opened.record))
        return controls

    def _evaluator(self, model: str) -> Evaluator:
        if self.folder is None:
            raise ValueError(
                f"{model!r} holds no results, and is evaluated as a model: say with --out FOLDER where "
                "its answers go, or give the folder of `titer evaluate`"
            )
        from titer.runs.gate import Evaluator

        store = self.store or self.folder / paths.STORE
        return Evaluator(self.recipe, self.settings, self.folder, store, self.progress)


def evaluation_settings(
    places: Sequence[str | None],
    data: list[str] | None,
    settings: list[str] | None,
    judge: str | None,
    limit: int | None,
) -> list[str]:
    """Return the settings of an evaluation. Raises where they are given and nothing is evaluated."""
    from titer.findings.measured import is_measured

    changed = with_limit(merge_data(data, settings), limit)
    changed += [f"judge={json.dumps(judge)}"] if judge else []
    if changed and all(place is None or is_measured(place) for place in places):
        raise ValueError(
            f"{changed[0]!r}: all that is given are results already; --data, --set, --judge and "
            "--limit say how models are evaluated"
        )
    return changed
