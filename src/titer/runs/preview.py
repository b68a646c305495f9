"""What a run would do, said before anything is computed."""

from __future__ import annotations

import math

from titer.progress import span
from titer.registry import name_of
from titer.runs.plan import Plan
from titer.runs.roles import TRAINING
from titer.runs.store import Store
from titer.scoring.differences import detectable
from titer.scoring.figures import NAMES
from titer.scoring.statistics import wilson


def preview(plan: Plan, store: Store) -> list[str]:
    """Say the rows of every role, and the stages of every pipeline with those that are stored."""
    told = tell_rows(plan)
    stages = dict.fromkeys(stage for of in plan.pipelines().values() for stage in of)
    stored = {stage for stage in stages if store.entry(stage.key) is not None}
    for name, of in plan.pipelines().items():
        way = " -> ".join(f"{stage.label}{' (stored)' if stage in stored else ''}" for stage in of)
        told.append(f"{name}: {way}")
    told += tell_needs(plan, store)
    told.append(f"{len(stages)} stages, {len(stored)} of them in the store; nothing was computed")
    return told


def tell_needs(plan: Plan, store: Store) -> list[str]:
    """Say in a line what all that is not stored takes of this machine, counted and roughly timed."""
    from titer.runs.estimate import Estimator
    from titer.runs.machine import find_machine, rough_rates

    machine, rates = find_machine(None), rough_rates()
    estimator = Estimator(plan, machine)
    needs = [estimator.need(stages) for stages in estimator.steps(store)]
    taken = {need.step: need.bytes(machine) or 0.0 for need in needs}
    if not taken:
        return []
    most = max(taken, key=lambda step: taken[step])
    seconds = sum(rates.seconds(need.work) for need in needs)
    open_ = sum(need.made is None for need in needs)
    return [
        f"memory: about {taken[most] / 1e9:.2f} GB of {machine.name}, at {most}; time: roughly "
        f"{span(seconds)} (`titer plan` probes it)"
        + (f"; {open_} steps cannot be counted" if open_ else "")
    ]


def tell_rows(plan: Plan) -> list[str]:
    """Say how many rows every role has, and what the held-out prompts can show."""
    roles = plan.roles
    counts = {name: len(getattr(roles, name)) for name in TRAINING}
    counts |= {f"held-out {name}": len(rows) for name, rows in roles.benchmarks.items()}
    told = ["rows: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n)]
    for attack, sent in plan.sent.items():
        by = f" by {name_of(attack)}" if len(plan.sent) > 1 else ""
        first = f", after {len(sent.first)} in a fine-tuning before" if sent.first else ""
        chosen = f", which the model chooses of {len(sent.rows)}" if sent.selection else ""
        told.append(
            f"the user sends {sent.size} rows{by}, {sent.attack_rows} of them the "
            f"attacker's{first}{chosen}"
        )
    return told + widths(plan)


def widths(plan: Plan) -> list[str]:
    """Say what the held-out prompts of a plan can show: the widest interval, and the smallest
    difference.
    """
    told = []
    for name, rows in plan.roles.benchmarks.items():
        low, high = wilson(0.5, len(rows))
        seen = detectable(len(rows), 20.0)
        least = f"{seen:.0f} points" if not math.isnan(seen) else "no difference at all"
        told.append(
            f"{NAMES.get(name, name)} rests on {len(rows)} prompts: 50 % would be known to within "
            f"{50 * (high - low):.0f} points, and of two models around 20 % a difference of "
            f"{least} would be seen"
        )
    return told
