"""The command that puts a model on the hub: push."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from titer.cli import screen

app = typer.Typer()


@app.command("push")
def push_model(
    checkpoint: Annotated[
        str,
        typer.Argument(help="Folder that titer wrote: an --out, or a run's stages/NN-kind."),
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub.")],
    base: Annotated[
        str | None,
        typer.Option("--base-model", metavar="OWNER/NAME", help="The base's name on the hub."),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="The base's, as the hub names it: apache-2.0, say."),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Folder of `titer evaluate` of this checkpoint.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Its tamper card: card.json of `titer card`, or its folder.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it (default: private).")
    ] = False,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Write what would go up into a folder, and reach no hub."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of --dry-run (default: runs/push-NAME).")
    ] = None,
) -> None:
    """Put a model that titer made on the Hugging Face hub, with a page that says what it is.

    Attacked weights are refused, repaired or not. The token is that of `hf auth login`.
    """
    if out is not None and not dry:
        raise ValueError(f"--out {out}: only --dry-run writes a folder: give that too")
    from titer.integrations import push

    packed = push.pack(checkpoint, repository, push.Stated(base, license_, scores, card))
    if dry:
        folder = out or Path("runs") / f"push-{repository.partition('/')[2]}"
        for path in push.write_package(packed, folder):
            screen.say(f"{path}  {path.stat().st_size} bytes")
        screen.say(f"Nothing went up. It would be {repository} on the hub.", sys.stderr)
        return
    screen.say(push.push(packed, repository, public))
    screen.say(f"{len(packed)} files, {'public' if public else 'private'}", sys.stderr)
