"""What of a plan fits a machine, what to change where something does not, and what its prompts show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from titer.methods import Defense
from titer.runs.estimate import Alternative, Estimator, Need, Probed
from titer.runs.machine import Machine, Rates, rough_rates
from titer.runs.plan import Plan
from titer.runs.preview import widths
from titer.runs.stages.answer import AnswerStage
from titer.runs.stages.retrain import RetrainStage
from titer.runs.stages.stage import Stage
from titer.runs.stages.train import TrainStage
from titer.runs.store import Store
from titer.scoring.figures import NAMES
from titer.scoring.score import SEEDS
from titer.scoring.statistics import proportion, training
from titer.training.settings import Training
from titer.weights.settings import Lora

SCHEMA = 1
PROMPTS = (50, 100, 200)  # of a benchmark, for what fewer of them would cost in width


def weigh(
    plan: Plan, machine: Machine, store: Store | None = None, probe: bool = True, seeds: int = 1
) -> dict[str, Any]:
    """Return the memory and the time of every step of a plan, whether it fits, and what to change.

    With a `probe` the real model trains for a few updates here, for its times; without one they are
    rough. A GPU that is not here has operations and no times, and so has a plan of whose trainings
    none fits here. Steps in the store count as done.
    """
    estimator = Estimator(plan, machine)
    probed = estimator.probe() if probe and machine.here else Probed({})
    rates = probed.rates
    rough = rough_rates() if machine.here and not rates and not probed.why else None
    steps, changes = [], []
    for stages in estimator.steps(store):
        need = estimator.need(stages)
        of = rates.get(_adapter(stages)) or next(iter(rates.values()), rough)
        steps.append(_as_document(stages, need, machine, of))
        if steps[-1]["fits"] is False:
            changes.append(
                {"step": need.step, **(find_change(estimator, stages) or {"settings": None})}
            )
    seconds = [step["seconds"] for step in steps]
    return {
        "schema": SCHEMA,
        "machine": {
            "name": machine.name,
            "bytes": machine.memory,
            "bytes before a model": machine.before,
            "here": machine.here,
        },
        "times": _tell_times(probed, rough),
        "fits": all(step["fits"] is not False for step in steps),
        "bytes": max((step["bytes"] for step in steps if step["bytes"]), default=0.0),
        "seconds": None if None in seconds else sum(seconds),
        "flops": sum(step["flops"] for step in steps),
        "steps": steps,
        "changes": changes,
        "intervals": [*intervals(plan, seeds)],
        "prompts": widths(plan),
    }


def _tell_times(probed: Probed, rough: Rates | None) -> str:
    """Say where the times are from, or why there are none."""
    missing = f"the probe does not fit here: {probed.why}"
    if probed.rates:
        return f"probed, of one kind of training for another: {missing}" if probed.why else "probed"
    if rough:
        return "rough"
    return f"none: {missing if probed.why else 'the GPU is not here'}"


def _as_document(
    stages: Sequence[Stage], need: Need, machine: Machine, rates: Rates | None
) -> dict[str, Any]:
    taken = need.bytes(machine)
    return {
        "step": need.step,
        "kind": need.kind,
        "bytes": taken,
        "bytes of weights": need.weights,
        "bytes made": need.made,
        "fits": None if taken is None else taken <= machine.memory,
        "seconds": rates.seconds(need.work) if rates and taken is not None else None,
        "flops": need.work.flops,
        "note": need.why,
        "keys": [stage.key for stage in stages],
    }


def _adapter(stages: Sequence[Stage]) -> Lora | None:
    first = stages[0]
    return first.training.lora if isinstance(first, TrainStage | RetrainStage) else None


def find_change(estimator: Estimator, stages: Sequence[Stage]) -> dict[str, Any] | None:
    """Find the least change of its settings with which a step fits; None where none of them does.

    Of a stage that trains the micro-batch goes first, with the same rows in an update, unless its
    method is another with a smaller one; then activations are recomputed, then weights are coarser,
    then an adapter is trained alone. Of scoring it is the number of answers at a time.
    """
    machine, first = estimator.machine, stages[0]
    if isinstance(first, TrainStage):
        for change, settings in _changes(estimator, first):
            sizes = change.training.divisors
            if isinstance(first.method, Defense) and first.method.needs.micro_batch:
                sizes = sizes[:1]
            least = _with_rows(change, sizes[-1])
            if not _fits(estimator.train(first, least), machine):
                continue
            for rows in sizes:
                smaller = _with_rows(change, rows)
                need = estimator.train(first, smaller)
                if _fits(need, machine):
                    return {
                        "settings": [*_told(first, change.training, smaller.training), *settings],
                        "bytes": need.bytes(machine),
                    }
    for stage in stages:
        at_once = estimator.plan.recipe.answers_at_once
        while isinstance(stage, AnswerStage) and at_once > 1:
            at_once //= 2
            need = estimator.answer(stage, at_once)
            if _fits(need, machine):
                return {"settings": [f"answers_at_once={at_once}"], "bytes": need.bytes(machine)}
    return None


def _changes(estimator: Estimator, stage: TrainStage) -> Iterator[tuple[Alternative, list[str]]]:
    """Yield ways to train a stage with less memory, and the settings that ask for them."""
    now, kind = estimator.change_of(stage), _section(stage)
    for adapt in (False, True) if now.training.lora is None else (False,):
        for coarse in (False, True) if now.dtype == "float32" else (False,):
            for recompute in (False, True) if not now.recompute else (True,):
                change, settings = now, list[str]()
                if adapt:
                    change = replace(change, training=replace(change.training, lora=Lora()))
                    settings.append(f"{kind}.lora={{}}")
                if coarse:
                    change = replace(change, dtype="bfloat16")
                    settings.append("model.dtype=bfloat16")
                if recompute and not now.recompute:
                    change = replace(change, recompute=True)
                    settings.append("gradient_checkpointing=true")
                yield change, settings


def _section(stage: TrainStage) -> str:
    """Name the part of a recipe that has a stage's settings."""
    return "align" if stage.kind == "align" else "finetune"


def _with_rows(change: Alternative, rows: int) -> Alternative:
    """Return a change with micro-batches of so many rows, and as many rows in an update."""
    return replace(change, training=change.training.with_rows(rows))


def _told(stage: TrainStage, before: Training, after: Training) -> list[str]:
    if before.batch == after.batch:
        return []
    kind = _section(stage)
    return [f"{kind}.batch={after.batch}", f"{kind}.accumulate={after.accumulate}"]


def _fits(need: Need, machine: Machine) -> bool:
    taken = need.bytes(machine)
    return taken is not None and taken <= machine.memory


def intervals(plan: Plan, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield how wide the interval of every score will be at 50 %, where it is widest, and with fewer
    prompts.

    Of three training seeds and more it is the interval over training, where the seeds agree; of
    fewer that over the prompts.
    """
    for name, rows in plan.roles.benchmarks.items():
        counts = sorted({len(rows), *(n for n in PROMPTS if n < len(rows))})
        for n in counts:
            half = [i % 2 == 0 for i in range(n)]
            over = seeds >= SEEDS
            found = (
                training([half] * seeds, [list(range(n))] * seeds)
                if over
                else proportion(sum(half), n)
            )
            yield {
                "score": NAMES.get(name, name),
                "prompts": n,
                "asked": n == len(rows),
                "seeds": seeds if over else 1,
                "points": round((found.high - found.low) / 2, 1),
            }
