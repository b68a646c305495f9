"""The commands on a store of finished stages: ls, du, verify, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The finished stages in a store: ls, du, verify, gc.", no_args_is_help=True)
Root = Annotated[Path, typer.Argument(help="Folder of the store.")]
DEFAULT = Path("runs/store")


@app.command("ls")
def list_stages(root: Root = DEFAULT) -> None:
    """List the finished stages."""
    from titer.runs.store import open_store

    for entry in open_store(root).entries():
        method = (entry.about.get("method") or {}).get("method", "")
        size = f"{entry.size / 1e6:10.1f} MB"
        dropped = "  weights taken" if entry.dropped else ""
        print(f"{entry.key}  {entry.about['kind']:9} {method:16} {size}{dropped}")


@app.command("du")
def measure_stages(root: Root = DEFAULT) -> None:
    """Print how much room the finished stages take, by kind."""
    from titer.runs.store import open_store

    sizes: dict[str, int] = {}
    for entry in open_store(root).entries():
        sizes[entry.about["kind"]] = sizes.get(entry.about["kind"], 0) + entry.size
    for kind, size in (sizes | {"all": sum(sizes.values())}).items():
        print(f"{kind:9} {size / 1e6:10.1f} MB")


@app.command("verify")
def verify_stages(root: Root = DEFAULT) -> None:
    """Compare every file with its hash.

    Exit code 1 where one is not as it was written; the next run computes its stage again.
    """
    from titer.runs.store import open_store

    store = open_store(root)
    faults = store.verify()
    for key, files in faults.items():
        print(f"{key}  {', '.join(files)}")
    count = len(store.entries()) + sum(store.entry(key) is None for key in faults)
    print(f"{len(faults)} of {count} stages are not as they were written")
    if faults:
        raise typer.Exit(1)


@app.command("gc")
def collect(root: Root = DEFAULT) -> None:
    """Take away attacked weights that no unfinished run needs, and what was broken or given up."""
    from titer.runs.store import open_store

    print(f"{open_store(root).gc() / 1e6:.1f} MB freed")
