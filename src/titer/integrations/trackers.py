"""The terms of every update in TensorBoard, or in another tracker that accelerate knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from titer.errors import unknown
from titer.progress import Progress, Silent


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
        self._tracker: Any = None  # once there is something to track

    def expect(self, steps: Sequence[str], stored: int) -> None:
        self._to.expect(steps, stored)

    def begin(self, step: str) -> None:
        self._step = step
        self._to.begin(step)

    def advance(self, done: int, of: int, terms: Mapping[str, float]) -> None:
        if terms:
            self._open().log({tag(self._step, name): terms[name] for name in terms}, step=done)
        self._to.advance(done, of, terms)

    def end(self) -> None:
        self._to.end()

    def close(self) -> None:
        """Let the tracker finish."""
        if self._tracker is not None:
            self._tracker.finish()

    def _open(self) -> Any:
        if self._tracker is None:
            kind = LOGGER_TYPE_TO_CLASS[self.name]
            place = (str(self.folder),) if kind.requires_logging_directory else ()
            self._tracker = kind("titer", *place)
            self._tracker.start()
        return self._tracker
