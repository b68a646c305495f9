"""The instruments of who decides: a gate for a model, a screen for an upload, and how good a judge is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer.api.given import Data, Handed, Model, Rows, result_folder
from titer.api.results import GateResult, ScreenResult
from titer.progress import Progress, Silent

if TYPE_CHECKING:
    from titer.findings.calibrations import CalibrationRecord
    from titer.scoring.noninferiority import JudgeCounts


def gate(
    base: Model,
    candidate: Model,
    *,
    margins: Mapping[str, float] | None = None,
    alpha: float = 0.05,
    without: Sequence[str] = (),
    judge_errors: Mapping[str, str | JudgeCounts | CalibrationRecord] | None = None,
    control: Model = None,
    topics: str | None = None,
    data: Data | None = None,
    judge: Any = None,
    recipe: str = "checkpoint",
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> GateResult:
    """Decide whether a candidate may take the place of a base: no measure worse than its margin allows.

    Each of the two, and of a `control` that is known to be bad, is a model, results (the folder of an
    evaluation, what `evaluate` returned, a run's <pipeline>.json with :STAGE behind it), or a model
    behind a server: NAME@URL, or a mapping with `url`, `model` and other fields of an `Endpoint`.
    Models are evaluated alike, by `data`, `judge`, `recipe` and `settings`, those of servers as
    "server.timeout=60". `margins` are points by measure, 5 for those not named; `without` leaves
    measures out. `judge_errors` are by measure what `calibrate` returned, its file, "88/95,190/200",
    or `JudgeCounts`. `topics` is FILE:COLUMN. The record, its page and JUnit XML are written to `out`.
    Raises a ValueError in one line where the two do not compare.
    """
    from titer.findings import gate as rules
    from titer.findings.calibrations import CalibrationRecord, read_judge_error
    from titer.findings.topics import read_topics
    from titer.report import gate as report
    from titer.runs.contender import Contender
    from titer.runs.desk import Desk, check_settings

    wanted = dict(margins or {})
    rules.Terms(wanted, alpha)  # a bad number is told of before anything is evaluated
    told = {
        name: read_judge_error(of) if isinstance(of, str) else of
        for name, of in (judge_errors or {}).items()
    }
    of_prompts = read_topics(topics) if topics else {}
    folder, kept = result_folder(out)
    given = Handed(folder)
    before, after, bad = (
        each
        if each is None
        else Contender.read(each if isinstance(each, Mapping) else given.model(each))
        for each in (base, candidate, control)
    )
    if before is None or after is None:
        raise ValueError("a gate needs a base and a candidate: give results or models")
    changed = [*given.settings(None, data or {}, judge), *settings]
    check_settings([place for place in (before, after, bad) if place], changed)
    desk = Desk(recipe, changed, folder, Path(store) if store else None, progress or Silent())
    first, second = desk.open(before, "base"), desk.open(after, "candidate")
    errors = {
        name: of.count(name, first.how["judge"]) if isinstance(of, CalibrationRecord) else of
        for name, of in told.items()
    }
    terms = rules.Terms(rules.choose_margins(first, second, wanted, without), alpha, errors)
    controls = desk.controls(before, first, bad)
    record = rules.decide(first, second, terms, of_prompts, controls, without)
    report.write(record, folder)
    return GateResult(folder, record, (kept,))


def screen(
    data: Rows,
    *,
    benign: Rows = None,
    safety: Rows = None,
    harmful: Rows = None,
    model: Model = None,
    judge: Any = None,
    attacks: Sequence[Any] = (),
    false_positives: float = 0.01,
    only: Sequence[str] = (),
    world: int | None = None,
    settings: Sequence[str] = (),
    clean: str | Path | None = None,
    flagged: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> ScreenResult:
    """Find the rows of an upload, `data`, that are dangerous to train on.

    At most `false_positives` of rows like the `benign` ones are flagged. Signals that need a `model`,
    `safety` rows (harmful prompts with refusals) or `harmful` ones are asked where these are given;
    `only` names the signals that are asked alone. A `judge` is a name or a mapping, `attacks` are
    those whose words are known. A `world` of the lab gives the rows that have no source. `settings`
    change fields, as "outlier.nearest=10". The rows that are not flagged and those that are go to the
    files `clean` and `flagged`, in the format of the upload (lines of JSON where it is in memory), a
    line of JSON on every row to `out`. Raises `EvidenceError` where benign rows are too few for the
    rate.
    """
    from titer.report.screening import to_lines
    from titer.screening import plan as plans
    from titer.screening import upload

    folder, kept = result_folder(None)
    given = Handed(folder)
    sources = {"data": data, "benign": benign, "safety": safety, "harmful": harmful}
    fields: dict[str, Any] = {
        name: dict(rows) if isinstance(rows, Mapping) else given.source(name, rows)
        for name, rows in sources.items()
        if rows is not None
    }
    fields |= {"false_positives": false_positives, "only": tuple(only), "attacks": list(attacks)}
    named = {"model": model if model is None else given.model(model), "world": world}
    named |= {"judge": judge}
    fields |= {name: value for name, value in named.items() if value is not None}
    wanted = plans.read_settings(fields, settings)
    parts = [(Path(path), keep) for path, keep in ((clean, False), (flagged, True)) if path]
    report = Path(out) if out is not None else None
    upload.check_outputs(wanted.data, [path for path, _ in parts], report)
    found = plans.look(wanted, progress or Silent())
    for path, keep in parts:
        upload.write(wanted.data, path, [row.is_flagged == keep for row in found.findings])
    if report is not None:
        report.write_text(to_lines(found), encoding="utf-8")
    return ScreenResult(found, (kept,))


def calibrate(
    judge: Any,
    labels: Any,
    *,
    means: str = "harmful",
    threshold: float | None = None,
    settings: Sequence[str] = (),
    controls: int = 50,
    out: str | Path | None = None,
) -> CalibrationRecord:
    """Measure how often a judge is right, on answers that people have labelled.

    `labels` is a source, or a list of them: a path, a hub name, `pip:PACKAGE/FILE`, or a mapping
    with `path` and `columns`. `means` is what a label of 1 says of an answer, "harmful" or
    "refused"; `threshold` the first grade that counts as a yes. `settings` change fields of the
    judge, as "phrases=qi2023". `out` is a file to write; with it a served judge that fails half way is
    not asked again for what it answered.
    """
    from titer.config import validate
    from titer.data.labelled import read_labels
    from titer.data.sources import Source
    from titer.runs.calibrate import build_judge, calibrate, calibrate_into, read_means

    given = labels if isinstance(labels, list | tuple) else [labels]
    sources = [
        validate(Source, dict(each) if isinstance(each, Mapping) else {"path": str(each)})
        for each in given
    ]
    looks_for, one = read_means(means), build_judge(judge, settings)
    measure = partial(
        calibrate,
        labels=read_labels(sources, threshold),
        means=looks_for,
        threshold=threshold,
        controls=controls,
    )
    return measure(one) if out is None else calibrate_into(Path(out), one, measure)
