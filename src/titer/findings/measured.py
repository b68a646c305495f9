"""Models that were measured, each with how: two of them compare only where all of it is the same.

A model's figures come from an evaluation's folder (`titer evaluate MODEL --out FOLDER`), or from a
stage of a pipeline's document in a run's folder (`runs/lab/sft.json:align`; its last stage where
none is named).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer import paths
from titer.findings.outcomes import FROM, values_of
from titer.findings.records import Outcomes, PipelineRecord, Record, last, load_json, parse_document
from titer.scoring.figures import NAMES

SETTINGS = ("protocol", "template", "system", "max_length", "max_new_tokens")
FEWEST = 3  # places of a difference that a message names
AT_SERVER = {"temperature": 0}  # the decoding of a server that was asked for the likeliest token
KINDS = ("base", "align", "release", "finetune", "edit")
EVALUATE = "give the folder of `titer evaluate`, or a run's <pipeline>.json"


@dataclass(frozen=True)
class Measured:
    """A model with its outcomes, and what these depend on beside its weights."""

    place: str
    record: Record
    how: Mapping[str, Any]  # judge, scorer, decoding, and the settings of asking
    prompts: Mapping[str, str]  # by benchmark, the hash of its prompts; empty where it is not known
    environment: Mapping[str, Any]

    @property
    def figures(self) -> list[str]:
        """The figures whose outcome of every prompt is known."""
        known = [name for name, digest in self.prompts.items() if digest]
        return [
            name for name in NAMES if name in self.record.scores and FROM.get(name, name) in known
        ]


def is_measured(place: str) -> bool:
    """Tell whether a place names results, rather than a model to be asked."""
    path, _ = _split(place)
    return path.suffix == ".json" or _evaluation(path) is not None or _run_of(path) is not None


def load(place: str) -> Measured:
    """Read a model's figures.

    Raises where there are none, or where it is not said how they came about.
    """
    path, kind = _split(place)
    if path.is_dir():
        found = _evaluation(path)
        if found is None:
            raise ValueError(f"{place}: holds no model's outcomes: {_mend(path)}")
        path = found
    fields = load_json(path)
    if isinstance(fields, Mapping) and "stages" in fields:
        return _of_pipeline(place, path, kind)
    if kind:
        raise ValueError(f"{place}: {path} holds one model, no stage {kind!r}: leave it out")
    record = parse_document(path, Record)
    more = record.model_extra or {}
    return _measured(place, record, more, record.recipe, more.get("data", {}))


def check_comparable(first: Measured, second: Measured) -> None:
    """Raise where two models were not asked the same prompts in the same way, or not judged alike."""
    apart = [
        f"{name} ({_shorten(first.how[name])} and {_shorten(second.how[name])})"
        for name in first.how
        if first.how[name] != second.how[name]
        and not (name == "decoding" and _greedy_here_and_there(first, second))
    ]
    apart += [f"the {name} prompts" for name in _other_prompts(first, second)]
    if apart:
        raise ValueError(
            f"{first.place} and {second.place} do not compare: they differ in {', '.join(apart)}; "
            "evaluate both with the same data, judge and settings"
        )


def differences_of_environment(first: Measured, second: Measured) -> list[str]:
    """Name the versions and machines that are not the same: they may move an answer."""
    names = sorted(first.environment.keys() & second.environment.keys())
    found = [
        f"{name}: {first.environment[name]} and {second.environment[name]}"
        for name in names
        if first.environment[name] != second.environment[name]
    ]
    if _greedy_here_and_there(first, second):
        found.append(
            "One of the two was asked behind a server and the other one here, both for the likeliest "
            "token: templates, lengths and numerics of the server are its own."
        )
    return found


def _greedy_here_and_there(first: Measured, second: Measured) -> bool:
    """Tell whether one was asked here and one behind a server, each for the likeliest token."""
    of = [each.how["decoding"] for each in (first, second)]
    return AT_SERVER in of and any(each.get("do_sample") is False for each in of)


def _other_prompts(first: Measured, second: Measured) -> list[str]:
    """List the benchmarks that both were asked, but with other prompts."""
    mine, its = first.record.outcomes or {}, second.record.outcomes or {}
    return [
        name
        for name in sorted(mine.keys() & its.keys())
        if (first.prompts[name] and second.prompts[name] not in ("", first.prompts[name]))
        or _layout(mine[name].clusters) != _layout(its[name].clusters)
    ]


def _layout(clusters: Sequence[str]) -> list[int]:
    """Number the clusters as they appear: packed outcomes have lost their names."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]


def _of_pipeline(place: str, path: Path, kind: str) -> Measured:
    document = parse_document(path, PipelineRecord)
    record = last((kind,), document.stages) if kind else document.stages[-1]
    if record is None:
        there = ", ".join(dict.fromkeys(stage.kind for stage in document.stages))
        raise ValueError(f"{place}: the pipeline has no stage {kind!r}; it has {there}")
    told = {"judge": document.judge, "benchmark": document.benchmark}
    told |= {"decoding": document.decoding, "environment": document.environment}
    return _measured(place, record, told, document.recipe, document.rows)


def _measured(
    place: str,
    record: Record,
    told: Mapping[str, Any],
    recipe: Mapping[str, Any],
    rows: Mapping[str, str],
) -> Measured:
    outcomes = record.outcomes or {}
    if not outcomes or not any(values_of(record, name) for name in record.scores):
        raise ValueError(f"{place}: holds no outcomes of prompts: {EVALUATE}")
    prompts = {
        name: str(rows.get(f"benchmark {name}") or _digest(of)) for name, of in outcomes.items()
    }
    missing = [name for name in ("judge", "decoding") if not told.get(name)]
    missing += [] if recipe else ["how the model was asked"]
    missing += [] if any(prompts.values()) else ["which prompts"]
    if missing:
        raise ValueError(
            f"{place}: does not say {', '.join(missing[:FEWEST])}, so nothing shows that another "
            f"model was asked alike: {EVALUATE}"
        )
    how = {name: told.get(name) for name in ("judge", "benchmark", "decoding")}
    how |= {name: recipe.get(name) for name in SETTINGS}
    return Measured(place, record, how, prompts, told.get("environment", {}))


def _digest(of: Outcomes) -> str:
    """Hash the prompts of outcomes that are not packed; empty of those that are."""
    named = all(len(prompt) == len(hashlib.sha256().hexdigest()) for prompt in of.prompts)
    return hashlib.sha256(" ".join(of.prompts).encode()).hexdigest() if named else ""


def _split(place: str) -> tuple[Path, str]:
    """Split PATH:STAGE. A path that is there with its colon is taken as it is."""
    whole = paths.expand(place)
    path, colon, kind = place.rpartition(":")
    if not colon or whole.exists() or not paths.expand(path).exists():
        return whole, ""
    if kind not in KINDS:
        raise ValueError(f"{place}: no stage is called {kind!r}; there is {', '.join(KINDS)}")
    return paths.expand(path), kind


def _evaluation(folder: Path) -> Path | None:
    """Find the record of an evaluation in a folder."""
    path = folder / paths.RECORD
    if not path.is_file():
        return None
    fields = load_json(path)
    return path if isinstance(fields, Mapping) and fields.get("kind") == "evaluate" else None


def _mend(folder: Path) -> str:
    """Say which files of a run's folder, or of the run of a stage's folder, hold models."""
    run = _run_of(folder)
    if run is None:
        return EVALUATE
    found = sorted(
        path.name
        for path in run.glob("*.json")
        if path.name not in (*paths.BESIDE, paths.SWEEP, paths.FIGURES)
    )
    shown: Sequence[str] = [f"{run / name}" for name in found[:FEWEST]]
    return (
        f"give one of {', '.join(shown)}, with a stage as :align behind it" if shown else EVALUATE
    )


def _run_of(folder: Path) -> Path | None:
    """Find the run whose folder this is, or that of one of its stages."""
    runs = (folder, folder.parent.parent)
    return next(
        (run for run in runs if (run / paths.RUN).is_file() and (run / paths.STAGES).is_dir()), None
    )


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
