"""Repairs after fine-tuning: the rows of their tables."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from titer.findings.seeds import Group

HEAD = [
    "repair",
    "HS",
    "FA",
    "harm margin",
    "benign answers",
    "over-refusal",
    "general",
    "removed: harm",
    "task",
    "update left",
    "seconds",
]
NONE = "-"  # the stage has no such fact


def table(
    groups: Sequence[Group], figure: Callable[[Group, str], str], display_name: Callable[[str], str]
) -> list[list[str]]:
    """A row for the attacked model and one for each repair; `figure` writes a score, `display_name`
    a pipeline's name.
    """
    lines = [HEAD]
    for group in groups:
        scores = [
            figure(group, name)
            for name in ("harm", "task", "margin", "benign", "lookalike", "general")
        ]
        taken = [_energy_gone(group, inputs) for inputs in ("harm", "task")]
        seconds = median(stage.fields["seconds"] for stage in group.last)
        lines.append(
            [display_name(group.pipeline), *scores, *taken, _left(group), f"{seconds:.1f}"]
        )
    return lines


def _energy_gone(group: Group, inputs: str) -> str:
    """Share of the update's energy that is gone, percent, the mean over seeds."""
    found = [
        stage.fact("removed energy")[inputs] for stage in group.last if stage.fact("removed energy")
    ]
    return f"{100 * sum(found) / len(found):.0f}" if found else NONE


def _left(group: Group) -> str:
    """Norm of the update after the repair over that before it, percent, the mean over seeds."""
    found = [
        stage.fact("update norm after") / stage.fact("update norm before")
        for stage in group.last
        if stage.fact("update norm before")
    ]
    return f"{100 * sum(found) / len(found):.0f}" if found else NONE


def energy_table(
    points: Mapping[str, Mapping[str, Group]], display_name: Callable[[str], str]
) -> list[list[str]]:
    """Make a row for every repair at every point.

    It has the shares of the update's energy that are gone, and what is left of its norm.
    """
    lines = [["removed: harm / task; left", *points]]
    for pipeline in dict.fromkeys(name for of in points.values() for name in of):
        found = [of.get(pipeline) for of in points.values()]
        if any(group and _left(group) != NONE for group in found):
            lines.append(
                [
                    display_name(pipeline),
                    *(_energy_cell(group) if group else NONE for group in found),
                ]
            )
    return lines


def _energy_cell(group: Group) -> str:
    return f"{_energy_gone(group, 'harm')} / {_energy_gone(group, 'task')}; {_left(group)}"
