"""The stages that made a checkpoint, by the records beside it: what it was made from, asked with, and
trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer import paths
from titer.findings.records import Record, parse_document
from titer.runs.store import Manifest
from titer.weights.folders import read_config


def trace(model: str) -> list[dict[str, Any]]:
    """Read the records of the stages that made a checkpoint, the oldest first, as far back as their
    folders are there.
    """
    found: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while model and (folder := paths.expand(model).resolve()) not in seen and folder.is_dir():
        seen.add(folder)
        if stage := _stored(folder / paths.MANIFEST):
            return [stage, *found]
        record = folder / paths.RECORD
        if not record.is_file():
            break
        document = parse_document(record, Record).model_dump(by_alias=True)
        found.insert(0, document)
        model = start_of(document)
    return found


def _stored(manifest: Path) -> dict[str, Any] | None:
    """Read what the manifest of a stage in the store tells; None where there is none of titer's.

    Checkpoints of others may have a file of that name.
    """
    try:
        about = parse_document(manifest, Manifest).about
    except (OSError, ValueError):
        return None
    asked = about.get("template")
    values = asked if isinstance(asked, list) else []
    template = dict(zip(("template", "system"), values, strict=False))
    told = {"method": about["method"]} if isinstance(about.get("method"), dict) else {}
    return {"kind": str(about.get("kind", "")), "recipe": template, "references": {}, **told}


def start_of(document: Mapping[str, Any]) -> str:
    """Return the path of the model that a stage worked on, empty where it is not recorded."""
    model = document["recipe"].get("model")
    return str(model.get("path", "")) if isinstance(model, Mapping) else ""


def recorded_models(model: str) -> dict[str, str]:
    """Read what the stages that made a checkpoint tell of the models before it."""
    found: dict[str, str] = {}
    for document in trace(model):
        start = start_of(document)
        if start and document["kind"] in ("align", "finetune"):
            found["base" if document["kind"] == "align" else "aligned"] = start
        found |= document["references"]
    return found


def trained_on(model: str) -> dict[str, frozenset[str]]:
    """Read the prompts that a checkpoint was trained on, by role: the hash of each one's words.

    Those of a stack are those of all its parts.
    """
    found: dict[str, frozenset[str]] = {}
    note = paths.expand(model) / paths.STACKED
    of = read_config(note)["parts"] if note.is_file() else [model]
    for document in (document for part in of for document in trace(part)):
        for role, prompts in document.get("prompts", {}).items():
            found[role] = found.get(role, frozenset()) | frozenset(prompts)
    return found
