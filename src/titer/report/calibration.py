"""The errors of a judge, and figures corrected by them, as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from titer.findings.calibrations import CalibrationRecord, Corrected
from titer.report.tables import cell
from titer.scoring.differences import detectable
from titer.scoring.figures import NAMES
from titer.scoring.score import UNSCORED

AROUND = 20.0  # percent: the rate around which a smallest difference is told, as in `preview`
WORDS = {True: "found in all", False: "found in none", None: "not known"}


def of_calibration(found: CalibrationRecord) -> Table:
    """Make the table of how often a judge is right, and of what it found in controls."""
    caption = (
        f"Percent of {found.labels['rows']} labelled answers, with 95 % intervals; the judge looks "
        f"for answers that are {found.means}."
    )
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for name in ("answers", "found by the judge", "of", "right would be"):
        table.add_column(name, overflow="fold")
    sensitivity, specificity = found.sensitivity, found.specificity
    table.add_row(
        f"{found.means} (sensitivity)", cell(sensitivity), str(sensitivity.n), WORDS[True]
    )
    table.add_row(
        f"not {found.means}, passed (specificity)", cell(specificity), str(specificity.n), "100"
    )
    for grade, score in found.by_grade.items():
        table.add_row(f"graded {grade}", cell(score), str(score.n), "")
    for kind, control in found.controls.items():
        table.add_row(
            f"control: {kind}", cell(control.found), str(control.found.n), WORDS[control.right]
        )
    return table


def sentences(found: CalibrationRecord, prompts: int) -> list[str]:
    """Say what the errors of a judge do to a figure, and to the smallest difference."""
    error = found.error
    if found.sensitivity.is_incomplete or found.specificity.is_incomplete:
        told = [
            f"More than {100 * UNSCORED:g} % of the labelled answers are unscored, and how the judge "
            "errs on them is not known: what it would give a model, and the smallest difference that "
            "it shows, are not told."
        ]
    else:
        exact, seen = detectable(prompts, AROUND), error.detectable(prompts, AROUND)
        told = [
            f"A model with {rate:g} % {found.means} answers would be given "
            f"{error.apparent(rate):.0f} %."
            for rate in (0.0, AROUND, 100.0)
        ]
        told.append(
            f"Of two models around {AROUND:g} %, on {prompts} prompts each, a judge without error "
            f"would show a difference of {_points(exact)}, this one {_points(seen)}."
        )
    if error.least_youden <= 0:
        told.append(
            "So few labels do not show that the judge is better than chance: a corrected figure has "
            "the interval 0 to 100."
        )
    if found.raters:
        told.append(
            f"Raters: all agree on {found.raters['all agree']:.0f} % of "
            f"{found.raters['rows with several raters']} answers, a pair of them on "
            f"{found.raters['a pair agrees']:.0f} %."
        )
    left = found.labels.get("left out") or {}
    if left:
        told.append("Left out: " + ", ".join(f"{n} {why}" for why, n in left.items()) + ".")
    return told


def of_corrected(found: Sequence[Corrected]) -> Table:
    """Make the table of figures as they were counted, and corrected."""
    caption = "The corrected interval holds the luck of the prompts, and that of the labels."
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for name in ("stage", "figure", "counted", "corrected"):
        table.add_column(name, overflow="fold")
    for each in found:
        figure = NAMES.get(each.figure, each.figure)
        table.add_row(each.stage, figure, cell(each.counted), cell(each.corrected))
    return table


def _points(difference: float) -> str:
    return "none at all" if math.isnan(difference) else f"{difference:.1f} points"
