"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="A checkpoint directory, a hub id, a PEFT adapter, or `lab`.")
]
Recipe = Annotated[str, typer.Argument(help="A recipe's name or YAML file.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="Where all other settings come from.")]
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
Seed = Annotated[int | None, typer.Option(help="Training seed.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Whole = Annotated[
    bool, typer.Option("--whole", help="Write the merged model rather than the adapter.")
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of finished stages (default: store, beside the run's)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
