"""Two files of `bench.cost` side by side; exit 1 if the second is slower: `python -m bench.compare A B`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FACTOR = 1.10  # an update of B may take this many times A's
SAME = ("device", "type", "threads")  # where these differ, times say nothing of the code


def by_key(content: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(cost["shape"], cost["trained"], cost["method"]): cost for cost in content["costs"]}


def check(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Raise where the two were not measured alike."""
    for name in SAME:
        mine, other = a["environment"][name], b["environment"][name]
        if mine != other:
            raise ValueError(f"{name} differs, {mine!r} and {other!r}: measure both on one machine")
    shared = sorted(set(a["shapes"]) & set(b["shapes"]))
    wrong = [name for name in shared if a["shapes"][name] != b["shapes"][name]]
    if wrong:
        raise ValueError(f"the shape {wrong[0]!r} is not the same in both: measure both at one")
    if not by_key(a).keys() & by_key(b).keys():
        raise ValueError("the two have no method at a shape in common")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.compare", description=__doc__)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument(
        "--factor",
        type=float,
        default=FACTOR,
        help=f"how many times A's time B may take (default {FACTOR})",
    )
    options = parser.parse_args(arguments)
    try:
        a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (options.a, options.b))
        check(a, b)
    except (OSError, ValueError) as error:  # a file that is none of ours ends here too
        print(f"error: {error}", file=sys.stderr)
        return 2
    made, slower = (
        Table(
            "shape",
            "train",
            "method",
            "ms A",
            "ms B",
            "B/A",
            "over A",
            "over B",
            "FLOPs B/A",
            "kept B/A",
            "",
            box=None,
        ),
        0,
    )
    first, second = by_key(a), by_key(b)
    for key in first:
        if key not in second:
            continue
        one, other = first[key], second[key]
        ratio = other["seconds"]["median"] / one["seconds"]["median"]
        slower += ratio > options.factor
        made.add_row(
            *key,
            f"{one['seconds']['median'] * 1e3:.1f}",
            f"{other['seconds']['median'] * 1e3:.1f}",
            f"{ratio:.3f}",
            f"{one['ratio']['median']:.3f}",
            f"{other['ratio']['median']:.3f}",
            f"{other['counts']['flops'] / one['counts']['flops']:.3f}",
            f"{other['counts']['kept'] / one['counts']['kept']:.3f}",
            "slower" if ratio > options.factor else "",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(made)
    alone = len(first.keys() ^ second.keys())
    console.print(
        f"{slower} slower than {options.factor} times A"
        + (f"; {alone} in one file only" if alone else ""),
        highlight=False,
    )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
