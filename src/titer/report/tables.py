"""What a run found: one JSON file per pipeline, a markdown table, and the table on the screen."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from rich import box
from rich.table import Table

from titer import __version__
from titer.findings import flags, rules
from titer.findings import records as told
from titer.findings.seeds import figure_names, groups
from titer.runs.pipeline import Run, Stage
from titer.runs.recipe import describe
from titer.scoring.figures import NAMES
from titer.scoring.statistics import Score, read

LAB = "synthetic lab, world-v1"
LAB_CAPTION = f"{LAB.capitalize()}: it shows that a method runs and does something, not how well it protects a real model."


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they may change a figure."""
    return {
        "titer": __version__,
        "python": platform.python_version(),
        **{
            name: version(name)
            for name in ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
        },
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def write(run: Run, found: Mapping[str, Sequence[Stage]]) -> dict[str, Any]:
    """Write `<pipeline>.json` for every pipeline and `table.md`; return the JSON by pipeline."""
    documents = {}
    for name, stages in found.items():
        setting = run.setting
        document = {
            "pipeline": name,
            "recipe": describe(setting.recipe)
            | {"pipelines": {name: describe(setting.recipe.pipelines[name])}},
            "adapter": "double",  # the alignment adapter is merged; user data train a fresh one
            "judge": describe(setting.judge) | dict(setting.judge.provenance),
            "benchmark": describe(setting.roles.scorer),
            "model": {"name": setting.start.name, "revision": setting.start.revision},
            "stages": [asdict(stage) | {"label": stage.label} for stage in stages],
            "environment": environment(),
            "rows": setting.roles.digests(),
            "sources": setting.roles.sources,
            "overlaps": setting.overlaps,
            "run": setting.identity,
        }
        documents[name] = plain(document)
    struck = rules.find_broken(told.stages(documents))
    for document in documents.values():
        for stage in document["stages"]:
            stage["struck out"] = struck.get(stage["folder"], [])
    raised = flags.as_documents(
        flags.raise_flags(documents)
    )  # of the whole run: what marks its control marks all of it
    for name in found:
        documents[name]["flags"] = raised
        (run.folder / f"{name}.json").write_text(json.dumps(documents[name], indent=2) + "\n")
    (run.folder / "table.md").write_text(markdown(documents))
    return documents


def plain(value: Any) -> Any:
    """The value with null for every figure that is not finite: JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cell(score: Score | None, struck: bool = False) -> str:
    if score is None:
        return ""
    text = f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"
    text = f"{text} ({score.unscored} unscored)" if score.unscored else text
    return f"struck out: {text}" if struck else text


def _table(documents: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    listed = told.once(told.stages(documents))
    shown = [name for name in NAMES if any(name in stage.scores for _, stage in listed)]
    header = ["pipeline", "stage", *(NAMES[name] for name in shown), "seconds"]
    body = []
    for name, stage in listed:
        cells = (cell(stage.scores.get(key), key == "harm" and bool(stage.struck)) for key in shown)
        body.append([name, stage.label, *cells, f"{stage.fields['seconds']:.1f}"])
    return header, body


def caption(recipe: Mapping[str, Any]) -> str:
    """What a table or figure of this described recipe is over."""
    data = recipe["data"]
    protocol = f", protocol {recipe['protocol']}" if recipe.get("protocol") else ""
    prompts = f"{data['split']} prompts{protocol}, seed {recipe['seed']}; 95 % intervals over prompts, not over training seeds."
    world = data["world"]
    return prompts if world is None else f"World seed {world}, {prompts} {LAB_CAPTION}"


def _recipe(documents: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(next(iter(documents.values()))["recipe"])


def markdown(documents: Mapping[str, Any]) -> str:
    header, body = _table(documents)
    lines = [header, ["---"] * len(header), *body]
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + f"\n\n{caption(_recipe(documents))}\n"
    )


def summary(document: Mapping[str, Any]) -> Table:
    """What a stage alone came to."""
    table = Table(box=None, show_header=False)
    scores = {NAMES[name]: cell(read(score)) for name, score in document.get("scores", {}).items()}
    cost = {"seconds": document["seconds"], "peak MB": document["peak_mb"]}
    for name, value in (scores | document["facts"] | cost).items():
        text = (
            ", ".join(
                f"{key} {entry:.4g}" if isinstance(entry, float) else f"{key} {entry}"
                for key, entry in value.items()
            )
            if isinstance(value, dict)
            else str(value)
        )
        table.add_row(name, text)
    return table


def searched(tried: Sequence[Mapping[str, Any]], bound: float) -> Table:
    """What every value of a search came to on the validation prompts, the unedited model first."""
    names = [name for name in NAMES if name in tried[0]["before"]]
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=f"Validation prompts; a value may cost {bound:g} points of FA, shown by its interval.",
    )
    for column in (tried[0]["field"], *(NAMES[name] for name in names), "FA lost", ""):
        table.add_column(column.replace(" ", "\n"))
    table.add_row("unedited", *(cell(read(tried[0]["before"][name])) for name in names), "", "")
    for one in tried:
        word = (
            "chosen"
            if one["chosen"]
            else "broken"
            if one["broken"]
            else ""
            if one["keeps"]
            else "costs too much"
        )
        scores = (
            cell(read(one["scores"][name]), name == "harm" and bool(one["broken"]))
            for name in names
        )
        table.add_row(str(one["value"]), *scores, cell(read(one["lost"])), word)
    return table


def grid(bundle: Mapping[str, Any]) -> Table:
    """A sweep's last stages: each figure's mean over the seeds, with the interval that a new seed would fall into."""
    found = groups(bundle["cells"])
    names = figure_names(found)
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="95 % intervals over training seeds, from three seeds on.",
        caption_justify="left",
    )
    for column in ("settings", "pipeline", "seeds", *(NAMES[name] for name in names)):
        table.add_column(column.replace(" ", "\n"))
    for group in found:
        cells = (cell(group.score(name), name == "harm" and group.struck > 0) for name in names)
        table.add_row(" ".join(group.settings), group.pipeline, str(len(group.seeds)), *cells)
    return table


def screen(documents: Mapping[str, Any]) -> Table:
    header, body = _table(documents)
    table = Table(box=box.SIMPLE_HEAD, caption=caption(_recipe(documents)), caption_justify="left")
    for column in header:
        table.add_column(
            column.replace(" ", "\n"),
            justify="left" if column in ("pipeline", "stage") else "right",
        )
    last = ""
    for line in body:
        if line[0] != last and last:
            table.add_section()
        table.add_row(
            line[0] if line[0] != last else "", *(part.replace(" [", "\n[") for part in line[1:])
        )
        last = line[0]
    return table
