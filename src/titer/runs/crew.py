"""A command on several ranks: the first rank leads, and the others help with what all compute.

The leader runs the command as one process would: it reads, checks, writes and prints. The others wait,
and are sent each stage that all ranks compute together, until the leader is done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from titer.progress import Progress, Silent
from titer.runs.stages.stage import Given, ModelStage, Stage, Work
from titer.runs.store import Store
from titer.training.train import accelerator_for
from titer.weights.settings import Checkpoint

COMMANDS = ("run", "align", "release", "finetune", "edit", "evaluate")  # that several ranks compute
AS_LONG_AS_IT_TAKES = timedelta(days=365)
SAME = timedelta(seconds=20)  # within which ranks fail that fail for the same reason


@dataclass(frozen=True)
class Errand:
    """A stage that all ranks compute together."""

    stage: Stage
    folder: Path  # where the leader computes it
    store: Path
    out: Path | None
    threads: int


@dataclass(frozen=True)
class Helper:
    """The `Work` of a rank that helps: it finds what other stages left, writes nothing, tells nobody."""

    errand: Errand

    @property
    def leads(self) -> bool:
        return False

    @property
    def progress(self) -> Progress:
        return Silent()

    def folder(self, stage: Stage) -> Path:
        return Store(self.errand.store).place(stage.key).resolve()

    def place(self, stage: Stage) -> Path:
        return self.errand.out or self.folder(stage)

    def checkpoint(self, stage: ModelStage) -> Checkpoint:
        if isinstance(stage, Given):
            return stage.checkpoint
        return stage.asking.at(self.folder(stage))


@dataclass
class Crew:
    """The ranks of a command, which talk apart from the passes that they make together."""

    talk: Any  # a process group, whose time limit is its own: a leader may be busy for days
    apart: bool = False  # ranks may be at different places, so that none may wait for another

    def compute(self, errand: Errand, work: Work) -> dict[str, Any]:
        """Compute a stage with all ranks, as the leader; return its facts."""
        distributed.broadcast_object_list([errand], src=0, group=self.talk)
        with self._together():
            return errand.stage.compute(work, errand.folder)

    def help(self) -> None:
        """Compute what the leader sends, until it is done."""
        while True:
            sent: list[Errand | None] = [None]
            distributed.broadcast_object_list(sent, src=0, group=self.talk)
            [errand] = sent
            if errand is None:
                return
            torch.set_num_threads(errand.threads)
            try:
                with self._together():
                    errand.stage.compute(Helper(errand), errand.folder)
            except (ValueError, OSError):
                if self.apart:
                    raise  # else the leader tells of it

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Inside, all ranks compute a stage, and behind it they meet.

        They go on after an error that each of them has, or the leader alone once the others are done.
        """
        self.apart = True
        try:
            yield
        except (ValueError, OSError) as error:
            try:
                self._meet(SAME)
            except RuntimeError:  # the others are in the midst of it
                raise error from None
            raise
        self._meet(AS_LONG_AS_IT_TAKES)

    def _meet(self, limit: timedelta) -> None:
        distributed.monitored_barrier(self.talk, limit, wait_all_ranks=True)
        self.apart = False


CREW: ContextVar[Crew | None] = ContextVar("CREW", default=None)


def compute(errand: Errand, work: Work) -> dict[str, Any]:
    """Compute a stage, with all ranks where there are several and it is a joint one."""
    crew = CREW.get()
    if crew is None or not errand.stage.joint:
        return errand.stage.compute(work, errand.folder)
    return crew.compute(errand, work)


def run(command: Callable[[], None], name: str) -> None:
    """Run a command on all ranks of a launch, led by the first one.

    That one raises what the command raises, and a ValueError where several ranks cannot compute it or
    the launch asks for what is not done here. Another raises what it alone fails by. It raises the
    latter too, but so late that a launcher has ended it by then.
    """
    leads = os.environ.get("RANK", "0") == "0"
    try:
        if name not in COMMANDS:
            raise ValueError(
                f"`titer {name}` runs in one process, and the launch has {os.environ['WORLD_SIZE']}: "
                f"leave the launcher out (several ranks compute {', '.join(COMMANDS)})"
            )
        accelerator_for()
    except ValueError:
        if (
            not leads
        ):  # the leader is to tell of it, and a launcher ends all at the first that fails
            time.sleep(SAME.total_seconds())
        raise
    crew = Crew(distributed.new_group(backend="gloo", timeout=AS_LONG_AS_IT_TAKES))
    CREW.set(crew)
    try:
        command() if leads else crew.help()
    finally:
        if not crew.apart:
            if leads:
                distributed.broadcast_object_list([None], src=0, group=crew.talk)
            # a rank that is gone while another still holds a connection to it may abort the other
            distributed.barrier(crew.talk)
            distributed.destroy_process_group()
