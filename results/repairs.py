"""Repairs after fine-tuning: the rows of their tables."""

from collections.abc import Callable, Sequence
from math import isnan
from statistics import median

from results.answer import share_left
from titer.findings.worlds import Pool

HEAD = [
    "repair",
    "HS",
    "prefill HS",
    "FA",
    "training kept",
    "harm margin",
    "benign answers",
    "over-refusal",
    "general",
    "coherent",
    "removed: harm",
    "task",
    "update left",
    "seconds",
]
NONE = "-"  # the stage has no such fact


def table(
    groups: Sequence[Pool], figure: Callable[[Pool, str], str], display_name: Callable[[str], str]
) -> list[list[str]]:
    """A row for the attacked model and one for each repair; `figure` writes a score, `display_name`
    a pipeline's name.
    """
    lines = [HEAD]
    for group in groups:
        harm, prefill, task, *rest = (
            figure(group, name)
            for name in (
                "harm",
                "prefill",
                "task",
                "margin",
                "benign",
                "lookalike",
                "general",
                "coherent",
            )
        )
        scores = [harm, prefill, task, _kept(group), *rest]
        taken = [_energy_gone(group, inputs) for inputs in ("harm", "task")]
        seconds = median(stage.fields["seconds"] for stage in group.last)
        lines.append(
            [display_name(group.pipeline), *scores, *taken, _left(group), f"{seconds:.1f}"]
        )
    return lines


def _energy_gone(group: Pool, inputs: str) -> str:
    """Share of the update's energy that is gone, percent, the mean over worlds."""
    found = [
        stage.fact("removed energy")[inputs] for stage in group.last if stage.fact("removed energy")
    ]
    return f"{100 * sum(found) / len(found):.0f}" if found else NONE


def _left(group: Pool) -> str:
    """Norm of the update after the repair over that before it, percent, the mean over worlds."""
    found = [
        stage.fact("update norm after") / stage.fact("update norm before")
        for stage in group.last
        if stage.fact("update norm before")
    ]
    return f"{100 * sum(found) / len(found):.0f}" if found else NONE


def _kept(group: Pool) -> str:
    """Share of the user's training that is left, percent, the mean over worlds."""
    share = share_left(group).value
    return NONE if isnan(share) else f"{share:.0f}"
