"""The options and arguments that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="A checkpoint directory, a hub id, a PEFT adapter, a GGUF file, pip:PACKAGE, or `lab`."
    ),
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
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="PIPELINE", help="Leave the other pipelines out. Repeatable."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", help="Ask at most N held-out prompts of a benchmark: a quick look."
    ),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of finished stages (default: store, beside the run's)."),
]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help="Write the terms of every update into OUT-tracked for `tensorboard`, or another tracker "
        "that accelerate knows.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def with_limit(settings: list[str] | None, limit: int | None) -> list[str]:
    """Return the settings, and the field that `--limit` is short for."""
    return [*(settings or []), *([f"data.limit={limit}"] if limit is not None else [])]


def read_pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """Return the values of NAME=VALUE options by name."""
    for text in texts or []:
        if "=" not in text.strip("="):
            raise ValueError(f"{option} {text!r}: give NAME=VALUE")
    pairs = [text.split("=", 1) for text in texts or []]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{option} {max(names, key=names.count)} is given twice: take one out")
    return dict(pairs)


def quote(source: str) -> str:
    """Return a source of rows as YAML: a mapping as it is, a path as a text whatever its letters."""
    return source if source.startswith("{") or source == "null" else json.dumps(source)


def merge_data(data: list[str] | None, settings: list[str] | None) -> list[str]:
    """Return the settings with the sources of rows before them, as fields of the recipe."""
    sources = read_pairs("--data", data)
    return [*(f"data.{role}={quote(path)}" for role, path in sources.items()), *(settings or [])]


def read_seeds(text: str) -> list[int]:
    """Read training seeds as 0,1,2."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {text!r}: give whole numbers, as 0,1,2") from None
