"""The commands that run a whole recipe, once or over a grid, and show it: run, sweep, report."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer import paths
from titer.cli import screen
from titer.cli.options import (
    Json,
    Limit,
    Model,
    Only,
    Recipe,
    Rows,
    Seed,
    Settings,
    StoreFolder,
    Track,
    quote,
    read_pairs,
    read_seeds,
    with_limit,
)

if TYPE_CHECKING:
    from titer.runs.workers import Workers

app = typer.Typer()


class Format(enum.StrEnum):
    """What an export writes."""

    FIGURES = "figures"
    INSPECT = "inspect"
    LM_EVAL = "lm-eval"


@app.command("run")
def run_recipe(
    recipe: Recipe = "lab",
    settings: Settings = None,
    seed: Seed = None,
    only: Only = None,
    limit: Limit = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: runs/<recipe>-<hash>).")
    ] = None,
    store: StoreFolder = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what would be done.")
    ] = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a recipe's pipelines and compare them.

    Stages that the store has are not computed again.
    """
    from titer.runs import recipe as recipes

    # a bad recipe is told of without torch
    plan = recipes.only(recipes.load(recipe, with_limit(settings, limit), seed), only or [])
    from titer import api
    from titer.report import tables

    folder = out or Path("runs") / f"{Path(recipe).stem}-{recipes.digest(plan)[:8]}"
    if dry:
        told = api.preview(plan, store or folder.parent / paths.STORE)
        screen.show_notes()
        screen.print_json(told) if as_json else screen.say("\n".join(told))
        return
    with screen.watch_stages(track, folder) as watch:
        found = api.run_recipe(plan, folder, store or folder.parent / paths.STORE, watch)
    if as_json:
        screen.print_json(found.documents)
    else:
        console = screen.console(sys.stdout)
        console.print(tables.to_screen(found.documents, console.width))
        for verdict in found.verdicts:
            screen.say(f"{verdict.pipeline}: {verdict.word}. {verdict.short}")
    screen.print_flags(next(iter(found.documents.values())))
    if not as_json:
        screen.say(" ".join(found.answer).strip())
        screen.say(f"The page is {folder / paths.PAGE}, everything is in {folder}", sys.stderr)


@app.command("sweep")
def run_sweep(
    recipe: Recipe,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="PATH=V1,V2", help="Values of a field. Repeatable: all combinations."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, as 0,1,2.")] = "0",
    settings: Settings = None,
    only: Only = None,
    limit: Limit = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cells at a time (default: 1; with --ray, as many as the cluster has room for).",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="auto|ADDRESS",
            help="Run the cells on a Ray cluster that shares this file system (pip install 'titer[ray]').",
        ),
    ] = None,
    ray_cpus: Annotated[
        int | None,
        typer.Option(
            "--ray-cpus",
            min=1,
            help="CPUs that a cell takes (default: the recipe's threads, or 1).",
        ),
    ] = None,
    ray_gpus: Annotated[
        float | None,
        typer.Option(
            "--ray-gpus",
            min=0,
            help="GPUs that a cell takes, or a part of one (default: 1 where a machine has any). "
            "With 0 it sees all of its machine's.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep (default: runs/sweep-<recipe>).")
    ] = None,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Run a recipe over a grid and seeds, in processes that share finished stages.

    Started again it goes on. Exit code 1: cells are missing.
    """
    from titer import report
    from titer.report import progress, tables
    from titer.report.sweep import flag_lines
    from titer.runs import sweep

    if ray is None and not (ray_cpus is ray_gpus is None):
        raise ValueError(
            "--ray-cpus and --ray-gpus are of a cluster: give --ray auto or its address"
        )

    folder = out or Path("runs") / f"sweep-{Path(recipe).stem}"
    plan = sweep.Sweep(
        recipe,
        sweep.cells(grid or [], with_limit(settings, limit), read_seeds(seeds)),
        folder,
        store or folder.parent / paths.STORE,
        only or [],
        _workers(jobs, ray, ray_cpus, ray_gpus),
    )
    plan.check()
    console = screen.console(sys.stderr)
    with progress.count_cells(console, len(plan.cells)) as watch:
        bundle = plan.run(watch)
    report.write_sweep(bundle, folder)
    missing = bundle["missing"]
    if as_json:
        screen.print_json(bundle)
    else:
        out_console = screen.console(sys.stdout)
        out_console.print(tables.of_sweep(bundle, out_console.width))
        told = f"{missing} of {len(plan.cells)} cells are missing. "
        told += f"The page is {folder / paths.PAGE}, everything is in {folder}"
        screen.say(told, sys.stderr)
    screen.print_flags(bundle)
    for line in flag_lines(bundle["cells"]):
        screen.say(line, sys.stderr)
    if missing:
        raise typer.Exit(1)


def _workers(jobs: int | None, ray: str | None, cpus: int | None, gpus: float | None) -> Workers:
    """Choose where the cells of a sweep run."""
    if ray is None:
        from titer.runs.workers import Processes

        return Processes(jobs or 1)
    from titer.integrations.cluster import RayCluster

    return RayCluster(ray, jobs, cpus, gpus)


@app.command("init")
def draft_recipe(
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("recipe.yaml"),
    data: Rows = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Time a few updates and answers.")
    ] = True,
) -> None:
    """Write a recipe for a model and files, with comments: what the rows can show, and the time."""
    from titer.config import read_yaml
    from titer.runs.draft import draft

    if out.exists():
        raise ValueError(f"{out} is there already: give another --out, or remove it")
    given = read_pairs("--data", data)
    sources = {role: read_yaml(quote(path), f"--data {role}") for role, path in given.items()}
    text = draft(model, sources, probe, lambda line: screen.say(line, sys.stderr))
    out.write_text(text, encoding="utf-8")
    screen.show_notes()
    screen.say(text.rstrip())
    screen.say(f"Written to {out}. Next: titer run {out}", sys.stderr)


@app.command("report")
def make_report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, sweep or ladder.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="DIR",
            help="Write its figures (SVG, PDF, PNG) and tables (CSV, Markdown, LaTeX) here instead.",
        ),
    ] = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Of --export: the page's figures and tables, or of a run or an evaluation a log of "
            "Inspect (pip install 'titer[inspect]') or results as lm-evaluation-harness has them, "
            "a file for each scored model.",
        ),
    ] = Format.FIGURES,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Put prompts and answers into Inspect's logs, which may be harmful to read.",
        ),
    ] = False,
) -> None:
    """Make the HTML page of a run, a sweep or a ladder again, or export what it shows."""
    from titer import report

    if to is None and form is not Format.FIGURES:
        raise ValueError(f"--format {form.value} is of an export: give --export DIR too")
    if answers and form is not Format.INSPECT:
        raise ValueError("--answers is of Inspect's logs: give --export DIR --format inspect too")
    if to is None:
        screen.say(str(report.again(folder)))
        return
    for path in _export(folder, to, form, answers):
        screen.say(str(path))


def _export(folder: Path, to: Path, form: Format, answers: bool) -> list[Path]:
    """Write a folder's results in a format, and return the files."""
    if form is Format.INSPECT:
        from titer.integrations.inspect_logs import write_logs

        return write_logs(folder, to, answers)
    if form is Format.LM_EVAL:
        from titer.integrations.lm_eval import write_results

        return write_results(folder, to)
    from titer import report

    return report.export(folder, to)
