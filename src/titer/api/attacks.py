"""What it costs to break a model: by a ladder, by a search, beside its original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from titer import paths
from titer.api.given import Data, Handed, Model, Rows, kept_by, result_folder, store_of
from titer.api.results import AssayResult, AttackSearchResult, LadderResult
from titer.findings.assay_record import AssayRecord
from titer.findings.attack_search import AttackSearchRecord
from titer.findings.ladder import LadderRecord
from titer.findings.records import check
from titer.progress import Progress, Silent

if TYPE_CHECKING:
    from titer.findings.conditions import Thresholds
    from titer.runs.assay import Setup, Wanted
    from titer.runs.recipe import Recipe


def attack(
    model: Model = None,
    *,
    ladder: str = "v1",
    rungs: Sequence[str] = (),
    aware: Rows = None,
    pipeline: str | None = None,
    data: Data | None = None,
    recipe: str = "checkpoint",
    settings: Sequence[str] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> LadderResult:
    """Set a ladder of attacks at a model, and say what each rung did and what breaking it cost.

    `data` has `harmful` and `task`; `aware` are the rows that the defense optimised against.
    `rungs` names some; the rest is missing. With a `pipeline` the model is the one that this pipeline
    of the recipe makes, from `model` or from the recipe's own. A rung that fails is missing, with
    the reason; what is wrong for all of them raises a ValueError.
    """
    from titer import report
    from titer.runs import ladder as ladders
    from titer.runs import recipe as recipes
    from titer.runs.climb import Climb
    from titer.runs.execute import claim
    from titer.runs.store import Store

    folder, kept = result_folder(out)
    rows = {**(data or {}), **({} if aware is None else {"defense": aware})}
    wanted = _attacked(folder, model, pipeline, rows, recipe, settings, seed)
    climb = Climb.prepare(ladders.load(ladder), wanted, pipeline or recipes.SINGLE, rungs)
    with claim(folder, climb.victim.plan, f"{climb.ladder.name} {climb.ladder.sha256}"):
        place = Store(store_of(folder, store))
        document = climb.run(folder, place, progress or Silent())
    report.write_ladder(document, folder)
    return LadderResult(folder, check(LadderRecord, document, str(folder)), (kept, *kept_by(model)))


def search_attack(
    model: Model = None,
    *,
    trials: int = 20,
    margin: float = 10.0,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    pipeline: str | None = None,
    data: Data | None = None,
    recipe: str = "checkpoint",
    settings: Sequence[str] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> AttackSearchResult:
    """Search the learning rate, the updates and the share of harmful rows of the recipe's attack.

    The trial that did the most harm on validation prompts, and cost the model no more than `margin`
    points of any ability, is trained anew and asked test prompts: `record.test`, None where no
    trial was within the margin. `ranges` are those of `lr`, `updates` and `p`. `data` has
    `harmful`, `task`, `validation` and `test`; `model` and `pipeline` are as for `attack`.
    """
    from titer.runs import recipe as recipes
    from titer.runs.attack_search import AttackSearch, Budget
    from titer.runs.execute import claim
    from titer.runs.store import Store

    folder, kept = result_folder(out)
    budget = Budget(trials, margin, ranges or {})
    wanted = _attacked(folder, model, pipeline, data or {}, recipe, settings, seed)
    search = AttackSearch.prepare(wanted, budget, pipeline or recipes.SINGLE)
    with claim(folder, search.plan, search.identity):
        place = Store(store_of(folder, store))
        document = search.run(folder, place, progress or Silent())
    record = check(AttackSearchRecord, document, str(folder))
    return AttackSearchResult(folder, record, (kept, *kept_by(model)))


def assay(
    model: Model,
    base: Model,
    *,
    data: Data | None = None,
    topics: Rows = None,
    domain: Rows = None,
    seeds: Sequence[int] = (0, 1, 2),
    task_rows: int = 500,
    thresholds: Mapping[str, float] | None = None,
    require: Sequence[str] = (),
    aware: Sequence[str] = (),
    recipe: str = "checkpoint",
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> AssayResult:
    """Hold a model against the conditions of immunization, beside its original, the `base`.

    `data` has the roles of the recipe's attacks, `topics` and `domain` are harmful rows that the
    defense never had. `thresholds` are `phi`, `times`, `margin` and `slower`, where they are not
    the defaults; `require` names the conditions that must be met, `aware` the attacks that were made
    with the defense known. `record.verdict` is met, not met, or not enough evidence.
    """
    from titer.config import validate
    from titer.findings.conditions import REQUIRED, Thresholds
    from titer.runs.assay import Setup, Wanted

    folder, kept = result_folder(out)
    given = Handed(folder)
    changed = [*given.settings(None, data or {}), *settings]
    setup = Setup(
        recipe=recipe,
        model=given.model(model),
        base=given.model(base),
        settings=changed,
        seeds=seeds,
        topics=None if topics is None else given.source("topics", topics),
        domain=None if domain is None else given.source("domain", domain),
        task_rows=task_rows,
    )
    by = validate(Thresholds, dict(thresholds or {}))
    place = store_of(folder, store)
    found = assay_setup(setup, by, Wanted(require or REQUIRED, aware), folder, place, progress)
    return replace(found, _kept=(kept, *kept_by(model), *kept_by(base)))


def assay_setup(
    setup: Setup,
    by: Thresholds,
    wanted: Wanted,
    folder: Path,
    store: Path,
    progress: Progress | None = None,
) -> AssayResult:
    """Run an assay in a folder over a store, and write its page."""
    from titer.report import assay as report
    from titer.runs.assay import run_assay

    document = run_assay(setup, by, wanted, folder, store, progress or Silent())
    record = check(AssayRecord, document, str(folder))
    (folder / paths.ASSAY_PAGE).write_text(report.to_markdown(record), encoding="utf-8")
    return AssayResult(folder, record)


def _attacked(
    folder: Path,
    model: Model,
    pipeline: str | None,
    data: Data,
    recipe: str,
    settings: Sequence[str],
    seed: int | None,
) -> Recipe:
    """Return the recipe of an attack on a model, or on the one that a pipeline makes."""
    from titer.runs import recipe as recipes

    given = Handed(folder)
    changed = [*given.settings(model if pipeline else None, data), *settings]
    if pipeline:
        return recipes.only(recipes.load(recipe, changed, seed), [pipeline])
    if model is None:
        raise ValueError("an attack needs a model: give one, or a pipeline of the recipe")
    named = given.model(model)
    wanted = recipes.load_single(recipe, "align", named, {"method": "sft"}, changed, seed)
    single = replace(wanted.pipelines[recipes.SINGLE], align=None)
    return replace(wanted, pipelines={recipes.SINGLE: single})
