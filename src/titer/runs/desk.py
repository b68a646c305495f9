"""Where two models are brought to be compared: results as they are, and models evaluated alike.

A gate over results loads no torch, so nothing here does before a model is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from titer import paths
from titer.findings import measured, plants
from titer.findings.gate import KnownBad
from titer.findings.measured import Measured
from titer.progress import Progress
from titer.runs.contender import OF_SERVER, Contender

if TYPE_CHECKING:
    from titer.runs.gate import Evaluator


@dataclass(frozen=True)
class Desk:
    """Opens results as they are, and evaluates what is a model."""

    recipe: str
    settings: Sequence[str]  # of the evaluation of models; those of servers begin with OF_SERVER
    folder: Path
    store: Path | None
    progress: Progress

    def open(self, place: Contender, name: str) -> Measured:
        """Read results, or evaluate a model into the folder of a name."""
        if place.is_measured:
            return measured.load(place.name)
        return self._evaluator().measure(place, name)

    def controls(self, base: Contender, first: Measured, given: Contender | None) -> list[KnownBad]:
        """Return the candidates that are known to be bad: planted, judged, given."""
        controls = plants.plant_controls(first.record)
        if not base.is_measured:
            known = self._evaluator().judge_known(base, first)
            controls += [known] if known else []
        if given is not None:
            opened = self.open(given, "control")
            measured.check_comparable(first, opened)
            controls.append(KnownBad(given.name, "given", opened.record))
        return controls

    def _evaluator(self) -> Evaluator:
        from titer.runs.gate import Evaluator

        store = self.store or self.folder / paths.STORE
        return Evaluator(self.recipe, self.settings, self.folder, store, self.progress)


def check_settings(places: Sequence[Contender], settings: Sequence[str]) -> None:
    """Raise where settings of an evaluation are given and nothing is evaluated by them."""
    if settings and all(place.is_measured for place in places):
        raise ValueError(
            f"{settings[0]!r}: all that is given are results already; --data, --set, --judge and "
            "--limit say how models are evaluated"
        )
    for setting in settings:
        if setting.startswith(OF_SERVER) and not any(place.server for place in places):
            raise ValueError(
                f"{setting!r}: none of the models is behind a server: give one as NAME@URL"
            )
