"""Early stopping, seen afterwards: would the attack have failed, had training ended once the task was learnt?

A provider who stops where the user's task has converged sends out a model that has seen fewer of the
attacker's rows (arXiv 2605.12199). It is no method and costs nothing: so what a defense holds at the
end of the attack stands beside what plain fine-tuning has at that look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from titer.findings.dose import mean_margin
from titer.findings.records import Record, last
from titer.scoring.curve import FACT, TASK

LEARNT = 0.95  # share of the whole fall of the task's loss


def learnt_at(looks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the first look by which the task's loss has had all but a twentieth of its fall.

    None where the task was not read, or did not get better.
    """
    if not all(TASK in look for look in looks):
        return None
    losses = [look[TASK] for look in looks]
    fall = losses[0] - min(losses)
    if fall <= 0:
        return None
    return next(look for look in looks if losses[0] - look[TASK] >= LEARNT * fall)


def stop_of(stages: Sequence[Record]) -> Mapping[str, Any] | None:
    """Return the look at which a pipeline's fine-tuning had learnt the task; None as `learnt_at`."""
    tuned = last(("finetune",), stages)
    looks = tuned.fact(FACT) if tuned else None
    return learnt_at(looks) if looks else None


def describe_stop(stages: Sequence[Record]) -> str:
    """Say what had come of the attack by the look at which the task was learnt; empty where unknown."""
    look = stop_of(stages)
    if not look:
        return ""
    told = f"; {look['delivered']:.0f} % told" if "delivered" in look else ""
    return f"update {look['update']}: margin {mean_margin(look):+.1f}{told}"
