"""The command that writes a method to start from: new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from titer.cli import screen

app = typer.Typer()


@app.command("new")
def write_files(
    what: Annotated[
        str,
        typer.Argument(help="defense, edit, attack, judge or benchmark; or plugin, a package."),
    ],
    name: Annotated[str, typer.Argument(help="In small letters, as my_method.")],
    into: Annotated[
        Path | None,
        typer.Option(
            help="A checkout of titer or a plug-in's folder (default: this one); of a plugin a new "
            "folder (default: titer-NAME)."
        ),
    ] = None,
) -> None:
    """Write a method and its test, which pass as they are, to start from; or a package with one."""
    from titer import scaffold

    written = scaffold.write_new(what, name, into)
    screen.say("\n".join([*map(str, written), _next_step(written)]))


def _next_step(written: list[Path]) -> str:
    """Say how the test is run, and what else a new method asks for."""
    project = next((path.parent for path in written if path.name == "pyproject.toml"), None)
    test = next(path for path in written if path.name.startswith("test_"))
    if project is None:
        return f"test it: pytest {test}; then: python -m titer.listing docs"
    return f"install it, then test it: pip install -e {project} && pytest {test}"
