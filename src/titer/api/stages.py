"""Single stages: from a model to a model, and from a model to its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titer import paths
from titer.api.given import Data, Handed, Model, kept_by, result_folder, store_of
from titer.api.results import Result
from titer.findings.records import record_of
from titer.progress import Progress, Silent

if TYPE_CHECKING:
    from titer.runs.search import Search


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

    folder, kept = result_folder(out)
    given = Handed(folder)
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
    return Result(folder, record_of(document), (kept, *kept_by(model)))


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
    as http://127.0.0.1:8000/v1, or a mapping with `url` and other fields of an `Endpoint`. NAME@URL
    is short for it.
    """
    from titer.runs import command
    from titer.runs.contender import Contender
    from titer.runs.execute import claim
    from titer.runs.served import plan_evaluation
    from titer.runs.store import Store

    folder, kept = result_folder(out)
    given = Handed(folder)
    changed = [*given.settings(None, data or {}, judge), *settings]
    name = given.model(model)
    if server is None:
        name, server = (found := Contender.read(name)).model, found.server
    plan = plan_evaluation(recipe, name, changed, server)
    with claim(folder, plan, "evaluate"):
        place = Store(store_of(folder, store))
        document = command.evaluate(plan, folder, place, progress or Silent())
    return Result(folder, record_of(document), (kept,))
