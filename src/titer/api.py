"""titer from Python, as a notebook would use it: the commands as functions, with models and rows as
paths or in memory.

    aligned = titer.align("lab", data={"alignment": rows, "harmful": pool})
    tuned = titer.finetune(aligned, data={"task": task, "harmful": pool}, settings=["attack.p=0.1"])
    edited = titer.edit(tuned, "antidote", data={"harmful": pool})
    titer.evaluate(edited, data={"harmful": pool, "test": test}).to_pandas()

A model is a path, the name of a repository of the hub, `lab`, a result of one of these functions, a
`PreTrainedModel` with its tokenizer as a pair, or such a model whose `tokenizer` is given beside
it. Rows are a path, a hub name, a `datasets.Dataset`, a data frame, or a list of dicts. What is
handed over in memory is written under `given` in the folder of the result. Without `out` that
folder is a temporary one, which lasts as long as the result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer import paths
from titer.data.files import in_memory
from titer.findings.assay_record import AssayRecord, ConditionRecord
from titer.findings.attack_search import AttackSearchRecord, AttackTrial
from titer.findings.ladder import LadderRecord, RungRecord
from titer.findings.records import (
    PipelineRecord,
    Record,
    SweepRecord,
    check,
    load_document,
    parse_document,
    record_of,
)
from titer.progress import Progress, Silent
from titer.scoring.figures import NAMES

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from titer.findings.assay import Thresholds
    from titer.findings.calibrations import CalibrationRecord
    from titer.findings.verdict import PipelineVerdict
    from titer.listing import Choosable, Listing
    from titer.runs.assay import Setup, Wanted
    from titer.runs.recipe import Recipe
    from titer.runs.search import Search

Model = Any  # a path or name, a Result, a PreTrainedModel, or a pair of it and its tokenizer
Rows = Any  # a path or name, a datasets.Dataset, a pandas.DataFrame, or a list of dicts
Data = Mapping[str, Rows]  # by role, as `data.*` of a recipe: alignment, harmful, task, test, ...


@dataclass(frozen=True)
class Result:
    """What a stage came to: its record, and the folder with its model or its answers."""

    folder: Path
    record: Record
    _kept: tuple[Any, ...] = field(
        default=(), repr=False, compare=False
    )  # temporary folders that must last as long

    @property
    def scores(self) -> dict[str, Any]:
        """The figures by benchmark; none where nothing was scored."""
        return dict(self.record.scores)

    @property
    def flags(self) -> list[str]:
        """The red flags that it raises, a sentence each."""
        from titer.findings import flags

        return [str(flag) for flag in flags.from_documents(self.record.flags or [])]

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model, an adapter unmerged, and its tokenizer.

        Raises where the stage left no model.
        """
        from titer.weights import checkpoints

        return checkpoints.load(str(self.folder))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the figures, a row each."""
        return _frame([{"stage": self.record.label, **_figures(self.record)}])

    def _repr_html_(self) -> str:
        """Show the figures, or where nothing was scored what else the stage says of itself."""
        if self.record.scores:
            return _html(self.to_pandas(), self.flags)
        facts = self.record.facts.items()
        told = {name: value for name, value in facts if isinstance(value, int | float | str)}
        stage = {"stage": self.record.label, "seconds": self.record.seconds}
        return _html(_frame([stage | told]), self.flags)


@dataclass(frozen=True)
class Results:
    """What the pipelines of a run, or the cells of a sweep, came to: their documents, and the
    folder with everything.
    """

    folder: Path
    documents: dict[str, Any]  # of a run by pipeline; of a sweep its bundle
    _kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def pipelines(self) -> dict[str, PipelineRecord]:
        """The records of a run's pipelines, by name; none of a sweep."""
        if "cells" in self.documents:
            return {}
        return {
            name: check(PipelineRecord, document, name) for name, document in self.documents.items()
        }

    @property
    def verdicts(self) -> list[PipelineVerdict]:
        """What became of the alignment in every pipeline of a run, in a word and in sentences."""
        from titer.findings.records import stages
        from titer.findings.verdict import verdicts, was_attacked

        if "cells" in self.documents:
            return []
        return verdicts(stages(self.documents), was_attacked(self.documents))

    @property
    def answer(self) -> tuple[str, str]:
        """What fine-tuning did to the alignment, and what helped: a sentence each."""
        from titer.findings.answer import answer
        from titer.findings.records import stages
        from titer.findings.verdict import was_attacked

        return answer(stages(self.documents), was_attacked(self.documents))

    @property
    def flags(self) -> list[str]:
        """The red flags of the whole run, a sentence each."""
        from titer.findings import flags

        one = (
            self.documents if "cells" in self.documents else next(iter(self.documents.values()), {})
        )
        return [str(flag) for flag in flags.from_documents(one.get("flags", []))]

    def to_pandas(self) -> pandas.DataFrame:
        """Return the figures of every stage, a row each."""
        if "cells" not in self.documents:
            return _frame(list(_rows(self.documents)))
        cells = self.documents["cells"]
        rows = [
            {"settings": " ".join(cell["settings"]), "seed": cell["seed"], **row}
            for cell in cells
            for row in _rows(cell.get("pipelines") or {})
        ]
        return _frame(rows)

    def _repr_html_(self) -> str:
        return _html(self.to_pandas(), self.flags)


@dataclass(frozen=True)
class _Finding(ABC):
    """What was found of a model: a record, and the folder with everything."""

    folder: Path
    record: Any
    _kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def flags(self) -> list[str]:
        """The red flags that it raises, a sentence each."""
        from titer.findings import flags

        return [str(flag) for flag in flags.from_documents(self.record.flags)]

    @abstractmethod
    def to_pandas(self) -> pandas.DataFrame:
        """Return what it consists of, a row each."""

    def _repr_html_(self) -> str:
        return _html(self.to_pandas(), self.flags)


@dataclass(frozen=True)
class LadderResult(_Finding):
    """What a ladder found of a model: its record, and the folder with everything."""

    record: LadderRecord

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rungs, a row each."""
        return _frame([_rung(rung) for rung in self.record.rungs])


@dataclass(frozen=True)
class AttackSearchResult(_Finding):
    """What a search of an attack came to: its record, and the folder with everything."""

    record: AttackSearchRecord

    def to_pandas(self) -> pandas.DataFrame:
        """Return the trials, a row each."""
        return _frame([_trial(trial) for trial in self.record.trials])


@dataclass(frozen=True)
class AssayResult(_Finding):
    """What an assay found of a model beside its original: its record, and the folder."""

    record: AssayRecord

    def to_pandas(self) -> pandas.DataFrame:
        """Return the conditions, a row each."""
        return _frame([_condition(condition) for condition in self.record.conditions])


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe = "lab",
    *,
    settings: Sequence[str] = (),
    seed: int | None = None,
    model: Model = None,
    data: Data | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> Results:
    """Run a recipe's pipelines and compare them. Stages that the store has are not computed again.

    `recipe` is the name of one that titer brings, a YAML file, a mapping of the same fields, or a
    `Recipe`; `settings` are changes of fields, as "finetune.lr=1e-3". `model` and `data` take the
    place of the recipe's. Raises a ValueError whose text names what is wrong and what would do;
    then nothing is left in `out`.
    """
    from titer import registry
    from titer.runs import recipe as recipes

    folder, kept = _folder(out)
    changed = [*_Given(folder).settings(model, data or {}), *settings]
    if isinstance(recipe, recipes.Recipe | Mapping):
        fields = (
            registry.describe(recipe)
            if isinstance(recipe, recipes.Recipe)
            else json.loads(json.dumps(recipe))
        )
        plan = recipes.from_mapping(fields, changed, seed)
    else:
        plan = recipes.load(str(recipe), changed, seed)
    return run_recipe(
        plan, folder, Path(store) if store else folder.parent / paths.STORE, progress, (kept,)
    )


def run_recipe(
    recipe: Recipe,
    folder: Path,
    store: Path,
    progress: Progress | None = None,
    kept: tuple[Any, ...] = (),
) -> Results:
    """Run a recipe in a folder over a store."""
    from titer import report
    from titer.report import tables
    from titer.runs.documents import write_documents
    from titer.runs.execute import Run, claim
    from titer.runs.plan import Plan
    from titer.runs.store import Store

    plan = Plan.prepare(recipe)
    one = Run(plan, folder, Store(store))
    with claim(folder, plan):
        documents = write_documents(one, one.records(progress or Silent()))
        (folder / paths.TABLE).write_text(tables.to_markdown(documents), encoding="utf-8")
    report.write(documents, folder)
    return Results(folder, documents, kept)


def preview(recipe: Recipe, store: Path) -> list[str]:
    """Check a recipe with its rows and its model, and say what a run would do."""
    from titer.runs.plan import Plan
    from titer.runs.preview import preview
    from titer.runs.store import Store

    return preview(Plan.prepare(recipe), Store(store))


def plan(
    recipe: Recipe,
    *,
    gpu_memory: str | None = None,
    probe: bool = True,
    seeds: int = 1,
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Say the memory and the time of every step of a recipe, what fits and what to change.

    It is for this machine, or for a GPU with `gpu_memory`, as "24GB". With a `probe` the real model
    trains for a few updates here, for the times. Steps that a `store` has are left out.
    """
    from titer.runs.fitting import weigh
    from titer.runs.machine import find_machine
    from titer.runs.plan import Plan
    from titer.runs.store import Store

    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be at least 1")
    found = Plan.prepare(recipe)
    machine = find_machine(gpu_memory)
    return weigh(found, machine, Store(Path(store)) if store else None, probe, seeds)


def align(model: Model, method: Any = "sft", *, data: Data, **options: Any) -> Result:
    """Align a model with a defense: `data` has `alignment`, and for a defense that simulates
    attacks `harmful` or `defense`.

    `method` is a name, or a mapping of `method` and its fields. For `options` see `single`.
    """
    return single("align", model, method, data=data, **options)


def release(
    model: Model,
    method: Any = "lox",
    *,
    data: Data | None = None,
    references: Mapping[str, Model] | None = None,
    **options: Any,
) -> Result:
    """Edit an aligned model before it is released; `references` has the `base` that alignment
    started from, `data` the rows that an edit looks at.
    """
    return single("release", model, method, data=data, references=references, **options)


def finetune(model: Model, method: Any = "sft", *, data: Data, **options: Any) -> Result:
    """Fine-tune a model on user data under attack: `data` has `task` and `harmful`; settings as
    "attack.p=0.1".
    """
    return single("finetune", model, method, data=data, **options)


def edit(
    model: Model,
    method: Any = "antidote",
    *,
    references: Mapping[str, Model] | None = None,
    **options: Any,
) -> Result:
    """Edit what fine-tuning added to an aligned model: an adapter, or a whole model with
    `references={"aligned": ...}`.
    """
    return single("edit", model, method, references=references, **options)


def single(
    kind: str,
    model: Model,
    method: Any,
    *,
    data: Data | None = None,
    references: Mapping[str, Model] | None = None,
    recipe: str = "checkpoint",
    settings: Sequence[str] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    whole: bool = False,
    search: Search | None = None,
    nulls: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compute one stage that makes a model, from a model to a model.

    All other settings come from `recipe`, changed by `settings` ("align.updates=100",
    "method.alpha=0.2"). `whole` writes the merged model rather than its adapter. With a `search` an
    edit's value is chosen on validation prompts; `nulls` computes the controls of an edit beside
    it. Raises a ValueError in one line on bad input, an `EvidenceError` where a search is
    undecided.
    """
    from titer import registry
    from titer.methods import Edit
    from titer.runs import chain, command
    from titer.runs import recipe as recipes
    from titer.runs.execute import claim
    from titer.runs.plan import Plan

    folder, kept = _folder(out)
    given = _Given(folder)
    validating = ["data.split=validation"] if search else []
    changed = [*validating, *given.settings(None, data or {}), *settings]
    wanted = recipes.load_single(recipe, kind, given.model(model), method, changed, seed)
    [chosen] = [each for of, each in wanted.pipelines[recipes.SINGLE].methods() if of == kind]
    named = {name: given.model(of) for name, of in (references or {}).items()}
    others, controls = {}, {}
    if isinstance(chosen, Edit):
        others = command.find_references(
            wanted.model, chosen, named, chain.recorded_models(wanted.model.path)
        )
        controls = command.nulls(chosen) if nulls else {}
    plan = Plan.prepare(wanted, {kind, "evaluate"} if search else {kind}, others, whole)
    with claim(folder, plan, f"{kind} {'whole' if whole else ''}{search or ''}{sorted(controls)}"):
        document = command.make(plan, kind, folder, progress or Silent(), search)
        for name in controls:
            final = registry.build("edits", document["method"])  # with the value that was chosen
            assert isinstance(final, Edit)
            null = plan.with_edit(command.nulls(final)[name])
            command.make(null, kind, folder / paths.NULLS / name, progress or Silent())
    return Result(folder, record_of(document), (kept, *_kept_by(model)))


def evaluate(
    model: Model,
    *,
    data: Data | None = None,
    judge: Any = None,
    recipe: str = "checkpoint",
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    store: str | Path | None = None,
    server: Any = None,
    progress: Progress | None = None,
) -> Result:
    """Score a model: `data` has any of `harm_test`, `test`, `lookalike`, and `harmful`, whose
    held-out share is asked.

    Answers lie in the store, beside `out` unless another is given: another judge of the same
    answers generates nothing. With a `server` `model` is a name that the server knows: its address,
    as http://127.0.0.1:8000/v1, or a mapping with `url` and other fields of an `Endpoint`.
    """
    from titer.runs import command, served
    from titer.runs import recipe as recipes
    from titer.runs.execute import claim
    from titer.runs.plan import Plan
    from titer.runs.store import Store

    folder, kept = _folder(out)
    given = _Given(folder)
    judging = [f"judge={json.dumps(judge)}"] if judge else []
    changed = [*given.settings(None, data or {}), *judging, *settings]
    told = server is not None
    of_server = [text for text in changed if told and text.startswith("server.")]
    others = [text for text in changed if text not in of_server]
    wanted = recipes.load_single(recipe, "evaluate", given.model(model), None, others)
    plan = served.plan_of(wanted, server, of_server) if told else Plan.prepare(wanted, {"evaluate"})
    with claim(folder, plan, "evaluate"):
        place = Store(Path(store) if store else folder.parent / paths.STORE)
        document = command.evaluate(plan, folder, place, progress or Silent())
    return Result(folder, record_of(document), (kept,))


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
    judge, as "phrases=qi2023". `out` is a file to write.
    """
    from titer.config import validate
    from titer.data.labelled import read_labels
    from titer.data.sources import Source
    from titer.runs.calibrate import build_judge, calibrate, read_means
    from titer.runs.store import write

    given = labels if isinstance(labels, list | tuple) else [labels]
    sources = [
        validate(Source, dict(each) if isinstance(each, Mapping) else {"path": str(each)})
        for each in given
    ]
    looks_for, one = read_means(means), build_judge(judge, settings)
    found = calibrate(one, read_labels(sources, threshold), looks_for, threshold, controls)
    if out is not None:
        write(Path(out), found.model_dump(by_alias=True))
    return found


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

    folder, kept = _folder(out)
    rows = {**(data or {}), **({} if aware is None else {"defense": aware})}
    wanted = _attacked(folder, model, pipeline, rows, recipe, settings, seed)
    climb = Climb.prepare(ladders.load(ladder), wanted, pipeline or recipes.SINGLE, rungs)
    with claim(folder, climb.victim.plan, f"{climb.ladder.name} {climb.ladder.sha256}"):
        place = Store(Path(store) if store else folder.parent / paths.STORE)
        document = climb.run(folder, place, progress or Silent())
    report.write_ladder(document, folder)
    return LadderResult(
        folder, check(LadderRecord, document, str(folder)), (kept, *_kept_by(model))
    )


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

    folder, kept = _folder(out)
    budget = Budget(trials, margin, ranges or {})
    wanted = _attacked(folder, model, pipeline, data or {}, recipe, settings, seed)
    search = AttackSearch.prepare(wanted, budget, pipeline or recipes.SINGLE)
    with claim(folder, search.plan, search.identity):
        place = Store(Path(store) if store else folder.parent / paths.STORE)
        document = search.run(folder, place, progress or Silent())
    record = check(AttackSearchRecord, document, str(folder))
    return AttackSearchResult(folder, record, (kept, *_kept_by(model)))


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
    from titer.findings.assay import REQUIRED, Thresholds
    from titer.runs.assay import Setup, Wanted

    folder, kept = _folder(out)
    given = _Given(folder)
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
    place = Path(store) if store else folder.parent / paths.STORE
    found = assay_setup(setup, by, Wanted(require or REQUIRED, aware), folder, place, progress)
    return replace(found, _kept=(kept, *_kept_by(model), *_kept_by(base)))


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

    given = _Given(folder)
    changed = [*given.settings(model if pipeline else None, data), *settings]
    if pipeline:
        return recipes.only(recipes.load(recipe, changed, seed), [pipeline])
    if model is None:
        raise ValueError("an attack needs a model: give one, or a pipeline of the recipe")
    named = given.model(model)
    wanted = recipes.load_single(recipe, "align", named, {"method": "sft"}, changed, seed)
    single = replace(wanted.pipelines[recipes.SINGLE], align=None)
    return replace(wanted, pipelines={recipes.SINGLE: single})


def load(
    folder: str | Path,
) -> Result | Results | LadderResult | AttackSearchResult | AssayResult:
    """Read what a finished run, sweep, ladder, search of an attack, assay or single stage left in
    its folder.

    Raises where the folder holds none of them.
    """
    from titer import report

    place = Path(folder)
    if (place / paths.LADDER).is_file():
        return LadderResult(place, parse_document(place / paths.LADDER, LadderRecord))
    if (place / paths.ATTACK_SEARCH).is_file():
        found = parse_document(place / paths.ATTACK_SEARCH, AttackSearchRecord)
        return AttackSearchResult(place, found)
    if (place / paths.ASSAY).is_file():
        return AssayResult(place, parse_document(place / paths.ASSAY, AssayRecord))
    if (place / paths.SWEEP).is_file():
        return Results(place, load_document(place / paths.SWEEP, SweepRecord))
    if (place / paths.RECORD).is_file():
        return Result(place, parse_document(place / paths.RECORD, Record))
    return Results(place, report.read(place))


class Methods(list[Any]):
    """Methods, of which a notebook shows a table."""

    def to_pandas(self) -> pandas.DataFrame:
        """Return what is known of each, a row each."""
        return _frame([_method(each) for each in self])

    def _repr_html_(self) -> str:
        return _html(self.to_pandas(), [])


def list_methods(kind: str | None = None) -> list[Listing]:
    """List the methods and recipes, of one kind or of all: defenses, edits, attacks, judges,
    benchmarks, recipes.
    """
    from titer import listing

    return Methods(listing.entries(kind))


def choose(assume: str, kind: str | None = None) -> list[Choosable]:
    """Say of every defense and edit whether it fits what a defender has, and why not.

    `assume` has the words of `titer list --assume`: "no harmful data, adapter only". Those that fit
    come first. Raises for an unknown word, with the nearest.
    """
    from titer import listing
    from titer.assumptions import read_assumptions

    found = listing.choose(read_assumptions(assume), kind)
    return Methods(sorted(found, key=lambda each: not each.fits))


class _Temporary:
    """A folder that goes when nothing holds it any more, or Python ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


class _Given:
    """Puts what is handed over in memory where a recipe can name it: under the result's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.parent / f"{folder.name}-{paths.GIVEN}"

    def settings(self, model: Model, data: Data) -> list[str]:
        """Return the settings of a recipe that name a model and rows."""
        found = [] if model is None else [f"model={json.dumps({'path': self.model(model)})}"]
        return found + [f"data.{role}={self.rows(role, rows)}" for role, rows in data.items()]

    def model(self, model: Model) -> str:
        """Name a model, saved first where it is in memory."""
        if isinstance(model, str | Path):
            return str(model)
        if isinstance(model, Result):
            return str(model.folder)
        return str(_save_model(model, self.folder))

    def rows(self, role: str, rows: Rows) -> str:
        """Name rows, written first where they are in memory; what names them in a recipe's setting."""
        if isinstance(rows, str | Path):
            return str(rows)
        if isinstance(rows, Mapping) and "path" in rows:  # a source with its options
            return json.dumps(dict(rows))
        return json.dumps(self.source(role, rows))

    def source(self, role: str, rows: Rows) -> str:
        """Name rows by their path, or by that of a file that they are written to."""
        if isinstance(rows, str | Path):
            return str(rows)
        records = in_memory(f"data[{role!r}]", rows)
        text = "".join(json.dumps(record.fields) + "\n" for record in records)
        name = f"{role}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(self.folder / name)


def _save_model(model: Model, folder: Path) -> Path:
    """Save a model that is in memory with its tokenizer, named by its weights.

    Raises where one of the two is missing.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from titer.weights import adapters, checkpoints

    network, tokenizer = (
        model
        if isinstance(model, tuple) and len(model) == 2
        else (model, getattr(model, "tokenizer", None))
    )
    if adapters.has_adapter(network):
        raise ValueError(
            "a PEFT model in memory: save it by save_pretrained and give the folder, or merge it first"
        )
    if not isinstance(network, PreTrainedModel):
        raise ValueError(
            f"a model of type {type(network).__name__}: give a path, a result of titer, or a PreTrainedModel"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            "a model in memory comes with its tokenizer: give the pair (model, tokenizer)"
        )
    place = folder / f"model-{checkpoints.fingerprint(network)[:12]}"
    if not (place / "config.json").is_file():
        checkpoints.save(network, tokenizer, place)
    return place


def _folder(out: str | Path | None) -> tuple[Path, Any]:
    """Return the folder of a result, and the temporary one that it lies in where none is given."""
    if out is not None:
        return Path(out), None
    place = _Temporary(Path(tempfile.mkdtemp(prefix="titer-")))
    return place.path / "result", place


def _kept_by(model: Model) -> tuple[Any, ...]:
    """The temporary folders of a result that another one starts from, whose adapter may lie over
    its model.
    """
    return model._kept if isinstance(model, Result) else ()


def _figures(record: Record) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, score in record.scores.items():
        label = NAMES.get(name, name)
        told |= {label: score.value, f"{label} low": score.low, f"{label} high": score.high}
    return told | {"seconds": record.seconds, "weights": record.weights}


def _rung(rung: RungRecord) -> dict[str, Any]:
    harm, cost = rung.harm, rung.cost
    told: dict[str, Any] = {"rung": rung.name, "access": cost.access, "passes": cost.passes}
    told |= {"rows": cost.rows, "updates": cost.updates, "FLOPs": cost.flops}
    told |= {"HS": harm.value, "HS low": harm.low, "HS high": harm.high} if harm else {"HS": None}
    return told | {"shows": rung.word, "why": rung.why}


def _trial(trial: AttackTrial) -> dict[str, Any]:
    harm = trial.harm
    told: dict[str, Any] = {"trial": trial.number, **trial.settings, "state": trial.state}
    told |= {"HS": harm.value, "HS low": harm.low, "HS high": harm.high} if harm else {"HS": None}
    lost = {f"{NAMES[name]} lost": score.value for name, score in trial.lost.items()}
    return told | lost | {"why": trial.why}


def _condition(condition: ConditionRecord) -> dict[str, Any]:
    by = condition.decided_by
    told = {"condition": condition.name, "verdict": condition.verdict, "decided by": by.of}
    figures = {"value": by.value, "low": by.low, "high": by.high, "unit": condition.unit}
    return told | figures | {"threshold": condition.threshold, "why": by.why}


def _rows(documents: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, document in documents.items():
        for fields in document["stages"]:
            record = record_of(fields)
            struck = "; ".join(record.struck)
            yield {
                "pipeline": name,
                "stage": record.label,
                **_figures(record),
                "struck out": struck,
            }


def _method(of: Listing | Choosable) -> dict[str, Any]:
    from titer.listing import Choosable

    if not isinstance(of, Choosable):
        return {"kind": of.kind, "name": of.name, "what it is": str(of)}
    return {
        "name": of.listing.name,
        "acts": ", ".join(of.acts),
        "fits": of.fits,
        "with": of.condition,
        "why not": "; ".join(of.obstacles),
        "what it is": str(of.listing),
    }


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(rows)


def _html(frame: pandas.DataFrame, flags: Sequence[str]) -> str:
    from html import escape

    import pandas

    with pandas.option_context("display.max_colwidth", None):  # whole sentences
        table = str(frame.to_html(float_format="{:.1f}".format, na_rep=""))
    return table + "".join(f"<p>{escape(flag)}</p>" for flag in flags)
