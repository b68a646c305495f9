"""The commands on a store of finished stages: ls, du, verify, gc."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.screen import say

if TYPE_CHECKING:
    from titer.runs.store import Store

app = typer.Typer(help="The finished stages in a store: ls, du, verify, gc.", no_args_is_help=True)
Root = Annotated[Path, typer.Argument(help="Folder of the store.")]
DEFAULT = Path("runs/store")


def _open(root: Path) -> Store:
    """Open a store, and name what lies in it and is passed over."""
    from titer.runs.store import open_store

    store = open_store(root)
    for path in store.strays():
        say(f"passed over, no stage of titer's: {path}", sys.stderr)
    return store


@app.command("ls")
def list_stages(root: Root = DEFAULT) -> None:
    """List the finished stages."""
    for entry in _open(root).entries():
        size = f"{entry.size / 1e6:10.1f} MB"
        dropped = "  weights taken" if entry.dropped else ""
        say(f"{entry.key}  {entry.kind:9} {entry.method:16} {size}{dropped}")


@app.command("du")
def measure_stages(root: Root = DEFAULT) -> None:
    """Print how much room the finished stages take, by kind."""
    sizes: dict[str, int] = {}
    for entry in _open(root).entries():
        sizes[entry.kind] = sizes.get(entry.kind, 0) + entry.size
    for kind, size in (sizes | {"all": sum(sizes.values())}).items():
        say(f"{kind:9} {size / 1e6:10.1f} MB")


@app.command("verify")
def verify_stages(
    root: Root = DEFAULT,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights/--no-weights",
            help="Read weights too, or ask only that they are there.",
        ),
    ] = True,
) -> None:
    """Compare every file with its hash.

    Exit code 1 where one is not as it was written; the next run computes its stage again.
    """
    store = _open(root)
    faults = store.verify(weights)
    for key, files in faults.items():
        say(f"{key}  {', '.join(files)}")
    say(f"{len(faults)} of {len(store.keys())} stages are not as they were written")
    if faults:
        raise typer.Exit(1)


@app.command("gc")
def collect(root: Root = DEFAULT) -> None:
    """Take away attacked weights that no unfinished run needs, and what was broken or given up."""
    say(f"{_open(root).gc() / 1e6:.1f} MB freed")
