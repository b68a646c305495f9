"""The bundles of the claims, as groups of cells that differ in the training seed alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from titer.config import hash_of
from titer.findings.flags import as_documents, raise_flags
from titer.findings.seeds import Group, groups

HERE = Path(__file__).parent


def path(claim: str) -> Path:
    return HERE / f"{claim}.json"


def read(claim: str) -> dict[str, Any]:
    """Read the bundle of a claim. A stage that several pipelines share has its outcomes in each."""
    bundle: dict[str, Any] = json.loads(path(claim).read_text())
    for cell in bundle["cells"]:
        known: dict[tuple[str, str], Any] = {}
        for stage in stages(cell):
            if "outcomes" in stage:
                known[identity(stage)] = stage["outcomes"]
            elif identity(stage) in known:
                stage["outcomes"] = known[identity(stage)]
    return bundle


def drop_repeats(cell: Mapping[str, Any]) -> None:
    """Leave the outcomes of a stage that several pipelines share in the first of them alone."""
    seen = set()
    for stage in stages(cell):
        if identity(stage) in seen:
            stage.pop("outcomes", None)
        seen.add(identity(stage))


def identity(stage: Mapping[str, Any]) -> tuple[str, str]:
    """Tell a stage of a cell from the others."""
    return stage["kind"], stage["weights"]


def stages(cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """List the stages of all pipelines of a cell."""
    for document in cell["pipelines"].values():
        yield from document["stages"]


def flag_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a cell with its red flags, as far as a bundle has what their rules ask for.

    A bundle names no folders: one stage in several pipelines is told by what led to its weights.
    """
    for document in cell["pipelines"].values():
        led = []
        for stage in document["stages"]:
            led.append([stage["kind"], stage["method"], stage["weights"]])
            stage["folder"] = hash_of(led)
    raised = as_documents(raise_flags(cell["pipelines"]))
    told = {name: {**of, "flags": raised} for name, of in cell["pipelines"].items()}
    return cell | {"pipelines": told}


def load_groups(claim: str, settings: str = "") -> list[Group]:
    """The pipelines of a claim, at the points of its grid that have the settings, with commas
    between; of joined claims every one once. Each has the red flags that bear on it.
    """
    joined: dict[tuple[tuple[str, ...], str], Group] = {}
    for name in claim.split("+"):
        for group in groups([flag_cell(cell) for cell in read(name)["cells"]]):
            if set(filter(None, settings.split(","))) <= set(group.settings):
                joined.setdefault((group.settings, group.pipeline), group)
    return list(joined.values())
