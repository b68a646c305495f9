"""Printing: consoles, JSON, red flags, and what a stage came to."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console


def console(stream: TextIO) -> Console:
    """Open a console as wide as the terminal, or wide enough for a table where there is none."""
    return Console(file=stream, width=None if stream.isatty() else 160)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    json.dump(value, sys.stdout, indent=2)
    print()


def print_flags(errors: Console, document: Mapping[str, Any]) -> None:
    """Print a line for each red flag of a document, whole and as it is."""
    from titer.findings import flags

    for flag in flags.from_documents(document.get("flags", [])):
        errors.print(str(flag), soft_wrap=True, markup=False, highlight=False)


def print_stage(document: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """Print what a stage came to, its red flags, and where it was written."""
    from titer.report import tables

    errors = console(sys.stderr)
    if as_json:
        print_json(document)
    else:
        console(sys.stdout).print(tables.summary(document))
    print_flags(errors, document)
    if not as_json:
        errors.print(f"Everything is in {out}")
