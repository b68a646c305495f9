"""Measure a judge on answers that people have labelled, and on controls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from titer import paths
from titer.config import read_yaml
from titer.data.labelled import LabelledAnswer, LabelledSet
from titer.errors import unknown
from titer.findings import flags
from titer.findings.calibrations import CalibrationRecord, ControlRecord
from titer.findings.records import SCHEMA
from titer.methods import Judge, Label, Verdict
from titer.registry import build, describe_judge, name_of, panel_of
from titer.runs.journal import keep_judged
from titer.runs.store import write
from titer.scoring.controls import Control, Means, make_controls
from titer.scoring.judge_error import JudgeError, check_above_chance, share_of
from titer.scoring.judging import COUNTS, ask_judge
from titer.scoring.score import Score
from titer.scoring.statistics import proportion_by_cluster

LOOKS_FOR: Mapping[Means, Callable[[Verdict], bool]] = {
    "harmful": COUNTS["delivered"],
    "refused": COUNTS["refused"],
}
GRADES = 12  # distinct grades that are told one by one


def build_judge(given: Any, settings: Sequence[str] = ()) -> Judge:
    """Build a judge from its name or a mapping, with FIELD=VALUE settings applied."""
    fields = {"method": given} if isinstance(given, str) else given
    if not isinstance(fields, Mapping):
        return cast(Judge, build("judges", given))
    changed = dict(fields)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {setting!r}: give FIELD=VALUE")
        changed[name] = read_yaml(text, f"--set {setting!r}")
    return cast(Judge, build("judges", changed))


def read_means(word: str) -> Means:
    """Return what labels mean. Raises where it is neither of the two."""
    for known in LOOKS_FOR:
        if word == known:
            return known
    raise unknown("meaning of labels", word, LOOKS_FOR)


def calibrate(
    judge: Judge,
    labels: LabelledSet,
    means: Means = "harmful",
    threshold: float | None = None,
    controls: int = 50,
) -> CalibrationRecord:
    """Measure a judge on labelled answers, and on at most so many controls of a kind.

    Of an ensemble each judge is measured; the record is of the first one, which decides, and holds
    the others. Raises where the labels are all of one kind, or a judge is right no more often than
    by chance.
    """
    (_, first), *more = panel_of(judge).items()
    others = {name: calibrate(each, labels, means, threshold, controls) for name, each in more}
    found = _calibrate(first, labels, means, threshold, controls)
    return found.model_copy(update={"others": others}) if others else found


def calibrate_into(
    out: Path, judge: Judge, measure: Callable[[Judge], CalibrationRecord]
) -> CalibrationRecord:
    """Measure a judge, as `calibrate` does, and write what was found to a file.

    Until it is written, what a server said lies beside it, so that the same call goes on where it was
    interrupted.
    """
    folder = out.with_name(f"{out.name}.{paths.PARTIAL}")
    with keep_judged(judge, folder) as kept:
        found = measure(kept)
        write(out, found.model_dump(by_alias=True))
    with suppress(OSError):  # none was made, or somebody else's files lie there
        folder.rmdir()
    return found


def _calibrate(
    judge: Judge, labels: LabelledSet, means: Means, threshold: float | None, controls: int
) -> CalibrationRecord:
    answers = labels.answers
    kinds = {each.label for each in answers}
    if len(kinds) < 2:
        raise ValueError(
            f"all {len(answers)} labelled answers are {'' if True in kinds else 'not '}{means}: "
            "a judge is measured on both kinds"
        )
    found = _ask(judge, means, [(each.prompt, each.response) for each in answers])
    error = _error(answers, found)
    check_above_chance(error)
    made = make_controls(answers, means, controls)
    by_grade: dict[str, Any] = {"by grade": _by_grade(answers, found)}
    shares = {means: error.sensitivity.score, f"not {means}": error.specificity.score}
    return CalibrationRecord(
        schema=SCHEMA,
        judge=describe_judge(judge),
        means=means,
        threshold=threshold,
        labels={
            "files": list(labels.files),
            "rows": len(answers),
            "sha256": labels.sha256,
            **({"left out": dict(labels.left_out)} if labels.left_out else {}),
        },
        sensitivity=error.sensitivity.score,
        specificity=error.specificity.score,
        effective={
            "sensitivity": error.sensitivity.effective,
            "specificity": error.specificity.effective,
        },
        **by_grade,
        raters=_raters(answers),
        controls={kind: _control(judge, means, of) for kind, of in made.items()},
        flags=flags.as_documents(flags.of_calibration(name_of(judge), shares)),
    )


def _ask(judge: Judge, means: Means, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Ask the judge of every pair whether it finds what it looks for; None where it cannot say."""
    verdicts = ask_judge(judge, [prompt for prompt, _ in pairs], [answer for _, answer in pairs])
    finds = LOOKS_FOR[means]
    return [None if each.label is Label.UNSCORED else finds(each) for each in verdicts]


def _error(answers: Sequence[LabelledAnswer], found: Sequence[bool | None]) -> JudgeError:
    def share(label: bool) -> tuple[list[bool | None], list[Hashable]]:
        of = [
            (each, told) for each, told in zip(answers, found, strict=True) if each.label == label
        ]
        right = [None if told is None else told == label for _, told in of]
        return right, [each.cluster for each, _ in of]

    return JudgeError(share_of(*share(True)), share_of(*share(False)))


def _by_grade(answers: Sequence[LabelledAnswer], found: Sequence[bool | None]) -> dict[str, Score]:
    """Return how often the judge found something, by the raters' mean grade, where grades are more
    than yes and no.
    """
    grades = sorted({round(each.grade, 3) for each in answers})
    if len(grades) < 3 or len(grades) > GRADES:
        return {}
    by: dict[str, Score] = {}
    for grade in grades:
        of = [
            (told, each.cluster)
            for each, told in zip(answers, found, strict=True)
            if round(each.grade, 3) == grade
        ]
        by[f"{grade:g}"] = proportion_by_cluster([told for told, _ in of], [at for _, at in of])
    return by


def _raters(answers: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """Say how often raters agree: all of them, and a pair of them on average."""
    several = [each.raters for each in answers if len(each.raters) > 1]
    if not several:
        return {}
    pairs = [
        (
            len(of) * (len(of) - 1),
            sum(of) * (sum(of) - 1) + (len(of) - sum(of)) * (len(of) - sum(of) - 1),
        )
        for of in several
    ]
    return {
        "rows with several raters": len(several),
        "all agree": 100 * sum(len(set(of)) == 1 for of in several) / len(several),
        "a pair agrees": 100 * sum(same for _, same in pairs) / sum(of for of, _ in pairs),
    }


def _control(judge: Judge, means: Means, of: Sequence[Control]) -> ControlRecord:
    found = _ask(judge, means, [(each.prompt, each.response) for each in of])
    clusters = [each.prompt for each in of]
    return ControlRecord(found=proportion_by_cluster(found, clusters), right=of[0].right)
