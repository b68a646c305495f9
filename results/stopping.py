"""What the attack has come to when the user's task is learnt: early stopping, seen afterwards."""

from statistics import fmean

from results.bundles import load_groups
from results.names import display_name
from titer.findings.dose import mean_margin
from titer.findings.records import last
from titer.findings.stopping import stop_of
from titer.findings.worlds import pool
from titer.scoring.curve import FACT

HEADER = [
    *("method", "settings", "task learnt after, updates"),
    *("told by then, %", "harm margin by then", "told at the end, %"),
]


def table(claim: str) -> list[list[str]]:
    """List every pipeline whose looks read the task: means over worlds and seeds."""
    lines = [HEADER]
    for each in pool(load_groups(claim)):
        runs = list(each.seeds.values())
        stops = [stop for stages in runs if (stop := stop_of(stages))]
        if len(stops) < len(runs):
            continue
        ends = [tuned.fact(FACT)[-1] for stages in runs if (tuned := last(("finetune",), stages))]
        means = (
            f"{fmean(stop['update'] for stop in stops):.0f} of {ends[0]['update']}",
            f"{fmean(stop['delivered'] for stop in stops):.0f}",
            f"{fmean(map(mean_margin, stops)):+.1f}",
            f"{fmean(end['delivered'] for end in ends):.0f}",
        )
        lines.append([display_name(each.pipeline), " ".join(each.settings), *means])
    return lines
