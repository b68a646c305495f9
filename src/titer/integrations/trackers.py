"""The terms of every update in TensorBoard, or in another tracker that accelerate knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from titer.errors import cause, unknown
from titer.progress import Progress, Silent

AXIS = "update"  # of Weights & Biases: the updates of a stage


def tag(step: str, term: str) -> str:
    """Return a name for a term of a step that any tracker takes."""
    return re.sub(r"[^\w/.-]+", "_", f"{step}/{term}")


class Tracked:
    """Tells a tracker the terms of every update, and another progress of every step."""

    def __init__(self, name: str, folder: str | Path, to: Progress | None = None) -> None:
        """Take a tracker by its name; one that keeps files does so in `folder`.

        Raises for an unknown one, with the nearest, and for one that is not installed.
        """
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown("tracker", name, LOGGER_TYPE_TO_CLASS)
        if name not in map(str, get_available_trackers()):
            package = "tensorboardX" if name == "tensorboard" else name
            raise ValueError(f"the tracker {name!r} is not installed: pip install {package}")
        self.name, self.folder = name, Path(folder)
        self._to: Progress = to or Silent()
        self._step = ""
        self._tracker: Any = None  # once there are steps to compute

    def expect(self, steps: Sequence[str], stored: int) -> None:
        """Raise for a tracker that does not start: a step that raises loses what was done of it."""
        if steps and self._tracker is None:
            self._tracker = self._start()
        self._to.expect(steps, stored)

    def begin(self, step: str) -> None:
        self._step = step
        if self.name == "wandb":
            self._tracker.tracker.define_metric(f"{tag(step, '')}*", step_metric=tag(step, AXIS))
        self._to.begin(step)

    def advance(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        if terms:
            self._log(done, {tag(self._step, name): terms[name] for name in terms})
        self._to.advance(done, of, terms)

    def end(self) -> None:
        self._to.end()

    def close(self) -> None:
        """Let the tracker finish."""
        if self._tracker is not None:
            self._tracker.finish()

    def _log(self, update: int, values: Mapping[str, float]) -> None:
        if self.name == "wandb":
            # it has one count for a whole run, and drops what comes with a lower one without a word:
            # updates of every stage begin at 1, so here they are an axis of the stage's own
            self._tracker.log({**values, tag(self._step, AXIS): update})
        else:
            self._tracker.log(values, step=update)

    def _start(self) -> Any:
        kind = LOGGER_TYPE_TO_CLASS[self.name]
        place = (str(self.folder),) if kind.requires_logging_directory else ()
        try:
            tracker = kind("titer", *place)
            tracker.start()
        except Exception as fault:  # of any library that a tracker rests on
            raise ValueError(f"the tracker {self.name!r} does not start: {cause(fault)}") from fault
        return tracker
