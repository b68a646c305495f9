"""The one executor: compute the stages of a plan, or take them from the store, and say what each
came to.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from titer import paths
from titer.errors import EvidenceError
from titer.findings.records import (
    SCHEMA,
    Claim,
    Record,
    check,
    load_document,
    load_json,
    parse_document,
)
from titer.findings.rules import ATTACK
from titer.methods import Attack
from titer.progress import Progress
from titer.registry import describe
from titer.runs.cost import measure
from titer.runs.crew import Errand, compute
from titer.runs.plan import Plan
from titer.runs.stages.judge import JudgeStage
from titer.runs.stages.stage import Given, ModelStage, Stage
from titer.runs.store import Made, Store, write
from titer.weights.settings import Checkpoint


@dataclass
class Executor:
    """Computes stages over a store.

    It is the `Work` that stages ask for what those before them left.
    """

    store: Store
    progress: Progress
    out: Path | None = None  # of a single command: where its checkpoint will lie

    @property
    def leads(self) -> bool:
        return True

    def place(self, stage: Stage) -> Path:
        """Name the folder where a stage's files will lie once it is finished."""
        return (self.out or self.store.place(stage.key)).resolve()

    def folder(self, stage: Stage, weights: bool = True) -> Path:
        """Return the folder that a stage left its files in, computed first where the store has
        none.

        Without `weights` one whose weights the store has given up serves too.
        """
        needed = weights and isinstance(stage, ModelStage)
        made = partial(self._compute, stage)
        return self.store.stage(stage.key, stage.about, made, weights=needed).resolve()

    def checkpoint(self, stage: ModelStage) -> Checkpoint:
        """Return the model of a stage, computed first where the store has none."""
        if isinstance(stage, Given):
            return stage.checkpoint
        return stage.asking.at(self.folder(stage))

    def made(self, stage: Stage) -> Made:
        """Return the facts and the cost of a stage, which a model that is given has none of."""
        if isinstance(stage, Given):
            return Made()
        return parse_document(self.folder(stage, weights=False) / paths.MADE, Made)

    def expect(self, stages: Sequence[Stage]) -> None:
        """Tell what is to be computed of these stages, and of all that they are computed from."""
        keys = {stage.key: stage for stage in with_inputs(stages) if not isinstance(stage, Given)}
        left = [stage for key, stage in keys.items() if self.store.entry(key) is None]
        self.progress.expect([stage.step for stage in left], len(keys) - len(left))

    def _compute(self, stage: Stage, folder: Path) -> None:
        for other in stage.inputs:
            if not isinstance(other, Given):
                self.folder(other)  # first, so that its time is not counted here
        self.progress.begin(stage.step)
        with measure() as cost:
            errand = Errand(stage, folder, self.store.root, self.out, torch.get_num_threads())
            facts = compute(errand, self)
        self.progress.end()
        told = {
            "facts": facts,
            "seconds": round(cost.seconds, 2),
            "peak_mb": round(cost.peak_mb, 1),
        }
        write(folder / paths.MADE, told)


@dataclass(frozen=True)
class Run:
    """All pipelines of a plan. Stages lie in the store, what they came to in the run's folder."""

    plan: Plan
    folder: Path
    store: Store

    def records(self, progress: Progress) -> dict[str, list[Record]]:
        """Compute every pipeline, or take from the store what is there; the records of its stages,
        by its name.
        """
        pipelines, recipe = self.plan.pipelines(), self.plan.recipe
        attacks = {name: recipe.attack_of(recipe.pipelines[name]) for name in pipelines}
        scorings = {  # a model that attackers ask in several words has a scoring for each
            name: [self.plan.score(stage, attacks[name]) for stage in stages]
            for name, stages in pipelines.items()
        }
        places = {
            (each.answers.of, each.key): (each, attacks[name])
            for name, of in scorings.items()
            for each in of
        }
        order = [scoring for scoring, _ in places.values()]
        work = Executor(self.store, progress)
        work.expect(order)
        with self.store.needed(self.plan.identity, [stage.key for stage in with_inputs(order)]):
            done = {
                place: self.show(f"{i:02d}-{scoring.answers.of.kind}", scoring, attack, work)
                for i, (place, (scoring, attack)) in enumerate(places.items())
            }
        return {
            name: [done[each.answers.of, each.key] for each in of] for name, of in scorings.items()
        }

    def show(self, name: str, scoring: JudgeStage, attack: Attack, work: Executor) -> Record:
        """Put into the run's folder what a stage came to, its answers, and the way to its model."""
        stage, record = scoring.answers.of, score_record(scoring, work, name)
        if stage.kind == "finetune" and attack != self.plan.recipe.attack:
            record = record.model_copy(update={"facts": {**record.facts, ATTACK: describe(attack)}})
        folder = self.folder / paths.STAGES / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copy(work.folder(scoring) / paths.ANSWERS, folder)  # with its mode
        write(folder / paths.RECORD, record.fields)
        if isinstance(stage, Given):
            return record
        entry = self.store.entry(stage.key)
        if (
            entry and entry.faults()
        ):  # scored before it was damaged, and shown now: nobody may load it
            work.checkpoint(stage)
        made = self.store.place(stage.key)
        if made.is_dir() and not (folder / paths.MODEL).is_symlink():
            (folder / paths.MODEL).symlink_to(made.resolve())
        return record


def with_inputs(stages: Sequence[Stage]) -> list[Stage]:
    """Return these stages and all that they are computed from, each once, in the order of computing."""
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.key not in found:
            for other in with_inputs(stage.inputs):
                found.setdefault(other.key, other)
            found[stage.key] = stage
    return list(found.values())


def score_record(scoring: JudgeStage, work: Executor, folder: str = "") -> Record:
    """Score the model of a stage, and return all that is to be known of it."""
    stage = scoring.answers.of
    scores = load_json(work.folder(scoring) / paths.SCORES)
    asked, made = work.made(scoring.answers), work.made(stage)
    costs = [work.made(each) for each in (scoring, *scoring.inputs)]
    notes = asked.facts["notes"]
    fields = {
        "schema": SCHEMA,
        "kind": stage.kind,
        "method": stage.how,
        "label": stage.label,
        "folder": folder,
        "scores": scores["scores"],
        **{name: of for name, of in scores.items() if name != "scores"},
        "seconds": made.seconds,
        "scoring_seconds": round(sum(cost.seconds for cost in costs), 2),
        "peak_mb": max(made.peak_mb, *(cost.peak_mb for cost in costs)),
        "weights": asked.facts["weights"],
        "facts": made.facts | costs[0].facts | ({"notes": notes} if notes else {}),
    }
    return check(Record, fields, f"stage {stage.label}")


def is_free(folder: Path, identity: str) -> bool:
    """Say whether a folder holds nothing, or what is of this identity."""
    marker = folder / paths.RUN
    if not folder.is_file() and not (folder.is_dir() and any(folder.iterdir())):
        return True
    return marker.is_file() and bool(load_document(marker, Claim)["identity"] == identity)


@contextmanager
def claim(folder: Path, plan: Plan, what: str = "run") -> Iterator[None]:
    """Claim the folder of what is computed: an interrupted one of the same identity goes on,
    another one's is refused.

    Where the run fails on its input or on the disk, a folder that it began is removed, unless stages
    in it were computed or begun; an interruption leaves it to be taken up again.
    """
    identity = f"{what} {plan.identity}"
    if not is_free(folder, identity):
        raise ValueError(f"{folder} holds something else: give another --out, or remove it")
    fresh = not (folder / paths.RUN).is_file()
    # attacked weights and answers are for their maker alone
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    marker: dict[str, Any] = {"identity": identity, "recipe": describe(plan.recipe)}
    try:
        write(folder / paths.RUN, marker)
        yield
    except (ValueError, OSError) as error:
        stages = (folder / paths.STORE / place for place in (paths.FINISHED, paths.PARTIAL))
        is_done = isinstance(
            error, EvidenceError
        )  # what it found is told, and asked otherwise next
        if fresh and (is_done or not any(any(place.glob("*/*")) for place in stages)):
            _remove(folder)
        raise


def _remove(folder: Path) -> None:
    """Remove a folder, or empty what a link of a person's stands for."""
    if not folder.is_symlink():
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
