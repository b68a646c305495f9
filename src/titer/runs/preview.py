"""What a run would do, said before anything is computed."""

from __future__ import annotations

from titer.runs.draft import widths
from titer.runs.plan import Plan
from titer.runs.roles import TRAINING
from titer.runs.store import Store


def preview(plan: Plan, store: Store) -> list[str]:
    """Say the rows of every role, and the stages of every pipeline with those that are stored."""
    roles = plan.roles
    counts = {name: len(getattr(roles, name)) for name in TRAINING}
    counts |= {f"held-out {name}": len(rows) for name, rows in roles.benchmarks.items()}
    told = ["rows: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n)]
    if plan.attacked:
        told.append(
            f"the user sends {len(plan.attacked)} rows, {plan.attack_rows} of them the attacker's"
        )
    told += widths(plan)
    stages = dict.fromkeys(stage for of in plan.pipelines().values() for stage in of)
    stored = {stage for stage in stages if store.entry(stage.key) is not None}
    for name, of in plan.pipelines().items():
        way = " -> ".join(f"{stage.label}{' (stored)' if stage in stored else ''}" for stage in of)
        told.append(f"{name}: {way}")
    told.append(f"{len(stages)} stages, {len(stored)} of them in the store; nothing was computed")
    return told
