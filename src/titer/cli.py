"""The command line. Exit codes: 0 done, 1 something is missing, 2 bad input or usage, 3 not enough evidence."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from titer import paths
from titer.errors import EvidenceError

if TYPE_CHECKING:
    from titer.runs.search import Search

app = typer.Typer(
    help="How well does a language model's safety alignment survive fine-tuning?",
    no_args_is_help=True,
    add_completion=False,
)

Model = Annotated[
    str, typer.Argument(help="A checkpoint directory, a hub id, a PEFT adapter, or `lab`.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH.TO.FIELD=VALUE", help="Change a field of the recipe. Repeatable."
    ),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="ROLE=SOURCE", help="A file, folder or hub id for a role. Repeatable."
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="NAME=MODEL",
        help="Another model that the edit asks for: base, aligned, safe, unsafe. Repeatable.",
    ),
]
RecipeName = Annotated[str, typer.Option("--recipe", help="Where all other settings come from.")]
Seed = Annotated[int | None, typer.Option(help="Training seed.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Whole = Annotated[
    bool, typer.Option("--whole", help="Write the merged model rather than the adapter.")
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of finished stages [default: store, beside the run's]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


@app.command("run")
def run_recipe(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")] = "lab",
    settings: Settings = None,
    seed: Seed = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: runs/<recipe>-<hash>).")
    ] = None,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Run a recipe's pipelines and compare them. Stages that the store has are not computed again."""
    from titer.runs import recipe as recipes

    plan = recipes.load(recipe, settings or [], seed)
    from titer import api
    from titer.report import progress, tables

    console = _console(sys.stderr)
    folder = out or Path("runs") / f"{Path(recipe).stem}-{recipes.digest(plan)[:8]}"
    with progress.show_stages(console) as watch:
        found = api.run_recipe(plan, folder, store or folder.parent / paths.STORE, watch)
    if as_json:
        _print_json(found.documents)
    else:
        _console(sys.stdout).print(tables.to_screen(found.documents))
    _print_flags(console, next(iter(found.documents.values())))
    if not as_json:
        console.print(f"Everything is in {folder}")


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
    as_json: Json = False,
) -> None:
    """Align a model: --data alignment=..., and for a defense that simulates attacks --data harmful=... or defense=..."""
    _stage("align", model, method, data, settings, recipe, seed, out, whole, as_json)


@app.command("release")
def release(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(help="An edit of the aligned model.")] = "lox",
    reference: References = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    as_json: Json = False,
) -> None:
    """Edit an aligned model before it is released, its tensors one at a time, by --reference base=... that alignment started from."""
    _stage("release", model, method, None, settings, recipe, None, out, True, as_json, reference)


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
    as_json: Json = False,
) -> None:
    """Fine-tune a model on user data under attack: --data task=... and harmful=..., the attack by --set attack.p=0.1"""
    _stage("finetune", model, method, data, settings, recipe, seed, out, whole, as_json)


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
        float,
        typer.Option(
            help="Points of fine-tune accuracy that a value may cost, shown by its interval."
        ),
    ] = 2.0,
    nulls: Annotated[
        bool,
        typer.Option(
            "--nulls", help="Write beside it, in OUT/nulls, what controls of its size come to."
        ),
    ] = False,
    whole: Whole = False,
    as_json: Json = False,
) -> None:
    """Edit what fine-tuning added to an aligned model, an adapter or a whole model (--reference aligned=...), one weight at a time.

    Exit code 3: --search found no value that is shown to keep the task.
    """
    _stage(
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
        _search(search, bound),
        nulls,
    )


@app.command("evaluate")
def evaluate(
    model: Model,
    out: Out,
    judge: Annotated[str | None, typer.Option(help="What judges harm.")] = None,
    data: Rows = None,
    settings: Settings = None,
    recipe: RecipeName = "checkpoint",
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Score a model: any of --data harm_test=..., test=..., lookalike=..., harmful=... (the held-out share of the pool)

    Answers lie in the store: another judge of the same answers, with another --out, generates nothing.
    """
    from titer import api
    from titer.report import progress

    with progress.show_stages(_console(sys.stderr)) as watch:
        found = api.evaluate(
            model,
            judge=judge,
            recipe=recipe,
            settings=[*(f"data.{source}" for source in data or []), *(settings or [])],
            out=out,
            store=store,
            progress=watch,
        )
    _print_stage(found.record.fields, out, as_json)


def _stage(
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
) -> None:
    from titer import api
    from titer.report import progress, tables

    console = _console(sys.stderr)
    with progress.show_stages(console) as watch:
        found = api.single(
            kind,
            model,
            method,
            references=_pairs("--reference", reference),
            recipe=recipe,
            settings=[*(f"data.{source}" for source in data or []), *(settings or [])],
            seed=seed,
            out=out,
            whole=whole,
            search=search,
            nulls=nulls,
            progress=watch,
        )
    document = found.record.fields
    _print_stage(document, out, as_json)
    if search and not as_json:
        _console(sys.stdout).print(tables.of_search(document["search"], search.bound))


def _print_stage(document: Mapping[str, Any], out: Path, as_json: bool) -> None:
    from titer.report import tables

    console = _console(sys.stderr)
    if as_json:
        _print_json(document)
    else:
        _console(sys.stdout).print(tables.summary(document))
    _print_flags(console, document)
    if not as_json:
        console.print(f"Everything is in {out}")


@app.command("report")
def make_report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run or sweep.")],
) -> None:
    """Make the HTML page of a run or a sweep again, from its JSON files."""
    from titer import report

    print(report.again(folder))


@app.command("sweep")
def run_sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="PATH=V1,V2", help="Values of a field. Repeatable: all combinations."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, as 0,1,2.")] = "0",
    settings: Settings = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep [default: runs/sweep-<recipe>].")
    ] = None,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Run a recipe over a grid and seeds, in processes that share finished stages. Started again it goes on. Exit code 1: cells missing."""
    from titer import report
    from titer.report import progress, tables
    from titer.runs import sweep

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {seeds!r}: give whole numbers, as 0,1,2") from None
    folder = out or Path("runs") / f"sweep-{Path(recipe).stem}"
    plan = sweep.Sweep(
        recipe,
        sweep.cells(grid or [], settings or [], numbers),
        folder,
        store or folder.parent / "store",
        jobs,
    )
    plan.check()
    console = _console(sys.stderr)
    with progress.count_cells(console, len(plan.cells)) as watch:
        bundle = plan.run(watch)
    report.write_sweep(bundle, folder)
    if as_json:
        _print_json(bundle)
    else:
        _console(sys.stdout).print(tables.of_sweep(bundle))
        console.print(
            f"{bundle['missing']} of {len(plan.cells)} cells are missing. Everything is in {folder}"
        )
    _print_flags(console, bundle)
    if bundle["missing"]:
        raise typer.Exit(1)


stored = typer.Typer(
    help="The finished stages in a store: ls, du, verify, gc.", no_args_is_help=True
)
app.add_typer(stored, name="store")
Root = Annotated[Path, typer.Argument(help="Folder of the store.")]


@stored.command("ls")
def list_stages(root: Root = Path("runs/store")) -> None:
    """List the finished stages."""
    from titer.runs.store import open_store

    for entry in open_store(root).entries():
        method = (entry.about.get("method") or {}).get("method", "")
        print(
            f"{entry.key}  {entry.about['kind']:9} {method:16} {entry.size / 1e6:10.1f} MB{'  weights taken' if entry.dropped else ''}"
        )


@stored.command("du")
def disk_use(root: Root = Path("runs/store")) -> None:
    """How much room the finished stages take, by kind."""
    from titer.runs.store import open_store

    sizes: dict[str, int] = {}
    for entry in open_store(root).entries():
        sizes[entry.about["kind"]] = sizes.get(entry.about["kind"], 0) + entry.size
    for kind, size in (sizes | {"all": sum(sizes.values())}).items():
        print(f"{kind:9} {size / 1e6:10.1f} MB")


@stored.command("verify")
def verify(root: Root = Path("runs/store")) -> None:
    """Compare every file with its hash. Exit code 1 where one is not as it was written; the next run computes its stage again."""
    from titer.runs.store import open_store

    store = open_store(root)
    faults = store.verify()
    for key, files in faults.items():
        print(f"{key}  {', '.join(files)}")
    print(
        f"{len(faults)} of {len(store.entries()) + sum(store.entry(key) is None for key in faults)} stages are not as they were written"
    )
    if faults:
        raise typer.Exit(1)


@stored.command("gc")
def collect(root: Root = Path("runs/store")) -> None:
    """Take away attacked weights that no unfinished run needs, broken stages, and what was begun and given up."""
    from titer.runs.store import open_store

    print(f"{open_store(root).gc() / 1e6:.1f} MB freed")


@app.command("list")
def list_methods(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="defenses, edits, attacks, judges, benchmarks, recipes or hub; all if left out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods, the recipes, and what is known of repositories of the hub."""
    from titer import listing

    if as_json:
        _print_json([vars(entry) for entry in listing.entries(kind)])
    else:
        print("\n".join(listing.lines(kind)))


@app.command("show")
def show_method(
    method: Annotated[str, typer.Argument(help="A method, or KIND/METHOD as edits/scale.")],
    as_json: Json = False,
) -> None:
    """Show a method: what it needs, what it was compared with, and its fields with their meaning."""
    from titer import listing

    facts = listing.describe_method(method)
    if as_json:
        _print_json(listing.document(facts))
    else:
        print(listing.page(facts))


def _search(text: str | None, bound: float) -> Search | None:
    """What FIELD=V1,V2 asks to search."""
    if text is None:
        return None
    import yaml

    from titer.runs.search import Search

    field, equals, values = text.partition("=")
    if not (field and equals and values):
        raise ValueError(f"--search {text!r}: give FIELD=V1,V2, as alpha=0.05,0.1,0.2")
    return Search(field, tuple(yaml.safe_load(f"[{values}]")), bound)


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE options by name."""
    for text in given or []:
        if "=" not in text.strip("="):
            raise ValueError(f"{option} {text!r}: give NAME=VALUE")
    return dict(text.split("=", 1) for text in given or [])


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()


def _print_flags(console: Console, document: Mapping[str, Any]) -> None:
    """A line for each red flag of a document, whole and as it is."""
    from titer.findings import flags

    for flag in flags.from_documents(document.get("flags", [])):
        console.print(str(flag), soft_wrap=True, markup=False, highlight=False)


def _console(stream: TextIO) -> Console:
    """A console as wide as the terminal, or wide enough for the table where there is none."""
    return Console(file=stream, width=None if stream.isatty() else 160)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2, too little evidence exit code 3."""
    try:
        app()
    except EvidenceError as error:
        print(f"undecided: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(3)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
