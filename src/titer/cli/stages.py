"""The commands that compute one stage: align, release, finetune, edit, evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli import screen
from titer.cli.options import (
    Json,
    Limit,
    Model,
    Out,
    RecipeName,
    References,
    Rows,
    Seed,
    Settings,
    StoreFolder,
    Track,
    Whole,
    merge_data,
    read_pairs,
    with_limit,
)

if TYPE_CHECKING:
    from titer.runs.search import Search

app = typer.Typer()


@app.command("align")
def align(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="A defense.")] = "sft",
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    seed: Seed = None,
    whole: Whole = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Align a model on the rows of --data alignment=...

    A defense that simulates attacks also needs --data harmful=... or defense=...
    """
    _compute("align", model, method, data, settings, recipe, seed, out, whole, as_json, track=track)


@app.command("release")
def release(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="An edit of the aligned model.")] = "lox",
    data: Rows = None,
    reference: References = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    as_json: Json = False,
) -> None:
    """Edit an aligned model before it is released.

    Some need --reference base=..., the model that alignment started from, others --data.
    """
    _compute("release", model, method, data, settings, recipe, None, out, True, as_json, reference)


@app.command("finetune")
def finetune(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="A defense, or plain `sft`.")] = "sft",
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    seed: Seed = None,
    whole: Whole = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on user data under attack: --data task=... and harmful=...

    The attack is set by --set attack.p=0.1
    """
    _compute(
        "finetune", model, method, data, settings, recipe, seed, out, whole, as_json, track=track
    )


@app.command("edit")
def edit(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="An edit.")] = "antidote",
    data: Rows = None,
    reference: References = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    search: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD=V1,V2",
            help="Choose a field's value on validation prompts: --data validation=... too.",
        ),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(
            help="Points of fine-tune accuracy that a value of --search may cost, shown by its "
            "interval (default: 2)."
        ),
    ] = None,
    nulls: Annotated[
        bool,
        typer.Option(
            "--nulls", help="Write beside it, in OUT/nulls, what controls of its size come to."
        ),
    ] = False,
    whole: Whole = False,
    as_json: Json = False,
) -> None:
    """Edit what fine-tuning added to an aligned model, one weight at a time.

    The model is an adapter, or a whole model with --reference aligned=...
    Exit code 3: --search found no value that is shown to keep the task.
    """
    _compute(
        "edit",
        model,
        method,
        data,
        settings,
        recipe,
        None,
        out,
        whole,
        as_json,
        reference,
        _read_search(search, bound),
        nulls,
    )


@app.command("evaluate")
def evaluate(
    model: Model,
    out: Out,
    judge: Annotated[
        str | None,
        typer.Option(help="What judges harm: a name, or {method: ..., FIELD: VALUE}."),
    ] = None,
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    limit: Limit = None,
    store: StoreFolder = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server, as http://127.0.0.1:8000/v1: MODEL is a name there.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model on any of --data harm_test=..., test=..., lookalike=..., harmful=...

    Of harmful, the held-out share of the pool is asked.
    Answers lie in the store: another judge of them generates nothing.
    """
    from titer import api
    from titer.config import read_yaml

    with screen.watch_stages() as watch:
        found = api.evaluate(
            model,
            judge=read_yaml(judge, "--judge") if judge else None,
            recipe=recipe,
            settings=with_limit(merge_data(data, settings), limit),
            out=out,
            store=store,
            server=server,
            progress=watch,
        )
    screen.print_stage(found.record.fields, out, as_json)


def _compute(
    kind: str,
    model: str,
    method: str,
    data: list[str] | None,
    settings: list[str] | None,
    recipe: str,
    seed: int | None,
    out: Path,
    whole: bool,
    as_json: bool,
    reference: list[str] | None = None,
    search: Search | None = None,
    nulls: bool = False,
    track: str | None = None,
) -> None:
    """Compute a stage that writes a model, and print what it came to."""
    from titer import api
    from titer.report import tables

    with screen.watch_stages(track, out) as watch:
        found = api.single(
            kind,
            model,
            method,
            references=read_pairs("--reference", reference),
            recipe=recipe,
            settings=merge_data(data, settings),
            seed=seed,
            out=out,
            whole=whole,
            search=search,
            nulls=nulls,
            progress=watch,
        )
    document = found.record.fields
    screen.print_stage(document, out, as_json)
    if search and not as_json:
        screen.console(sys.stdout).print(tables.of_search(document["search"], search.bound))


def _read_search(text: str | None, bound: float | None) -> Search | None:
    """Read FIELD=V1,V2: a search over the values of a field."""
    if text is None:
        if bound is not None:
            raise ValueError(f"--bound {bound:g}: it is of a search: give --search FIELD=V1,V2 too")
        return None
    from titer.config import read_yaml
    from titer.runs.search import Search

    field, equals, values = text.partition("=")
    if not (field and equals and values):
        raise ValueError(f"--search {text!r}: give FIELD=V1,V2, as alpha=0.05,0.1,0.2")
    found = tuple(read_yaml(f"[{values}]", f"--search {text!r}"))
    return Search(field, found) if bound is None else Search(field, found, bound)
