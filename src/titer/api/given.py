"""The models and rows that a caller hands over, and the folder of what comes of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

from titer import paths
from titer.api.results import Result
from titer.data.files import RawRecord, in_memory

Model = Any  # a path or name, a Result, a PreTrainedModel, or a pair of it and its tokenizer
Rows = Any  # a path or name, a datasets.Dataset, a pandas.DataFrame, or a list of dicts
Data = Mapping[str, Rows]  # by role, as `data.*` of a recipe: alignment, harmful, task, test, ...


class Temporary:
    """A folder that goes when nothing holds it any more, or Python ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


class Handed:
    """Puts what is handed over in memory where a recipe can name it: under the result's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.parent / f"{folder.name}-{paths.GIVEN}"

    def settings(self, model: Model, data: Data, judge: Any = None) -> list[str]:
        """Return the settings of a recipe that name a model, rows and a judge."""
        found = [] if model is None else [f"model={json.dumps({'path': self.model(model)})}"]
        found += [f"data.{role}={self.rows(role, rows)}" for role, rows in data.items()]
        return [*found, f"judge={json.dumps(judge)}"] if judge else found

    def model(self, model: Model) -> str:
        """Name a model, saved first where it is in memory."""
        if isinstance(model, str | Path):
            return str(model)
        if isinstance(model, Result):
            return str(model.folder)
        return str(_save_model(model, self.folder))

    def rows(self, role: str, rows: Rows) -> str:
        """Name rows, written first where they are in memory; what names them in a recipe's setting."""
        if isinstance(rows, str | Path):
            return str(rows)
        if isinstance(rows, Mapping) and "path" in rows:  # a source with its options
            return json.dumps(dict(rows))
        return json.dumps(self.source(role, rows))

    def source(self, role: str, rows: Rows) -> str:
        """Name rows by their path, or by that of a file that they are written to."""
        if isinstance(rows, str | Path):
            return str(rows)
        records = in_memory(f"data[{role!r}]", rows)
        text = "".join(_spell(record) + "\n" for record in records)
        name = f"{role}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(self.folder / name)


def _spell(record: RawRecord) -> str:
    """Write a record as JSON, times as text. Raises where it holds what JSON has no word for."""

    def name(value: object) -> str:
        if isinstance(value, date | time | timedelta):  # of a data frame or a data set
            return str(value)
        raise ValueError(
            f"{record.place}: holds a {type(value).__name__}: give texts, numbers, lists and dicts"
        )

    return json.dumps(record.fields, default=name)


def _save_model(model: Model, folder: Path) -> Path:
    """Save a model that is in memory with its tokenizer, named by all that determines its answers.

    It appears by one rename, whole or not at all. Raises where one of the two is missing.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from titer.weights import adapters, checkpoints, folders

    network, tokenizer = (
        model
        if isinstance(model, tuple) and len(model) == 2
        else (model, getattr(model, "tokenizer", None))
    )
    if adapters.has_adapter(network):
        raise ValueError(
            "a PEFT model in memory: save it by save_pretrained and give the folder, or merge it first"
        )
    if not isinstance(network, PreTrainedModel):
        raise ValueError(
            f"a model of type {type(network).__name__}: give a path, a result of titer, or a PreTrainedModel"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            "a model in memory comes with its tokenizer: give the pair (model, tokenizer)"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = Path(tempfile.mkdtemp(dir=folder))
    try:
        checkpoints.save(network, tokenizer, fresh)
        place = folder / f"model-{folders.digest(folders.Files('', fresh, None))[:12]}"
        if not place.is_dir():
            fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return place


def result_folder(out: str | Path | None) -> tuple[Path, Any]:
    """Return the folder of a result, and the temporary one that it lies in where none is given."""
    if out is not None:
        return Path(out), None
    place = Temporary(Path(tempfile.mkdtemp(prefix="titer-")))
    return place.path / "result", place


def store_of(folder: Path, store: str | Path | None) -> Path:
    """Return the store that was given, or the one beside a result's folder."""
    return Path(store) if store else folder.parent / paths.STORE


def kept_by(model: Model) -> tuple[Any, ...]:
    """The temporary folders of a result that another one starts from, whose adapter may lie over
    its model.
    """
    return model._kept if isinstance(model, Result) else ()
